"""A lost COMMIT with a marker combined with cancellations, COPY, nested functions and raw COMMITs."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any, Literal

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.on_commit import on_commit
from koo.errors import DatabaseError, Kind, NotCommitted
from koo.options import BreakerOptions
from koo.testing.polling import until
from koo.testing.proxy import CommitCut, FaultProxy
from tests.database.conftest import Place
from tests.database.support import ONE, assert_free, checked_out, notes, run
from tests.database.test_cancellation import cancelled_at
from tests.database.test_exactly_once import BURNED, KEYS, count, in_thread, insert, marked

Cut = Literal["before", "after"]
CUTS: tuple[Cut, ...] = ("before", "after")
PATIENT = BreakerOptions(failure_threshold=10_000, calls_min=10_000)
WAITS_LEAST = 2
"""COMMIT itself, and at least one wait for the outcome."""


class Writer:
    """A scope whose COMMIT is lost. Once `is_committing` is true, the test cancels the scope at one of its waits."""

    def __init__(self, database: Database, proxy: FaultProxy, when: CommitCut, *, inside: bool) -> None:
        self._database = database
        self._proxy = proxy
        self._when = when
        self._inside = inside
        self.is_committing = False

    def is_counted(self) -> bool:
        return self.is_committing

    async def write(self) -> None:
        try:
            async with self._database.session_scope() as session:
                await insert(session)
                self._proxy.cut_commit(self._when)
                self.is_committing = True
                if self._inside:
                    await session.commit()
        except NotCommitted:
            assert self._when == "before"


@pytest.mark.parametrize("inside", [False, True], ids=["at the end", "in the block"])
def test_a_caller_may_be_cancelled_at_every_wait_while_koo_finds_the_outcome(pg: Place, inside: bool) -> None:
    """Nothing is left behind, and the outcome does not change: the lookup continues to its end."""

    async def main() -> None:
        async with marked(pg, breaker=PATIENT) as (database, proxy):
            assert database.connections is not None
            asking = database.connections.outcomes
            for when, late in product(CUTS, (False, True)):
                step = 1
                while True:
                    writer = Writer(database, proxy, when, inside=inside)
                    cancelled = await cancelled_at(writer.write(), step, late, writer.is_counted)
                    await until(lambda: not asking._asking)
                    assert_free(database)
                    proxy.cut_commit(when, times=0)  # not used if it was cancelled before COMMIT was sent
                    kept = await notes(database)
                    assert kept == ([] if when == "before" else [1]) or cancelled
                    assert count(pg, KEYS) == len(kept)
                    await in_thread(pg, "DELETE FROM notes; DELETE FROM koo_markers")
                    if not cancelled:
                        break
                    step += 1
                assert step > WAITS_LEAST

    run(main)


def test_the_slot_in_the_pool_and_the_permit_are_returned_before_koo_finds_the_outcome(pg: Place) -> None:
    """Otherwise all callers of a pool could wait for a lookup that itself waits for one of its slots."""

    async def main() -> None:
        async with marked(pg, pool_size=1, max_overflow=0) as (database, proxy):
            writing = asyncio.create_task(write_and_lose(database, proxy))
            await until(lambda: proxy.cuts == 1)
            await until(lambda: database.pool_queue.used == 0)
            assert not writing.done() and checked_out(database) == 0
            proxy.accepts()
            await writing
            assert await notes(database) == [1]

    run(main)


async def write_and_lose(database: Database, proxy: FaultProxy) -> None:
    """Write a row, lose its COMMIT, and let no new connection be opened for now."""
    async with database.session_scope() as session:
        await insert(session)
        proxy.cut_commit("after")
        proxy.refuses()


async def write_while_the_table_goes(database: Database) -> None:
    async with database.session_scope() as session:
        await insert(session)
        assert database.connections is not None
        database.connections.markers.distrust("the table is gone")


def test_a_lookup_whose_caller_has_left_ends_before_the_database_is_closed(
    pg: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with marked(pg, cleanup_timeout_s=0.2) as (database, proxy):
            writing = asyncio.create_task(write_and_lose(database, proxy))
            await until(lambda: proxy.cuts == 1)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            closing = asyncio.create_task(database.close())
            proxy.accepts()
            await closing
            assert "caller was lost: it happened" in caplog.text

    run(main)


def test_a_scope_that_began_with_a_usable_table_does_not_commit_without_its_marker(pg: Place) -> None:
    """Another scope has since found that the table cannot be used."""

    async def main() -> None:
        async with marked(pg) as (database, _):
            with pytest.raises(DatabaseError, match="the table is gone") as caught:
                await write_while_the_table_goes(database)
            assert caught.value.kind is Kind.NOT_CONFIGURED
            assert await notes(database) == []
            assert_free(database)

    run(main)


async def copy(session: AsyncSession) -> None:
    """COPY with the driver's own methods, bypassing SQLAlchemy."""
    raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    if hasattr(raw, "copy_records_to_table"):
        await raw.copy_records_to_table("notes", records=[(1,)], columns=["n"])
    else:
        async with raw.cursor().copy("COPY notes (n) FROM STDIN") as rows:
            await rows.write_row((1,))


@pytest.mark.parametrize("when", CUTS)
def test_a_copy_happens_once_whenever_its_commit_is_lost(pg: Place, when: Cut) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            proxy.cut_commit(when)
            await database.transaction(copy)
            assert proxy.cuts == 1 and await notes(database) == [1]
            assert (count(pg, KEYS), count(pg, BURNED)) == (1, int(when == "before"))

    run(main)


@pytest.mark.parametrize("when", CUTS)
def test_nested_functions_savepoints_and_hooks_happen_once(pg: Place, when: Cut) -> None:
    async def main() -> None:
        async with marked(pg) as (database, proxy):
            seen: list[str] = []

            async def inner(session: AsyncSession) -> None:
                on_commit(session, lambda: seen.append("inner"))
                await insert(session, 2)

            async def outer(session: AsyncSession) -> None:
                on_commit(session, lambda: seen.append("outer"))
                await insert(session, 1)
                await database.transaction(inner)
                savepoint = await session.begin_nested()
                on_commit(session, lambda: seen.append("never"))
                await insert(session, 3)
                await savepoint.rollback()

            proxy.cut_commit(when)
            await database.transaction(outer)
            assert proxy.cuts == 1
            assert await notes(database) == [1, 2] and seen == ["outer", "inner"]

    run(main)


def test_a_commit_sent_as_a_statement_has_no_marker_and_succeeds(pg: Place) -> None:
    async def main() -> None:
        async with marked(pg) as (database, _):
            async with database.session_scope() as session:
                await insert(session, 1)
                await session.execute(text("COMMIT"))
            assert await notes(database) == [1] and count(pg, KEYS) == 0
            assert_free(database)

    run(main)


def test_a_revoked_privilege_rolls_back_and_raises_until_it_is_granted_again(pg: Place) -> None:
    """The privilege existed at koo's last check. The next check, and the table's alert, name the missing privilege."""

    async def main() -> None:
        async with marked(pg) as (database, _):
            await in_thread(
                pg,
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$BEGIN RAISE insufficient_privilege USING MESSAGE = 'no koo_markers'; END$$;"
                " CREATE TRIGGER refuse BEFORE INSERT ON koo_markers FOR EACH ROW EXECUTE FUNCTION refuse()",
            )
            with pytest.raises(DatabaseError, match="the marker was refused") as caught:
                async with database.session_scope() as session:
                    await insert(session)
            assert caught.value.kind is Kind.NOT_CONFIGURED
            assert "markers_unusable" in database.get_health()["conditions"]
            assert_free(database)
            await in_thread(pg, "DROP TRIGGER refuse ON koo_markers")
            opened = database.metrics.created
            async with database.session_scope() as session:
                await insert(session, 2)
            assert database.metrics.created == opened, (
                "the refused transaction was rolled back on its connection"
            )
            assert await notes(database) == [2]
            assert "markers_unusable" not in database.get_health()["conditions"]

    run(main)


def test_only_the_hanging_session_is_terminated_not_another_query_for_its_key(pg: Place) -> None:
    """A session is found by the key in its query text, and only that session is terminated."""

    async def main() -> None:
        async with marked(pg) as (database, _):
            assert database.connections is not None
            async with database.session_scope() as session:
                await session.execute(ONE)
                await database.connections.outcomes._end_session("tx:00000000-0000-7000-8000-000000000009")
                assert (await session.execute(ONE)).scalar_one() == 1

    run(main)
