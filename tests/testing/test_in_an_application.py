"""A world with the test client of an application: koo runs on the lifespan's loop, and nothing waits forever."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

import koo
from koo.residence import OpenElsewhere
from koo.testing import World
from koo.web import mount


def application() -> TestClient:
    app = FastAPI()
    mount(app)

    @app.get("/suggestions")
    async def get_suggestion() -> str:
        return (await koo.query_ai("claude", "Shoes?", max_tokens=50)).text

    return TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000))


async def count() -> int | None:
    async with koo.db_manager.session_scope() as session:
        one: int | None = await session.scalar(text("SELECT 1"))
        return one


def test_a_platform_used_before_moves_to_the_lifespans_loop_and_back() -> None:
    """Breakers and budgets keep their state, and the database is opened again."""
    with World() as world:
        world.claude.fails(529)
        with pytest.raises(koo.ExternalServiceError):
            koo.run(koo.query_ai("claude", "Shoes?", max_tokens=50))
        assert koo.run(count()) == 1 and world.claude.attempts > 0
        for text_ in ("Boots.", "Socks."):
            world.claude.answers(text_)
            world.clock.advance(minutes=3)
            with application() as client:
                assert client.get("/suggestions").json() == text_
                assert koo.run(count()) == 1
                health = client.get("/api/v1/monitoring/health").json()
                assert health["ai_services"]["services"]["claude"]["metrics"]["failed_requests"] > 0
            assert koo.run(koo.query_ai("claude", "Shoes?", max_tokens=50)).text == text_


def test_a_platform_with_a_running_call_does_not_move_to_another_loop() -> None:
    async def main(began: threading.Event, over: threading.Event) -> None:
        async with koo.db_manager.session_scope() as session:
            await session.execute(text("SELECT 1"))
            began.set()
            await asyncio.to_thread(over.wait)

    began, over = threading.Event(), threading.Event()
    with World() as world:
        world.run(world.open())
        thread = threading.Thread(target=lambda: koo.run(main(began, over)))
        thread.start()
        try:
            assert began.wait(60)
            with pytest.raises(OpenElsewhere, match=r"enter `with TestClient"), application():
                pass
        finally:
            over.set()
            thread.join()


def test_a_platform_open_on_the_tests_own_loop_raises_with_advice() -> None:
    """The test's loop is blocked while it waits for the client, so the platform cannot be closed on it."""

    async def main() -> None:
        async with World() as world:
            world.claude.answers("Boots.")
            with (
                pytest.raises(OpenElsewhere, match=r"use the fixture `koo_sync` in a plain `def` test"),
                application(),
            ):
                pass
            assert (await koo.query_ai("claude", "Shoes?", max_tokens=50)).text == "Boots."

    asyncio.run(main())


def test_time_can_be_skipped_while_the_tests_own_loop_is_blocked() -> None:
    """In whatever order the loops are moved, no other thread ever waits for this thread's loop."""

    async def main() -> None:
        world = World()
        world.begin()
        world.clock.monotonic()  # from here on the clock moves this loop too
        with application() as client:
            world.claude.answers("Boots.")
            for _ in range(20):
                world.clock.advance(minutes=3)
                assert client.get("/suggestions").json() == "Boots."
        world.end()

    asyncio.run(main())


# ── misspelt names ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_misspelt_name_raises_with_the_right_one() -> None:
    with World() as world:
        with pytest.raises(AttributeError, match=r"has no 'fail'; did you mean 'fails'\?"):
            world.claude.fail(529)  # type: ignore[attr-defined]
        with pytest.raises(
            AttributeError, match=r"has no service 'cluade'; it has .*; did you mean 'claude'\?"
        ):
            _ = world.cluade
        with pytest.raises(KeyError, match=r"did you mean 'claude'\?"):
            _ = world["cluade"]
        with pytest.raises(AttributeError, match=r"use the fixture `koo_postgres_url` together with `koo`"):
            _ = world.proxy
        with pytest.raises(TypeError, match=r"fails takes a status, as in fails\(529\), not 'down'"):
            world.claude.fails("down")  # type: ignore[arg-type]


def test_a_misspelt_setting_in_a_test_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KOO_PROT", "1")  # in the environment it may belong to another program
    with World(settings={"AI_SERVICES__CLAUDE__DAILY_BUDGET": "1"}):
        pass
    with (
        pytest.raises(koo.ConfigurationError, match=r"AI_SERVICES__CLAUDE__DAILY_BUDGT"),
        World(settings={"AI_SERVICES__CLAUDE__DAILY_BUDGT": "1"}),
    ):
        pass
