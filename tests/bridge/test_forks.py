"""Forks: the child forgets the parent's loops, calls and connections automatically; the parent keeps using them."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import koo
from koo import Database, Platform
from koo.deadlines import Alarm, Deadlines
from koo.options import DatabaseOptions
from koo.residence import FORKED
from koo.testing.postgres import Driver, PostgresServer
from koo.testing.providers import FakeAnthropic
from tests.bridge.test_platform_in_threads import closed, in_thread
from tests.platform.test_platform import QUESTION, options

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(work: Callable[[], object]) -> str:
    """Run `work` in a fork of this process. Returns its result or error as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = str(work())
        except BaseException:
            said = traceback.format_exc()
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


async def one() -> int:
    return 1


class Told(logging.Handler):
    """The logged messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def made(home: Path, **registered: Any) -> Platform:
    platform = Platform(options(home))
    platform.register_service("x", **registered)
    return platform


def run_here(platform: Platform) -> int:
    """Run it on a new loop."""
    return asyncio.run(platform.execute("x", one))


def run_bridged(platform: Platform) -> int:
    return koo.run(platform.execute("x", one))


def test_a_child_keeps_what_decorators_declared_before_the_fork(tmp_path: Path) -> None:
    """A server may load the application and then fork its workers."""
    platform = Platform(options(tmp_path))

    @platform.guarded("parcels")
    async def parcels() -> int:
        return 7

    assert in_child(lambda: asyncio.run(parcels())) == "7"


# ── the child's event loop ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("work", [run_here, run_bridged])
def test_a_child_of_a_running_loop_opens_koo_on_its_own_loop(
    tmp_path: Path, work: Callable[[Platform], int]
) -> None:
    platform = made(tmp_path)

    async def main() -> str:
        async with platform:
            said = in_child(lambda: work(platform))
            assert await platform.execute("x", one) == 1
        return said

    assert asyncio.run(main()) == "1"


@pytest.mark.parametrize("work", [run_here, run_bridged])
def test_a_child_of_a_thread_without_koos_loop_opens_koo_on_its_own_loop(
    tmp_path: Path, work: Callable[[Platform], int]
) -> None:
    platform = made(tmp_path)
    assert run_bridged(platform) == 1
    assert in_thread(lambda: in_child(lambda: work(platform))) == "1"
    assert run_bridged(platform) == 1
    closed(platform)


def test_a_child_of_a_child_opens_koo_on_its_own_loop(tmp_path: Path) -> None:
    platform = made(tmp_path)
    assert run_bridged(platform) == 1

    def child() -> str:
        return f"{run_bridged(platform)} {in_child(lambda: run_bridged(platform))}"

    assert in_child(child) == "1 1"
    closed(platform)


def test_a_fork_after_opening_is_logged_in_one_sentence_and_the_child_has_its_own_name(
    tmp_path: Path,
) -> None:
    platform = made(tmp_path)
    assert run_bridged(platform) == 1
    name = platform.parts.store.process

    def child() -> list[object]:
        told = Told()
        logging.getLogger("koo").addHandler(told)
        for _ in range(2):
            run_bridged(platform)
        return [told.lines.count(FORKED), platform.parts.store.process == name]

    assert in_child(child) == "[1, False]"
    closed(platform)


def test_a_fork_before_opening_works_and_logs_nothing(tmp_path: Path) -> None:
    """gunicorn --preload does this with an application that only imports koo."""
    platform = made(tmp_path)

    def child() -> list[str]:
        told = Told()
        logging.getLogger("koo").addHandler(told)
        run_bridged(platform)
        return told.lines

    assert in_child(child) == "[]"


_workers: Platform | None = None


def work_in_pool() -> int:
    assert _workers is not None
    return run_bridged(_workers) + run_here(_workers)


def test_a_process_pool_works_under_a_running_loop(tmp_path: Path) -> None:
    global _workers  # noqa: PLW0603 - what a forked worker inherits
    platform = _workers = made(tmp_path)

    async def main() -> list[int]:
        async with platform:
            assert await platform.execute("x", one) == 1
            with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
                loop = asyncio.get_running_loop()
                done = [loop.run_in_executor(pool, work_in_pool) for _ in range(4)]
                results = await asyncio.gather(*done)
            assert await platform.execute("x", one) == 1
            return results

    assert asyncio.run(main()) == [2] * 4
    _workers = None


def test_the_parents_deadlines_do_not_apply_in_the_child() -> None:
    registry = Deadlines()

    async def inside() -> str:
        with Alarm(registry, asyncio.get_running_loop().time() + 60):
            return "bounded"

    async def main() -> str:
        with Alarm(registry, asyncio.get_running_loop().time() + 60):
            return in_child(lambda: asyncio.run(inside()))

    assert asyncio.run(main()) == "bounded"


# ── the parent's running calls ────────────────────────────────────────────────────────────────────────────────────────


def test_the_parents_calls_occupy_no_slot_in_the_child(tmp_path: Path) -> None:
    platform = made(tmp_path, concurrency_max=1, slow_s=1, timeout_s=30)

    async def main() -> str:
        begun, ends = asyncio.Event(), asyncio.Event()

        async def hold() -> int:
            begun.set()
            await ends.wait()
            return 2

        async with platform:
            running = asyncio.create_task(platform.execute("x", hold))
            await begun.wait()
            waiting = asyncio.create_task(platform.execute("x", one))
            await asyncio.sleep(0)
            said = in_child(
                lambda: (run_bridged(platform), platform.services["x"].default_guard.breaker.running)
            )
            ends.set()
            assert (await running, await waiting) == (2, 1)
        return said

    assert asyncio.run(main()) == "(1, 0)"


def test_a_scope_of_the_parent_holds_no_connection_of_the_child(tmp_path: Path) -> None:
    database = Database(DatabaseOptions(url=f"sqlite:///{tmp_path / 'one.db'}", pool_size=1, max_overflow=0))

    async def ask() -> Any:
        async with database.session_scope(readonly=True) as session:
            return await session.scalar(text("SELECT 40 + 2"))

    async def main() -> str:
        async with database.session_scope(readonly=True) as session:
            assert await session.scalar(text("SELECT 1")) == 1
            said = in_child(lambda: (asyncio.run(ask()), koo.run(ask())))
            assert await session.scalar(text("SELECT 2")) == 2
        await database.close()
        return said

    assert asyncio.run(main()) == "(42, 42)"


# ── the parent's sockets ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_parents_server_connection_works_after_the_child_has_ended(
    driver: Driver, postgres18: PostgresServer
) -> None:
    database = Database(DatabaseOptions(url=postgres18.url(driver), pool_size=1, max_overflow=0))

    async def pid() -> Any:
        async with database.session_scope() as session:
            return await session.scalar(text("SELECT pg_backend_pid()"))

    def child() -> Any:
        mine = asyncio.run(pid())
        gc.collect()
        return mine

    async def main() -> None:
        before = await pid()
        assert int(in_child(child)) != before
        assert await pid() == before
        await database.close()

    asyncio.run(main())


def test_a_child_that_exits_normally_closes_nothing_of_its_parent(tmp_path: Path) -> None:
    """`multiprocessing` runs the exit handlers of threads and modules, which `os._exit` does not."""
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))

        async def main() -> None:
            async with platform:
                assert (await platform.query(QUESTION)).text
                context = multiprocessing.get_context("fork")
                queue = context.Queue()
                process = context.Process(target=lambda: queue.put(koo.run(platform.query(QUESTION)).text))
                process.start()
                assert await asyncio.to_thread(queue.get, True, 30)
                await asyncio.to_thread(process.join, 30)
                assert process.exitcode == 0
                assert (await platform.query(QUESTION)).text

        asyncio.run(main())
        assert len(server.queries) == 3 and server.connections == 2, "the parent's connection was used again"
