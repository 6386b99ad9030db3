"""A store that cannot be used says why, in time, and is used again as soon as it can be."""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import URL

from koo.errors import BudgetExceeded, ConfigurationError
from koo.storage.base import StoreUnavailable
from koo.storage.books import Put
from koo.storage.money import TOTAL_PICO_MAX, from_pico
from koo.storage.sql import SqliteBackend, read_url
from koo.storage.sql_ledger import FRESH_S, SKEW_S
from koo.storage.store import SqlStore
from koo.storage.worker import PAUSE_S_MIN
from koo.testing.postgres import PASSWORD, PostgresServer
from tests.storage.support import (
    LONG_AFTER_S,
    PATIENCE_S,
    Place,
    SetClock,
    bill,
    impatient,
    money,
    note_pauses,
    numbers,
    pico,
    request,
    store_threads,
    until,
    usd,
)

NOBODY = 65_534


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size`: what a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, to whom no file is read-only."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that `nobody` can look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Another process is in the middle of a long transaction."""
    connection = sqlite3.connect(place.file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


async def hold_and_settle(store: SqlStore, cost: str = "0.01") -> None:
    store.ledger.settle(await store.ledger.hold(request("0.05")), bill(cost))


# ── SQLite ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_is_made_with_its_folder_for_its_owner_only(sqlite: Place) -> None:
    async def main() -> None:
        async with SqlStore(sqlite.url):
            assert sqlite.file.stat().st_mode & 0o777 == 0o600
            assert {file.stat().st_mode & 0o777 for file in sqlite.file.parent.iterdir()} == {0o600}

    asyncio.run(main())


def test_a_relative_path_begins_at_home(tmp_path: Path) -> None:
    async def main() -> None:
        async with SqlStore("sqlite:///some/folders/koo-state.db", home=tmp_path):
            assert (tmp_path / "some" / "folders" / "koo-state.db").exists()

    asyncio.run(main())


def test_a_store_that_was_not_used_opened_nothing(sqlite: Place) -> None:
    store = SqlStore(sqlite.url)
    assert money(store.ledger.view("claude")) == usd("0")
    assert not store.is_open and not sqlite.file.exists()


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_read_only_file_is_told_and_used_when_it_is_writable_again(
    reachable: Path, folder_too: bool
) -> None:
    folder = reachable / "state"
    place = Place("sqlite", f"sqlite:///{folder}/koo.db")

    async def main() -> None:
        store = SqlStore(place.url)
        await hold_and_settle(store)
        await store.close()
        place.file.chmod(0o444)
        folder.chmod(0o555 if folder_too else 0o777)
        with as_nobody():
            with pytest.raises(
                StoreUnavailable, match=r"koo\.db\) cannot be used: the file .*(read-only|permissions)"
            ):
                await store.ledger.hold(request("0.05"))
            assert "koo.db" in str(store.trouble)
        folder.chmod(0o755)
        place.file.chmod(0o644)
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_full_disk_is_told_loses_nothing_and_ends_when_there_is_room(sqlite: Place) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url, linger_s=0.0)
        held = [await store.ledger.hold(request("0.001")) for _ in range(20)]
        with limited_files(8192):
            with pytest.raises(StoreUnavailable, match="full"):
                await store.ledger.hold(request("0.001"))
            for hold in held:
                store.ledger.settle(hold, bill("0.0005"))
            with pytest.raises(StoreUnavailable, match="full"):
                await store.ledger.flush()
            assert store.ledger.waiting >= len(held)
        await until(lambda: store.trouble is None)
        assert await numbers(store) == (Decimal("0.0005") * len(held), Decimal(0))
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "content", [b"this is no database, but it is long enough to be read as one " * 30, b"\0" * 5000]
)
def test_a_damaged_file_is_told_and_left_alone(sqlite: Place, content: bytes) -> None:
    async def main() -> None:
        sqlite.file.parent.mkdir()
        sqlite.file.write_bytes(content)
        store = SqlStore(sqlite.url)
        with pytest.raises(
            StoreUnavailable, match="is not an SQLite database: move it away, or restore a backup"
        ):
            await store.open()
        assert sqlite.file.read_bytes() == content
        sqlite.file.unlink()
        await until(lambda: store.trouble is None)
        await hold_and_settle(store)
        await store.close()

    asyncio.run(main())


def test_a_file_damaged_in_the_middle_is_told(sqlite: Place) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url)
        await asyncio.gather(*(hold_and_settle(store, "0.001") for _ in range(15)))
        await store.close()
        with sqlite.file.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 200_000)
        with pytest.raises(StoreUnavailable, match="the file is damaged: move it away"):
            await store.ledger.hold(request("0.05"))
        await store.close()

    asyncio.run(main())


def test_a_folder_in_the_place_of_the_file_is_told(sqlite: Place) -> None:
    async def main() -> None:
        sqlite.file.mkdir(parents=True)
        store = SqlStore(sqlite.url)
        with pytest.raises(StoreUnavailable, match="cannot be opened: look at its folder"):
            await store.open()
        await store.close()

    asyncio.run(main())


def test_a_file_in_the_place_of_the_folder_is_told(sqlite: Place) -> None:
    async def main() -> None:
        sqlite.file.parent.write_text("a file")
        store = SqlStore(sqlite.url)
        with pytest.raises(StoreUnavailable, match=r"cannot be used: (file exists|not a directory)"):
            await store.open()
        await store.close()

    asyncio.run(main())


def test_a_lock_that_another_process_keeps_is_told_in_time_and_the_loop_goes_on(sqlite: Place) -> None:
    async def main() -> None:
        store = impatient(sqlite.url, 0.5)
        await store.open()
        with locked(sqlite):
            began = time.monotonic()
            holding = asyncio.create_task(store.ledger.hold(request("0.05")))
            turns = 0
            while not holding.done():
                await asyncio.sleep(0.001)
                turns += 1
            with pytest.raises(StoreUnavailable, match="another process kept the file locked"):
                await holding
            assert time.monotonic() - began >= 0.4
            assert turns > 20
        await until(lambda: store.trouble is None)
        await hold_and_settle(store)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_one_who_only_reads_waits_for_no_lock(sqlite: Place) -> None:
    async def main() -> None:
        store = impatient(sqlite.url, 0.5)
        await store.ledger.hold(request("0.05"))
        with locked(sqlite):
            await store.ledger.refresh()
            assert await store.entries.of_day(0) == []
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


def test_two_processes_that_make_the_file_at_the_same_moment_use_one_file(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with SqlStore(sqlite.url) as first:
            await hold_and_settle(first)
            await first.ledger.flush()
            identity, looked = SqliteBackend._identity, []

            def not_there_yet(backend: SqliteBackend) -> tuple[int, int] | None:
                looked.append(backend)
                return None if len(looked) == 1 else identity(backend)

            monkeypatch.setattr(SqliteBackend, "_identity", not_there_yet)
            async with SqlStore(sqlite.url) as second:
                assert await numbers(second) == usd("0.01")

    asyncio.run(main())


def test_nobody_waits_longer_than_the_stores_timeout_whatever_the_database_does(sqlite: Place) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url)
        await store.open()
        gate = threading.Event()
        blocking = asyncio.create_task(store.executor.run(lambda tx: gate.wait()))
        await asyncio.sleep(0)
        store.executor.timeout_s = 0.1
        for waiting in (store.ledger.hold(request("0.05")), store.ledger.refresh(), store.ledger.sweep()):
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.1 s"):
                await waiting
        store.executor.timeout_s = PATIENCE_S
        gate.set()
        await blocking
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0")
        await store.close()

    asyncio.run(main())


def test_a_loop_that_was_held_up_longer_than_the_timeout_blames_nobody(sqlite: Place) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url)
        await store.open()
        store.executor.timeout_s = 0.05
        holding = asyncio.create_task(store.ledger.hold(request("0.05")))
        await asyncio.sleep(0)
        time.sleep(1.0)  # Somebody's synchronous code: the answer lies there when the loop goes on.
        await holding
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


def test_a_short_lock_is_waited_for(sqlite: Place) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url)
        await store.open()
        with locked(sqlite):
            holding = asyncio.create_task(store.ledger.hold(request("0.05")))
            await asyncio.sleep(0.05)
            assert not holding.done()
        await holding
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


def test_a_file_that_is_removed_is_made_anew_and_not_written_where_nobody_sees_it(sqlite: Place) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url)
        await hold_and_settle(store)
        await store.ledger.flush()
        for file in sqlite.file.parent.iterdir():
            file.unlink()
        await hold_and_settle(store, "0.04")
        await store.ledger.flush()
        assert sqlite.sql("SELECT settled FROM koo_days") == [(pico("0.04"),)]
        await store.close()

    asyncio.run(main())


def test_waiting_for_everything_to_be_written_waits_also_for_what_is_being_written(sqlite: Place) -> None:
    async def main() -> None:
        store = SqlStore(sqlite.url, clock=SetClock())
        await store.open()
        with locked(sqlite):
            holding = asyncio.create_task(store.ledger.hold(request("0.05")))
            await until(lambda: store.ledger._batches == 1 and store.ledger.waiting == 0)
            holding.cancel()
            await asyncio.sleep(0)
            flushing = asyncio.create_task(store.ledger.flush())
            await asyncio.sleep(0.02)
            assert not flushing.done()
        await flushing
        assert await numbers(store) == usd("0")
        await store.close()

    asyncio.run(main())


def test_a_refusal_that_what_is_spent_makes_certain_waits_for_nothing(sqlite: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = impatient(sqlite.url, 0.3, clock=clock)
        store.ledger.settle(await store.ledger.hold(request("0.90")), bill("0.90"))
        await store.ledger.flush()
        await store.ledger.hold(request("0.05"))
        with locked(sqlite):
            with pytest.raises(BudgetExceeded):
                await store.ledger.hold(request("0.100001"))
            assert store.trouble is None
            # What is held may come back, what another process did is not known for ever, and another limit is another
            # question: these have to ask.
            for amount, limit, later in (
                ("0.10", "1.00", 0.0),
                ("0.10", "1.01", 0.0),
                ("0.20", "1.00", FRESH_S),
            ):
                clock.now += later
                with pytest.raises(StoreUnavailable):
                    await store.ledger.hold(request(amount, limit))
        await until(lambda: store.trouble is None)
        await store.close()

    asyncio.run(main())


def test_a_lease_is_not_over_for_a_machine_whose_clock_is_a_little_ahead(sqlite: Place) -> None:
    async def main() -> None:
        clock = SetClock()
        store = SqlStore(sqlite.url, clock=clock)
        await store.ledger.hold(request("0.05", lease_s=60))
        clock.now += 60 + SKEW_S - 0.5
        assert await store.ledger.sweep() == []
        clock.now += 1
        assert len(await store.ledger.sweep()) == 1
        await store.close()

    asyncio.run(main())


def test_what_does_not_fit_into_the_queue_is_dropped_told_and_booked_at_its_bound(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        monkeypatch.setattr("koo.storage.sql_ledger.WAITING_MAX", 3)
        clock = SetClock()
        store = SqlStore(sqlite.url, clock=clock, linger_s=30)
        holds = [await store.ledger.hold(request("0.05")) for _ in range(5)]
        for hold in holds:
            store.ledger.settle(hold, bill("0.01"))
        assert (store.ledger.waiting, store.ledger.dropped) == (3, 2)
        assert "3 bookings wait; 1 were dropped" in caplog.text
        assert await numbers(store) == usd("0.03", "0.10")
        clock.now += LONG_AFTER_S
        await store.ledger.sweep()
        assert await numbers(store) == usd("0.13")
        await store.close()

    asyncio.run(main())


def test_more_money_than_a_number_holds_is_the_largest_number(shared: Place) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        for _ in range(10):
            store.ledger.settle(await store.ledger.hold(request("0.01", limit=None)), bill("1000000"))
        assert await numbers(store) == (from_pico(TOTAL_PICO_MAX), Decimal(0))
        with pytest.raises(BudgetExceeded, match="what a day can hold does not cover"):
            await store.ledger.hold(request("0.01", limit=None))
        await store.close()

    asyncio.run(main())


# ── any database ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cancel_after", range(6))
def test_a_caller_who_leaves_while_it_waits_leaves_no_hold_behind(shared: Place, cancel_after: int) -> None:
    """Whether it leaves before its hold was taken up, while it is written, or in the moment it was given."""

    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        await store.open()
        holding = [asyncio.create_task(store.ledger.hold(request("0.01"))) for _ in range(20)]
        for _ in range(cancel_after):
            await asyncio.sleep(0)
        if cancel_after == 5:
            await asyncio.wait(holding, return_when=asyncio.FIRST_COMPLETED)
        for task in holding:
            task.cancel()
        given = [
            held
            for held in await asyncio.gather(*holding, return_exceptions=True)
            if not isinstance(held, BaseException)
        ]
        assert await numbers(store) == (Decimal(0), len(given) * Decimal("0.01"))
        assert await store.quotas.used_today("claude") == len(given)
        await store.close()

    asyncio.run(main())


def test_a_caller_who_is_cancelled_in_the_turn_in_which_its_hold_is_given_leaves_none_behind(
    shared: Place,
) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        await store.open()
        gate = threading.Event()
        waiting = asyncio.create_task(store.executor.run(lambda tx: gate.wait()))
        first = asyncio.create_task(store.ledger.hold(request("0.01")))
        second = asyncio.create_task(store.ledger.hold(request("0.01")))
        await until(lambda: store.ledger.waiting == 2)
        answers = [act.answer for act in store.ledger._acts if isinstance(act, Put)]
        # Both are answered in one turn; the first one's answer cancels the second before that has taken its own.
        assert answers[0] is not None and answers[1] is not None
        answers[0].add_done_callback(lambda _: second.cancel())
        gate.set()
        await waiting
        with pytest.raises(asyncio.CancelledError):
            await second
        assert answers[1].result() is None
        store.ledger.release(await first)
        assert await numbers(store) == usd("0")
        assert await store.quotas.used_today("claude") == 1
        await store.close()

    asyncio.run(main())


def test_a_booking_that_the_store_does_not_take_keeps_no_other_from_being_written(
    shared: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        await store.open()
        good, bad = await store.ledger.hold(request("0.05")), await store.ledger.hold(request("0.04"))
        shared.sql("CREATE UNIQUE INDEX no_such_price ON koo_entries (price_version)")
        store.ledger.settle(good, bill("0.03"))
        store.ledger.settle(bad, bill("0.03"))
        other = await store.ledger.hold(request("0.01"))
        store.ledger.release(other)
        assert await numbers(store) == usd("0.03", "0.04")
        assert store.ledger.dropped == 1 and store.trouble is None
        assert "does not take a booking" in caplog.text
        await store.close()

    asyncio.run(main())


def test_odd_texts_are_kept_as_far_as_a_database_takes_them(shared: Place) -> None:
    async def main() -> None:
        store = SqlStore(shared.url, clock=SetClock())
        hold = await store.ledger.hold(request("0.05", tag="a\0b\ud800c" + "x" * 1000))
        store.ledger.settle(hold, bill("0.03"))
        assert await numbers(store) == usd("0.03")
        ((tag,),) = shared.sql("SELECT tag FROM koo_entries")
        assert tag.startswith("ab?cxxx") and len(tag) <= 256
        await store.close()

    asyncio.run(main())


def test_a_store_of_a_newer_koo_is_refused_with_what_to_do(shared: Place) -> None:
    async def main() -> None:
        store = SqlStore(shared.url)
        await store.open()
        await store.close()
        shared.sql("UPDATE koo_schema SET steps = 99")
        with pytest.raises(StoreUnavailable, match=r"written by a newer koo \(schema 99, .*upgrade koo"):
            await store.open()
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "url", ["", "data.db", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@host/db"]
)
def test_another_url_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(ConfigurationError, match="KOO_STATE_URL") as refused:
        SqlStore(url)
    assert "secret" not in str(refused.value)


def test_the_options_of_an_asyncpg_url_become_those_of_libpq() -> None:
    url = read_url("postgresql+asyncpg://u@h/d?ssl=require&prepared_statement_cache_size=0", Path())
    assert isinstance(url, URL)
    assert (url.drivername, dict(url.query)) == ("postgresql+psycopg", {"sslmode": "require"})


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["postgres16", "postgres18"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


def test_a_server_that_starts_later_is_used_as_soon_as_it_is_there(server: PostgresServer) -> None:
    async def main() -> None:
        url = server.url("psycopg", server.create_database())
        await asyncio.to_thread(server.kill)
        store = SqlStore(url)
        with pytest.raises(
            StoreUnavailable,
            match=rf"PostgreSQL at 127\.0\.0\.1:{server.port}/.*the server refuses connections",
        ) as told:
            await store.open()
        assert PASSWORD not in str(told.value)
        await asyncio.to_thread(server.start)
        await until(lambda: store.trouble is None)
        await hold_and_settle(store)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_server_that_was_restarted_between_two_calls_is_not_noticed(server: PostgresServer) -> None:
    async def main() -> None:
        store = SqlStore(server.url("asyncpg", server.create_database()))
        await hold_and_settle(store)
        await store.ledger.flush()
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await hold_and_settle(store)
        assert await numbers(store) == usd("0.02")
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


@pytest.mark.slow
def test_a_server_killed_under_load_loses_no_settlement_and_keeps_no_hold(server: PostgresServer) -> None:
    async def main() -> None:
        database = server.create_database()
        store = SqlStore(server.url("psycopg", database))
        told: list[str | None] = []
        store.watch(told.append)
        settled = unavailable = 0
        over = asyncio.Event()

        async def spend() -> None:
            nonlocal settled, unavailable
            while not over.is_set():
                try:
                    hold = await store.ledger.hold(request("0.001", "1000"))
                except StoreUnavailable:
                    unavailable += 1
                    await asyncio.sleep(0.01)
                    continue
                store.ledger.settle(hold, bill("0.0005"))
                settled += 1

        def reached(count: int) -> bool:
            return settled >= count

        spenders = [asyncio.create_task(spend()) for _ in range(20)]
        for _ in range(2):
            await until(functools.partial(reached, settled + 200))
            await asyncio.to_thread(server.kill)
            await until(lambda: unavailable > 0 and store.trouble is not None)
            await asyncio.to_thread(server.start)
            await until(lambda: store.trouble is None)
        over.set()
        await asyncio.gather(*spenders)
        assert await numbers(store) == (settled * Decimal("0.0005"), Decimal(0))
        assert [change is None for change in told[:4]] == [False, True, False, True]
        await store.close()

    asyncio.run(main())


def test_a_frozen_server_is_given_up_in_time_and_what_it_did_meanwhile_is_undone(
    server: PostgresServer,
) -> None:
    async def main() -> None:
        store = SqlStore(server.url("psycopg", server.create_database()))
        await hold_and_settle(store)
        await store.ledger.flush()
        store.executor.timeout_s = 1.0
        told: list[str | None] = []
        store.watch(told.append)
        server.pause()
        began = time.monotonic()
        holding = [asyncio.create_task(store.ledger.hold(request("0.05"))) for _ in range(10)]
        for result in await asyncio.gather(*holding, return_exceptions=True):
            assert isinstance(result, StoreUnavailable)
        assert time.monotonic() - began < 10
        # The first word of it: later ones tell what came of cutting the connection.
        assert "did not answer within 1 s" in str(told[0]) and None not in told
        assert store.trouble is not None
        server.resume()
        store.executor.timeout_s = PATIENCE_S
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_frozen_server_keeps_nobody_from_closing(server: PostgresServer) -> None:
    async def main() -> None:
        store = impatient(server.url("psycopg", server.create_database()), 2.0)
        await hold_and_settle(store)
        store.executor.timeout_s = 0.3
        server.pause()
        thread = store_threads()[-1]
        await store.close()
        assert not store.is_open
        await until(lambda: not thread.is_alive())
        server.resume()

    asyncio.run(main())


def test_a_server_that_becomes_read_only_is_told_also_to_one_who_waits_for_his_bookings(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = note_pauses(monkeypatch)

    async def main() -> None:
        database = server.create_database()
        store = SqlStore(server.url("psycopg", database), linger_s=30)
        hold = await store.ledger.hold(request("0.05"))
        server.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        store.ledger.settle(hold, bill("0.01"))
        with pytest.raises(StoreUnavailable, match="it is read-only"):
            await store.ledger.flush()
        told: list[str | None] = []
        store.watch(told.append)
        # It can be read. That, and three attempts to write, call it well to nobody.
        await store.ledger.refresh()
        await until(lambda: max(pauses, default=0.0) > 4 * PAUSE_S_MIN)
        assert "read-only" in str(store.trouble) and None not in told
        server.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = off")
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_row_that_another_session_keeps_locked_is_told(server: PostgresServer) -> None:
    async def main() -> None:
        database = server.create_database()
        store = impatient(server.url("psycopg", database), 2.0)
        await hold_and_settle(store)
        await store.ledger.flush()
        blocker = SqlStore(server.url("psycopg", database))
        await blocker.open()
        began, done = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def block(tx: object) -> None:
            tx.rows("SELECT * FROM koo_days FOR UPDATE")  # type: ignore[attr-defined]
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(done.wait(), loop).result(20)

        blocking = asyncio.create_task(blocker.executor.run(block))
        await began.wait()
        with pytest.raises(StoreUnavailable, match=r"kept a row locked|took too long"):
            await store.ledger.hold(request("0.05"))
        done.set()
        await blocking
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0.01")
        await store.close()
        await blocker.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"database": "nowhere"}, "the database does not exist"),
        ({"password": "hunter2"}, "the server refuses the password"),
        ({"host": "no-such-host.invalid"}, "the host name cannot be resolved"),
    ],
)
def test_what_is_wrong_with_the_url_is_told_without_its_password(
    change: dict[str, str], sentence: str
) -> None:
    from sqlalchemy import make_url

    with PostgresServer(18, auth="scram-sha-256") as server:
        url = make_url(server.url()).set(**change).render_as_string(hide_password=False)  # type: ignore[arg-type]

        async def main() -> None:
            store = SqlStore(url)
            with pytest.raises(StoreUnavailable, match=sentence) as told:
                await store.open()
            assert "hunter2" not in str(told.value) and PASSWORD not in str(told.value)
            await store.close()

        asyncio.run(main())


def test_a_user_who_may_not_make_tables_is_told(server: PostgresServer) -> None:
    async def main() -> None:
        database = server.create_database()
        server.sql("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN", database)
        server.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database)
        url = (
            server.url("psycopg", database)
            .replace("postgres:", "reader:", 1)
            .replace("postgresql+psycopg", "postgresql")
        )
        store = SqlStore(url)
        with pytest.raises(StoreUnavailable, match="may not create or write koo's tables"):
            await store.open()
        await store.close()

    asyncio.run(main())
