"""koo in somebody else's application: three lines, and nothing of his changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException

from koo.errors import DatabaseUnavailable
from koo.testing.providers import FakeAnthropic
from koo.web import mount
from tests.web.serving import claude, platform, served


def test_his_routes_errors_and_lifespan_stay_his(tmp_path: Path) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        told.append("his start")
        yield
        told.append("his end")

    async def main() -> None:
        app = FastAPI(lifespan=lifespan)
        koo = platform(tmp_path)
        mount(app, koo)

        @app.get("/his/{number}")
        async def his(number: int) -> dict[str, int]:
            if number == 0:
                raise HTTPException(418, "his own words")
            if number == 1:
                raise DatabaseUnavailable("database", "its breaker is open", 2.5)
            return {"number": number}

        async with served(app) as client:
            assert told == ["his start"]
            # Open before the first request.
            assert repr(koo.parts.store) == "<SqlStore open>" and koo.database.last_look is not None
            assert (await client.get("/his/2")).body == {"number": 2}
            assert (await client.get("/his/0")).body == {"detail": "his own words"}
            assert "detail" in (await client.get("/his/x")).body  # FastAPI's own 422
            assert (await client.get("/nowhere")).body == {"detail": "Not Found"}
            unavailable = await client.get("/his/1")
            assert (unavailable.status, unavailable.headers["Retry-After"]) == (503, "3")
            assert unavailable.headers["Content-Type"] == "application/problem+json"
            # another name is his business, on his routes
            assert (await client.get("/his/2", headers={"Host": "his.example"})).status == 200
        assert told == ["his start", "his end"]
        assert repr(koo.parts.store) == "<SqlStore closed>"

    asyncio.run(main())


def test_koos_routes_are_the_same_there_and_watched_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            app = FastAPI()
            mount(app, platform(tmp_path, claude(fake)), prefix="/koo", hosts=["his.example"])
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
                assert (await client.post(reset, headers={"Host": "his.example"})).status == 200
                assert (await client.get("/livez")).status == 200
                described = (await client.get("/openapi.json")).body["paths"]["/koo/ai/query"]["post"]
                assert list(described["responses"]["422"]["content"]) == ["application/problem+json"]

    asyncio.run(main())


def test_who_guards_his_own_doors_may_say_so(tmp_path: Path) -> None:
    async def main() -> None:
        app = FastAPI()
        mount(app, platform(tmp_path), protect=False)
        async with served(app) as client:
            headers = {"Host": "his.example", "Origin": "https://other.example"}
            path = "/api/v1/monitoring/database/reset-circuit-breaker"
            assert (await client.post(path, headers=headers)).status == 200

    asyncio.run(main())
