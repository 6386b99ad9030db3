"""Idempotency-Key: a route's work is done once for each key, and each client that sends it gets the stored response."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from koo import IdempotentRoute, idempotent
from koo.options import DatabaseOptions
from koo.platform import Platform
from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy
from koo.web import mount
from tests.web.serving import Client, platform, served

PAY = text("INSERT INTO payments (cents) VALUES (:cents)")
KEY = {"Idempotency-Key": "6f1d-1"}


def who_asks(request: Request) -> str:
    if request.headers.get("X-User") == "stranger":
        raise HTTPException(401)
    return request.headers.get("X-User", "")


class Shop:
    """Routes of each kind on one database; `gate` delays the slow one."""

    def __init__(self, koo: Platform) -> None:
        self.koo = koo
        self.runs = 0
        self.began, self.gate = asyncio.Event(), asyncio.Event()
        self.router = APIRouter(route_class=IdempotentRoute)
        self._add_routes()

    async def payments(self) -> int:
        async with self.koo.database.session_scope(readonly=True) as session:
            return int(await session.scalar(text("SELECT count(*) FROM payments")) or 0)

    def _add_routes(self) -> None:
        post, find = self.router.post, lambda: self.koo.database
        key = idempotent(database=find, caller=None)
        of_user = idempotent(database=find, caller=who_asks, required=False)

        async def pay(session: AsyncSession, cents: int) -> None:
            self.runs += 1
            await session.execute(PAY, {"cents": cents})

        @post("/payments/{cents}", status_code=201)
        async def plain(
            cents: int, body: dict[str, int], response: Response, session: Annotated[AsyncSession, key]
        ) -> dict[str, int]:
            await pay(session, cents)
            response.headers["Location"] = f"/payments/{self.runs}"
            response.set_cookie("secret", "1")
            return {"run": self.runs}

        @post("/slow")
        async def slow(session: Annotated[AsyncSession, key]) -> int:
            await pay(session, 1)
            self.began.set()
            await self.gate.wait()
            return self.runs

        @post("/failing/{how}")
        async def failing(how: str, session: Annotated[AsyncSession, key]) -> Response:
            await pay(session, 1)
            if how == "raises":
                raise HTTPException(409, "not today")
            if how == "streams":
                return StreamingResponse(iter([b"a", b"b"]))
            return JSONResponse({"run": self.runs}, 402)

        @post("/form", response_class=PlainTextResponse)
        async def form(request: Request, session: Annotated[AsyncSession, key]) -> str:
            await pay(session, 1)
            return b"".join([one async for one in request.stream()]).decode() + " äß"

        # The check comes after the session on purpose: it must run for repeats, too.
        @post("/mine")
        async def mine(
            session: Annotated[AsyncSession, of_user], user: Annotated[str, Depends(who_asks)]
        ) -> str:
            await pay(session, 1)
            return f"{user} {self.runs}"

        @post("/in-a-thread")
        def in_a_thread(session: Annotated[AsyncSession, key]) -> int:
            self.runs += 1
            return self.runs

        class Object:
            async def __call__(inner, session: Annotated[AsyncSession, key]) -> int:  # noqa: N805
                await pay(session, 1)
                return self.runs

        post("/object")(Object())

        @self.router.get("/none")
        async def none() -> str:
            return "no session"


@asynccontextmanager
async def shop(folder: Path, url: str | None = None) -> AsyncIterator[tuple[Client, Shop]]:
    koo = platform(folder, database=DatabaseOptions(url=url or f"sqlite:///{folder}/app.db"))
    app = FastAPI()
    mount(app, koo)
    made = Shop(koo)
    app.include_router(made.router, prefix="/v1")
    async with served(app, grace_s=1) as client:
        await koo.database.init_exactly_once()
        async with koo.database.session_scope() as session:
            await session.execute(text("CREATE TABLE IF NOT EXISTS payments (cents INTEGER)"))
        yield client, made


@pytest.fixture(params=["sqlite", "psycopg", "asyncpg"])
def where(request: pytest.FixtureRequest) -> Any:
    if request.param == "sqlite":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres18")
    name = server.create_database()
    yield server.url(request.param, name)
    server.drop_database(name)


@pytest.mark.parametrize("route", ["in-a-thread", "object"])
def test_a_repeat_does_not_run_the_route_again_for_any_kind_of_function(tmp_path: Path, route: str) -> None:
    async def main() -> None:
        async with shop(tmp_path) as (client, made):
            for replayed in (None, "true"):
                reply = await client.post(f"/v1/{route}", headers=KEY)
                assert (reply.status, reply.body) == (200, 1)
                assert reply.headers.get("Idempotency-Replayed") == replayed
            assert made.runs == 1

    asyncio.run(main())


def test_a_repeat_gets_the_stored_response_and_does_nothing(tmp_path: Path, where: str | None) -> None:
    async def main() -> None:
        async with shop(tmp_path, where) as (client, made):
            first = await client.post("/v1/payments/5", json={"a": 1}, headers=KEY)
            again = await client.post("/v1/payments/5", json={"a": 1}, headers=KEY)
            assert (first.status, first.body) == (again.status, again.body) == (201, {"run": 1})
            assert "Idempotency-Replayed" not in first.headers
            assert again.headers["Idempotency-Replayed"] == "true"
            assert again.headers["Location"] == "/payments/1"
            assert again.headers["Content-Type"] == first.headers["Content-Type"] == "application/json"
            assert "Set-Cookie" in first.headers and "Set-Cookie" not in again.headers
            assert made.runs == await made.payments() == 1
            quoted = await client.post(
                "/v1/payments/5", json={"a": 1}, headers={"Idempotency-Key": '"6f1d-1"'}
            )
            assert quoted.body == {"run": 1}, "a quoted string, as the draft specifies, is the same key"

    asyncio.run(main())


def test_the_key_of_another_request_is_a_422_but_each_route_has_separate_keys(tmp_path: Path) -> None:
    async def main() -> None:
        async with shop(tmp_path) as (client, made):
            await client.post("/v1/payments/5", json={"a": 1}, headers=KEY)
            for path, body in (
                ("/v1/payments/5", {"a": 2}),
                ("/v1/payments/6", {"a": 1}),
                ("/v1/payments/5?b=1", {"a": 1}),
            ):
                other = await client.post(path, json=body, headers=KEY)
                assert (other.status, other.body["kind"]) == (422, "invalid_request")
                assert other.headers["Content-Type"] == "application/problem+json"
            assert made.runs == 1
            assert (await client.post("/v1/mine", headers={"X-User": "ann", **KEY})).body == "ann 2"

    asyncio.run(main())


def test_a_key_in_use_is_a_409_with_retry_after(tmp_path: Path, postgres18: PostgresServer) -> None:
    async def main() -> None:
        name = postgres18.create_database()
        async with shop(tmp_path, postgres18.url("psycopg", name)) as (client, made):
            first = asyncio.create_task(client.post("/v1/slow", headers=KEY))
            await made.began.wait()
            second = await client.post("/v1/slow", headers=KEY)
            assert (second.status, second.headers["Retry-After"]) == (409, "1")
            assert second.headers["Content-Type"] == "application/problem+json"
            made.gate.set()
            assert (await first).status == 200
            assert (await client.post("/v1/slow", headers=KEY)).body == 1
            assert await made.payments() == 1
        postgres18.drop_database(name)

    asyncio.run(main())


@pytest.mark.parametrize("value", [None, "", "x" * 201, "a\tb", "é"])
def test_an_invalid_key_is_a_400(tmp_path: Path, value: str | None) -> None:
    async def main() -> None:
        async with shop(tmp_path) as (client, made):
            headers = {} if value is None else {"Idempotency-Key": value}
            wrong = await client.post("/v1/payments/5", json={}, headers=headers)
            assert (wrong.status, wrong.body["kind"]) == (400, "invalid_request")
            assert "Idempotency-Key" in wrong.body["detail"]
            assert made.runs == 0

    asyncio.run(main())


def test_a_committed_response_is_stored_whatever_its_status_and_an_error_frees_the_key(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with shop(tmp_path) as (client, made):
            for _ in range(2):
                returned = await client.post("/v1/failing/returns", headers=KEY)
                assert (returned.status, returned.body) == (402, {"run": 1})
            assert await made.payments() == 1
            for run in (2, 3):
                raised = await client.post("/v1/failing/raises", headers={"Idempotency-Key": "other"})
                assert (raised.status, made.runs) == (409, run)
                assert raised.body == {"detail": "not today"}, "the route's own errors are unchanged"
            assert (await client.post("/v1/failing/streams", headers={"Idempotency-Key": "s"})).status == 500
            assert await made.payments() == 1, "if the response cannot be stored, the work is rolled back"
            wrong = await client.post("/v1/payments/5", json="no dict", headers={"Idempotency-Key": "w"})
            right = await client.post("/v1/payments/5", json={}, headers={"Idempotency-Key": "w"})
            assert (wrong.status, right.status) == (422, 201)

    asyncio.run(main())


def test_a_body_read_by_the_route_and_any_type_of_response_are_replayed_unchanged(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with shop(tmp_path) as (client, made):
            answers = [await client.post("/v1/form", data="Ann", headers=KEY) for _ in range(2)]
            assert [one.text for one in answers] == ["Ann äß"] * 2
            assert answers[1].headers["Content-Type"] == "text/plain; charset=utf-8"
            assert (await client.post("/v1/form", data="Bob", headers=KEY)).status == 422
            assert made.runs == 1

    asyncio.run(main())


def test_callers_have_separate_keys_and_are_checked_for_repeats_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with shop(tmp_path) as (client, _):

            async def ask(user: str, **headers: str) -> Any:
                return await client.post("/v1/mine", headers={"X-User": user, **headers})

            assert (await ask("ann", **KEY)).body == "ann 1"
            assert (await ask("bob", **KEY)).body == "bob 2"
            assert (await ask("ann", **KEY)).body == "ann 1"
            assert (await ask("stranger", **KEY)).status == 401
            assert [(await ask("ann")).body for _ in range(2)] == ["ann 3", "ann 4"], "optional and omitted"
            assert (await client.get("/v1/none")).body == "no session"
            described = (await client.get("/openapi.json")).body["paths"]["/v1/mine"]["post"]["parameters"]
            assert described[0]["name"] == "Idempotency-Key"

    asyncio.run(main())


def test_the_caller_must_always_be_given() -> None:
    unsaid: Any = idempotent
    with pytest.raises(TypeError, match="caller"):
        unsaid(required=False)


@pytest.mark.parametrize(
    "who", [None, "", object(), {"id": 1}, 1.5], ids=["none", "empty", "object", "dictionary", "float"]
)
def test_a_caller_without_a_permanent_identity_is_refused_and_nothing_is_done(
    tmp_path: Path, who: Any
) -> None:
    """A repeat would count as another caller's and run again; without an identity all callers would share responses."""

    async def main() -> None:
        koo, runs = platform(tmp_path), 0
        app, router = FastAPI(), APIRouter(route_class=IdempotentRoute)
        mount(app, koo)
        mine = idempotent(caller=lambda: who, database=lambda: koo.database)

        @router.post("/pay")
        async def pay(session: Annotated[AsyncSession, mine]) -> None:
            nonlocal runs
            runs += 1

        app.include_router(router)
        async with served(app) as client:
            await koo.database.init_exactly_once()
            assert (await client.post("/pay", headers=KEY)).status == 500
            assert runs == 0

    asyncio.run(main())


def test_an_application_without_koos_own_routes_refuses_with_the_same_messages(tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path)
        app, router = FastAPI(), APIRouter(route_class=IdempotentRoute)
        once = idempotent(caller=None, database=lambda: koo.database)

        @router.post("/pay")
        async def pay(body: dict[str, int], session: Annotated[AsyncSession, once]) -> dict[str, int]:
            return body

        app.include_router(router)
        async with koo, served(app) as client:
            await koo.database.init_exactly_once()
            assert (await client.post("/pay", json={"a": 1}, headers=KEY)).body == {"a": 1}
            other = await client.post("/pay", json={"a": 2}, headers=KEY)
            assert (other.status, other.headers["Content-Type"]) == (422, "application/problem+json")

    asyncio.run(main())


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_client_sees_a_response_whose_commit_was_lost(
    tmp_path: Path, postgres18: PostgresServer, when: Any
) -> None:
    """The client is asked to send the request again with the same key, and then gets the one response."""

    async def main() -> None:
        name = postgres18.create_database()
        async with FaultProxy(postgres18.host, postgres18.port) as proxy:
            url = proxy.through(postgres18.url("psycopg", name))
            async with shop(tmp_path, url) as (client, made):
                proxy.cut_commit(when)
                lost = await client.post("/v1/payments/5", json={}, headers=KEY)
                assert (lost.status, lost.headers["Retry-After"]) == (503, "1")
                assert (
                    lost.body["kind"] == "outcome_unknown" and "same Idempotency-Key" in lost.body["detail"]
                )
                again = await client.post("/v1/payments/5", json={}, headers=KEY)
                assert again.status == 201
                assert ("Idempotency-Replayed" in again.headers) == (when == "after")
                assert await made.payments() == 1
        postgres18.drop_database(name)

    asyncio.run(main())


def test_a_session_without_its_route_class_fails_with_an_explanation(tmp_path: Path) -> None:
    async def main() -> None:
        app = FastAPI()
        koo = platform(tmp_path)
        mount(app, koo)

        @app.post("/plain")
        async def plain(
            session: Annotated[AsyncSession, idempotent(database=lambda: koo.database, caller=None)],
        ) -> None:
            raise AssertionError

        async with served(app) as client:
            assert (await client.post("/plain", headers=KEY)).status == 500

    asyncio.run(main())
