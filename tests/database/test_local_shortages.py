"""A shortage in this process is not the database's failure: it is named, judged neutral, and ends with the shortage."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Awaitable, Callable

import pytest

from koo.database.faults import ScopeStage, explain
from koo.errors import DatabaseUnavailable, Kind
from koo.options import RetryOptions
from koo.policies.verdict import NEUTRAL
from koo.shortages import NO_DESCRIPTOR, NO_THREAD
from koo.sqlstates import LOST
from tests.database.conftest import Place
from tests.database.support import ONE, opened
from tests.scarce import no_descriptors, no_threads


async def refused(work: Callable[[], Awaitable[object]]) -> DatabaseUnavailable:
    with pytest.raises(DatabaseUnavailable) as caught:
        await work()
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_process_out_of_descriptors_does_not_open_the_breaker(pg: Place, host: str) -> None:
    """Tested for both drivers, by address and by name: once the resolver lacks the descriptor, once the socket."""

    async def main() -> None:
        url = pg.url.replace(pg.server.host, host)
        async with opened(url, retry=RetryOptions(attempts_max=1)) as database:

            async def ask() -> object:
                async with database.session_scope() as session:
                    return (await session.execute(ONE)).scalar()

            database._open()  # loads the driver, which itself needs descriptors
            if host == "localhost":
                await ask()
                await database.connections.engine.dispose()  # type: ignore[union-attr]
            with no_descriptors():
                for _ in range(7):
                    error = await refused(ask)
                    assert (error.kind, NO_DESCRIPTOR) == (Kind.OUT_OF_RESOURCES, error.reason)
                look = await database.health_check()
            assert database.circuit_breaker_state.value != "circuit_open"
            assert look is not None
            assert await ask() == 1

    asyncio.run(main())


def test_sqlite_reports_that_no_descriptor_is_left_for_its_file(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url, retry=RetryOptions(attempts_max=1)) as database:

            async def ask() -> object:
                async with database.session_scope() as session:
                    return (await session.execute(ONE)).scalar()

            assert await ask() == 1
            await database.connections.engine.dispose()  # type: ignore[union-attr]
            with no_descriptors():
                error = await refused(ask)
            assert (error.kind, error.reason) == (Kind.OUT_OF_RESOURCES, NO_DESCRIPTOR)
            assert await ask() == 1
            await database.connections.engine.dispose()  # type: ignore[union-attr]
            with no_threads("Thread-"):
                error = await refused(ask)
            assert (error.kind, error.reason) == (Kind.OUT_OF_RESOURCES, NO_THREAD)
            assert await ask() == 1

    asyncio.run(main())


def test_sqlite_out_of_memory_is_a_local_shortage_and_a_missing_file_is_not() -> None:
    short, away = sqlite3.OperationalError("x"), sqlite3.OperationalError("unable to open database file")
    short.sqlite_errorcode, away.sqlite_errorcode = sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN
    assert explain(short).kind is Kind.OUT_OF_RESOURCES and explain(short).verdict is NEUTRAL
    assert explain(away).kind is Kind.NOT_FOUND


def test_a_socket_out_of_memory_during_commit_leaves_the_outcome_unknown() -> None:
    error = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert explain(error).kind is Kind.OUT_OF_RESOURCES
    assert explain(error, ScopeStage.COMMIT) is LOST and explain(error, lost=True) is LOST
