"""A world and the test client of an application: koo lives where the lifespan opened it, and nothing waits for ever."""

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


def test_what_a_test_used_before_moves_to_the_loop_of_the_lifespan_and_back() -> None:
    """With what koo knows: breakers, budgets, and a database that is opened anew."""
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


def test_what_is_under_way_is_not_cut_off_by_a_move() -> None:
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
            with pytest.raises(OpenElsewhere, match=r"begin with `with TestClient"), application():
                pass
        finally:
            over.set()
            thread.join()


def test_a_test_whose_own_loop_used_koo_before_learns_what_to_write() -> None:
    """Its loop stands still while it waits for the client, so nothing can be closed there."""

    async def main() -> None:
        async with World() as world:
            world.claude.answers("Boots.")
            with (
                pytest.raises(OpenElsewhere, match=r"take the fixture `koo_sync` in a plain `def` test"),
                application(),
            ):
                pass
            assert (await koo.query_ai("claude", "Shoes?", max_tokens=50)).text == "Boots."

    asyncio.run(main())


def test_time_is_skipped_while_the_loop_of_the_test_stands_still() -> None:
    """In whatever order the loops are told: the one of this thread is never waited for by another thread."""

    async def main() -> None:
        world = World()
        world.begin()
        world.clock.monotonic()  # from now on the clock moves this loop too
        with application() as client:
            world.claude.answers("Boots.")
            for _ in range(20):
                world.clock.advance(minutes=3)
                assert client.get("/suggestions").json() == "Boots."
        world.end()

    asyncio.run(main())


# ── slips of the pen ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_that_does_not_exist_is_answered_with_the_one_that_does() -> None:
    with World() as world:
        with pytest.raises(AttributeError, match=r"has no 'fail'; did you mean 'fails'\?"):
            world.claude.fail(529)  # type: ignore[attr-defined]
        with pytest.raises(
            AttributeError, match=r"has no service 'cluade'; it has .*; did you mean 'claude'\?"
        ):
            _ = world.cluade
        with pytest.raises(KeyError, match=r"did you mean 'claude'\?"):
            _ = world["cluade"]
        with pytest.raises(AttributeError, match=r"take the fixture `koo_postgres_url` beside `koo`"):
            _ = world.proxy
        with pytest.raises(TypeError, match=r"fails takes a status, as fails\(529\), and not 'down'"):
            world.claude.fails("down")  # type: ignore[arg-type]


def test_a_setting_that_does_not_exist_is_refused_where_a_test_writes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KOO_PROT", "1")  # of the environment it is another program's
    with World(settings={"AI_SERVICES__CLAUDE__DAILY_BUDGET": "1"}):
        pass
    with (
        pytest.raises(koo.ConfigurationError, match=r"AI_SERVICES__CLAUDE__DAILY_BUDGT"),
        World(settings={"AI_SERVICES__CLAUDE__DAILY_BUDGT": "1"}),
    ):
        pass
