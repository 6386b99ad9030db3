"""koo mounted in another application: three lines, and nothing of the application changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from koo.errors import DatabaseUnavailable
from koo.logs.lines import request_id
from koo.testing.providers import FakeAnthropic, error
from koo.web import create_app, mount
from tests.web.serving import claude, platform, served


@pytest.fixture(autouse=True)
def patient_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, half a second may not be enough for the check that ends before the first request."""
    monkeypatch.setattr("koo.web.app.FIRST_LOOK_S", 20.0)


def test_the_applications_routes_errors_and_lifespan_are_unchanged(tmp_path: Path) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        told.append("its start")
        yield
        told.append("its end")

    async def main() -> None:
        app = FastAPI(lifespan=lifespan)
        koo = platform(tmp_path)
        mount(app, koo)

        @app.get("/own/{number}")
        async def own(number: int) -> dict[str, int]:
            if number == 0:
                raise HTTPException(418, "its own words")
            if number == 1:
                raise DatabaseUnavailable("database", "its breaker is open", 2.5)
            return {"number": number}

        async with served(app) as client:
            assert told == ["its start"]
            # Open before the first request.
            assert repr(koo.parts.store) == "<SqlStore open>" and koo.database.last_look is not None
            assert (await client.get("/own/2")).body == {"number": 2}
            assert (await client.get("/own/0")).body == {"detail": "its own words"}
            assert "detail" in (await client.get("/own/x")).body  # FastAPI's own 422
            assert (await client.get("/nowhere")).body == {"detail": "Not Found"}
            unavailable = await client.get("/own/1")
            assert (unavailable.status, unavailable.headers["Retry-After"]) == (503, "3")
            assert unavailable.headers["Content-Type"] == "application/problem+json"
            # Another service name is the application's own business, on its own routes.
            assert (await client.get("/own/2", headers={"Host": "own.example"})).status == 200
        assert told == ["its start", "its end"]
        assert repr(koo.parts.store) == "<SqlStore closed>"

    asyncio.run(main())


def test_koos_routes_and_their_access_rules_are_the_same_in_a_mounted_application(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            app = FastAPI()
            mount(app, platform(tmp_path, claude(fake)), prefix="/koo", hosts=["own.example"])
            async with served(app) as client:
                assert (await client.get("/koo/monitoring/health")).body["overall_health"] == "healthy"
                asked = {"service": "claude", "prompt": "Hello?"}
                assert (await client.post("/koo/ai/query", json=asked)).status == 200
                wrong = await client.post("/koo/ai/query", json={"service": "claude", "prompt": 1})
                assert (wrong.status, wrong.body["kind"]) == (422, "invalid_request")
                evil = {"Origin": "https://evil.example"}
                reset = "/koo/ai/services/claude/reset-errors"
                assert (await client.post(reset, headers=evil)).status == 403
                assert (await client.post(reset, headers={"Host": "evil.example"})).status == 403
                assert (await client.post(reset, headers={"Host": "own.example"})).status == 200
                assert (await client.get("/livez")).status == 200
                described = (await client.get("/openapi.json")).body["paths"]["/koo/ai/query"]["post"]
                assert list(described["responses"]["422"]["content"]) == ["application/problem+json"]

    asyncio.run(main())


def test_an_application_may_do_its_own_access_checks(tmp_path: Path) -> None:
    async def main() -> None:
        app = FastAPI()
        mount(app, platform(tmp_path), protect=False)
        async with served(app) as client:
            headers = {"Host": "own.example", "Origin": "https://other.example"}
            path = "/api/v1/monitoring/database/reset-circuit-breaker"
            assert (await client.post(path, headers=headers)).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("make", [FastAPI, Starlette])
def test_in_a_mounted_application_koos_routes_have_request_ids_and_the_other_routes_do_not(
    make: type[Starlette], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The id in a problem leads to the log lines of the failure."""
    caplog.set_level(logging.INFO, "koo")

    async def main() -> None:
        async with FakeAnthropic(default=error(500, "api_error")) as fake:
            app = make(routes=[Route("/own/{number:int}", own_route)])
            app.state.name = "shop"
            koo = platform(tmp_path, claude(fake))
            mount(app, koo)
            async with served(app) as client:
                query = {"service": "claude", "prompt": "Hi"}
                failed = await client.post("/api/v1/ai/query", json=query)
                name = failed.headers["X-Request-ID"]
                assert failed.status == 502 and failed.body["request_id"] == name != ""
                (line,) = [one for one in caplog.records if one.name == "koo" and "query failed" in one.msg]
                assert getattr(line, "request_id", "") == name and f"[request {name}]" in line.getMessage()

                given = {"X-Request-ID": "mine-1"}
                assert (await client.get("/livez", headers=given)).headers["X-Request-ID"] == "mine-1"
                evil = {"Origin": "https://evil.example", "X-Request-ID": "mine-2"}
                denied = await client.post("/api/v1/ai/services/reset-all-errors", headers=evil)
                assert (denied.status, denied.body["request_id"]) == (403, "mine-2")
                (refusal,) = [one for one in caplog.records if one.name == "koo.audit"]
                assert getattr(refusal, "request_id", "") == "mine-2"

                assert "X-Request-ID" not in (await client.get("/own/2", headers=given)).headers
                assert request_id.get() == ""

    asyncio.run(main())


# ── Starlette's own application ───────────────────────────────────────────────────────────────────────────────────────


async def own_route(request: Request) -> Response:
    if request.path_params["number"] == 1:
        raise DatabaseUnavailable("database", "its breaker is open", 2.5)
    return PlainTextResponse(f"{request.method} {request.app.state.name}")


async def everything_else(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(f"its own {scope['path']}", 404)(scope, receive, send)


def starlette_app(*routes: BaseRoute) -> Starlette:
    app = Starlette(routes=[Route("/own/{number:int}", own_route), *routes])
    app.state.name = "shop"
    return app


def test_koos_routes_are_the_same_in_a_plain_starlette_application(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            app = starlette_app()
            koo = platform(tmp_path, claude(fake))
            mount(app, koo, prefix="/koo")
            async with served(app) as client:
                assert koo.database.last_look is not None, "the platform opens before the first request"
                for path in ("/koo/monitoring/health", "/livez", "/readyz", "/metrics", "/dashboard/"):
                    assert (await client.get(path)).status == 200, path
                assert (await client.ask("HEAD", "/livez")).status == 200
                answer = await client.post("/koo/ai/query", json={"service": "claude", "prompt": "Hello?"})
                assert (answer.status, answer.body["service"]) == (200, "claude")
                unknown = await client.get("/koo/ai/services/nobody/health")
                assert (unknown.status, unknown.headers["Content-Type"]) == (404, "application/problem+json")
                assert (await client.ask("DELETE", "/livez")).status == 405
                reset = "/koo/ai/services/claude/reset-errors"
                assert (await client.post(reset, headers={"Host": "evil.example"})).status == 403
                assert (await client.post(reset)).status == 200
            assert repr(koo.parts.store) == "<SqlStore closed>"

    asyncio.run(main())


def test_a_plain_starlette_applications_routes_are_unchanged(tmp_path: Path) -> None:
    async def main() -> None:
        app = starlette_app(Route("/metrics", lambda request: PlainTextResponse("its metrics")))
        mount(app, platform(tmp_path))
        async with served(app) as client:
            assert (await client.get("/own/2")).text == "GET shop"
            assert (await client.get("/metrics")).text == "its metrics"
            assert (await client.get("/nowhere")).text == "Not Found"
            assert (await client.get("/openapi.json")).text == "Not Found", "the application has none"
            unavailable = await client.get("/own/1")
            assert (unavailable.status, unavailable.headers["Retry-After"]) == (503, "3")
            assert unavailable.headers["Content-Type"] == "application/problem+json"

    asyncio.run(main())


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
def test_koos_metrics_move_out_of_the_way_of_the_applications_own(
    tmp_path: Path, framework: type[Starlette]
) -> None:
    """The first route with a path gets the request, so one of the two would silently be lost."""

    async def main() -> None:
        app = framework()
        mount(app, platform(tmp_path, token="t" * 16), metrics="/koo/metrics")
        app.router.routes.append(Route("/metrics", lambda request: PlainTextResponse("its own metrics")))
        async with served(app) as client:
            assert (await client.get("/metrics")).text == "its own metrics"
            assert (await client.get("/koo/metrics")).status == 401
            allowed = {"Authorization": f"Bearer {'t' * 16}"}
            assert "koo_build" in (await client.get("/koo/metrics", headers=allowed)).text

    asyncio.run(main())


def test_koos_metrics_can_be_left_out(tmp_path: Path) -> None:
    async def main() -> None:
        app = FastAPI()
        mount(app, platform(tmp_path), metrics=None)
        async with served(app) as client:
            assert (await client.get("/metrics")).status == 404

    asyncio.run(main())


def test_a_mount_at_a_starlette_applications_root_does_not_hide_koo(tmp_path: Path) -> None:
    async def main() -> None:
        app = starlette_app(Mount("/", app=everything_else))
        mount(app, platform(tmp_path))
        async with served(app) as client:
            assert (await client.get("/livez")).status == 200
            assert (await client.get("/api/v1/monitoring/health")).status == 200
            assert (await client.get("/nowhere")).text == "its own /nowhere"

    asyncio.run(main())


# ── tests of an application ───────────────────────────────────────────────────────────────────────────────────────────

HEALTH = "/api/v1/monitoring/health"


def test_the_response_to_a_refused_test_client_says_why(tmp_path: Path) -> None:
    app = FastAPI()
    mount(app, platform(tmp_path))
    with TestClient(app) as client:
        refused = client.get(HEALTH)
        assert refused.status_code == 403
        assert refused.json()["detail"].endswith(
            'base_url="http://localhost")) or allow the name (hosts=["testserver"])'
        )
        assert (
            client.get(HEALTH, headers={"Host": "evil.example"})
            .json()["detail"]
            .endswith("KOO_URL to its address")
        )
    with TestClient(app, base_url="http://localhost") as client:
        assert 'client=("127.0.0.1", 50000)' in client.get(HEALTH).json()["detail"]
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        assert client.get(HEALTH).status_code == 200


@pytest.mark.parametrize("kind", [FastAPI, Starlette, None])
def test_a_test_clients_host_name_is_allowed_when_a_test_names_it(
    kind: type[Starlette] | None, tmp_path: Path
) -> None:
    koo = platform(tmp_path)
    if kind is None:
        app: Starlette = create_app(koo, hosts=["testserver"])
    else:
        app = kind()
        mount(app, koo, hosts=["testserver"])
    with TestClient(app) as client:
        assert client.get(HEALTH).status_code == 200
        assert client.post("/api/v1/ai/services/reset-all-errors").status_code == 200
