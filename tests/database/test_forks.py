"""A forked child that exits: the parent's connections, transactions and statements continue."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.database.conftest import Place

# Runs in a separate process: the child unwinds everything that it inherited, which must not include the test runner.
SCRIPT = """
import asyncio, os, sys
from sqlalchemy import text
from koo import Database

PID = text("SELECT pg_backend_pid()")
database = Database(sys.argv[1])


async def pid():
    async with database.session_scope() as session:
        return await session.scalar(PID)


WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
)


async def waits():
    async with database.session_scope() as session:
        return await session.scalar(WAITING)


async def in_child():
    assert database.get_pool_metrics()["pool_status"]["open_connections"] == 0
    mine = await pid()
    await database.close()
    return mine


def fork(theirs):
    child = os.fork()
    if child == 0:
        assert asyncio.run(in_child()) not in theirs
        print("child", flush=True)
        sys.exit(0)  # through every `finally` of the parent's
    return child


def between():
    with asyncio.Runner() as runner:
        before = runner.run(pid())
        assert os.waitpid(fork([before]), 0)[1] == 0
        assert runner.run(pid()) == before
        runner.run(database.close())


async def within():
    await database.health_check()
    held, freed = asyncio.Event(), asyncio.Event()

    async def hold():
        async with database.session_scope() as session:
            await session.execute(text("SELECT pg_advisory_xact_lock(1)"))
            held.set()
            await freed.wait()

    async def want():
        async with database.session_scope() as session:
            await session.execute(text("SELECT pg_advisory_xact_lock(1)"))

    holding, wanting = asyncio.create_task(hold()), None
    await held.wait()
    async with database.session_scope() as session:
        before = await session.scalar(PID)
        wanting = asyncio.create_task(want())
        while not await waits():
            await asyncio.sleep(0.01)
        child = fork([before])
        assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
        freed.set()
        await asyncio.gather(holding, wanting)
        assert await session.scalar(PID) == before
    assert (await database.health_check())["healthy"]
    assert database.get_pool_metrics()["errors"]["total"] == 0
    await database.close()


if sys.argv[2] == "between":
    between()
else:
    asyncio.run(within())
print("parent")
"""


@pytest.mark.parametrize("when", ["between", "within"])
def test_a_forked_child_that_exits_does_not_affect_its_parents_connections(pg: Place, when: str) -> None:
    """Forks between two event loops of the parent, and inside a scope while another scope's statement is running."""
    # The interpreter's warning about forking with threads is not the subject here.
    python = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", SCRIPT]
    ended = subprocess.run(
        [*python, pg.url, when],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=dict(os.environ),
    )
    assert (ended.stdout.split(), ended.returncode) == (["child", "parent"], 0), ended.stderr
    assert ended.stderr == ""
