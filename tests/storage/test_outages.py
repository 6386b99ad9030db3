"""An unreachable store reports why, in time, and is used again as soon as possible."""

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
from typing import Any

import pytest
from sqlalchemy import URL

from koo.errors import ConfigurationError
from koo.policies.money import TOTAL_PICO_MAX
from koo.policies.treasury import FREEZE_MS, Reply
from koo.storage.base import StoreUnavailable
from koo.storage.sql import SqliteBackend, read_url
from koo.storage.store import SqlStore
from koo.storage.worker import PAUSE_S_MIN
from koo.testing.polling import until
from koo.testing.postgres import PASSWORD, PostgresServer
from tests.storage.support import (
    CLAUDE,
    PATIENCE_S,
    Place,
    Refused,
    entries_of,
    hold,
    impatient,
    know,
    note_pauses,
    numbers,
    pico,
    seen,
    settle,
    spend,
    store_threads,
    usd,
)

NOBODY = 65_534


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`, as with a full disk or a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's rights, because root can write to read-only files."""
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
    """A folder that the user `nobody` can read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Let another process hold the file's lock in a long transaction."""
    connection = sqlite3.connect(place.file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def at(url: str, limit: str = "1.00", **options: Any) -> SqlStore:
    """A store with the budget of `claude`."""
    store = SqlStore(url, **options)
    know(store, limit)
    return store


# ── SQLite ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_and_its_folder_are_created_for_the_owner_only(sqlite: Place) -> None:
    async def main() -> None:
        async with at(sqlite.url):
            assert sqlite.file.stat().st_mode & 0o777 == 0o600
            assert {file.stat().st_mode & 0o777 for file in sqlite.file.parent.iterdir()} == {0o600}

    asyncio.run(main())


def test_a_relative_path_starts_at_koo_home(tmp_path: Path) -> None:
    async def main() -> None:
        async with SqlStore("sqlite:///some/folders/koo-state.db", home=tmp_path):
            assert (tmp_path / "some" / "folders" / "koo-state.db").exists()

    asyncio.run(main())


def test_a_store_opens_nothing_before_its_first_use(sqlite: Place) -> None:
    store = at(sqlite.url)
    assert seen(store) == usd("0")
    assert not store.is_open and not sqlite.file.exists()


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_read_only_file_is_reported_and_used_again_once_it_is_writable(
    reachable: Path, folder_too: bool
) -> None:
    folder = reachable / "state"
    place = Place("sqlite", f"sqlite:///{folder}/koo.db")

    async def main() -> None:
        store = at(place.url)
        await spend(store)
        await store.close()
        place.file.chmod(0o444)
        folder.chmod(0o555 if folder_too else 0o777)
        with as_nobody():
            with pytest.raises(
                StoreUnavailable, match=r"koo\.db\) cannot be used: the file .*(read-only|permissions)"
            ):
                await store.open()
            assert "koo.db" in str(store.trouble)
        folder.chmod(0o755)
        place.file.chmod(0o644)
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_full_disk_is_reported_and_loses_nothing(sqlite: Place) -> None:
    async def main() -> None:
        store = at(sqlite.url)
        held = [await hold(store, "0.001") for _ in range(20)]
        with limited_files(8192):
            with pytest.raises(StoreUnavailable, match="full"):
                await store.open()
            for given in held:
                settle(store, given, "0.0005")
            with pytest.raises(StoreUnavailable, match="full"):
                await store.ledger.beat()
        await until(lambda: store.trouble is None)
        assert await numbers(store) == (Decimal("0.0005") * len(held), Decimal(0))
        assert sqlite.sql("SELECT count(*) FROM koo_entries") == [(len(held),)]
        await store.close()

    asyncio.run(main())


def test_a_disk_with_too_little_room_for_a_booking_does_not_count_as_available(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If such a disk counted as available, the store would become unreachable and return many times a second, and
    waiting callers would be
    admitted each time.
    """
    pauses = note_pauses(monkeypatch)

    async def main() -> None:
        store = at(sqlite.url)
        await store.open()
        changes: list[str | None] = []
        store.watch(changes.append)
        running = asyncio.create_task(store.ledger.run())
        # Writes go to the write-ahead log first, and after this no space in it can be overwritten.
        assert sqlite.sql("PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
        with limited_files(65_536):
            for given in [await hold(store, "0") for _ in range(400)]:
                settle(store, given, "0")
            await until(lambda: store.trouble is not None)
            await until(lambda: len(pauses) > 4)
            assert None not in changes
        await until(lambda: store.trouble is None)
        await until(lambda: sqlite.sql("SELECT count(*) FROM koo_entries") == [(400,)])
        running.cancel()
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "content", [b"this is no database, but it is long enough to be read as one " * 30, b"\0" * 5000]
)
def test_a_damaged_file_is_reported_and_left_alone(sqlite: Place, content: bytes) -> None:
    async def main() -> None:
        sqlite.file.parent.mkdir()
        sqlite.file.write_bytes(content)
        store = at(sqlite.url)
        with pytest.raises(
            StoreUnavailable, match="is not an SQLite database: move it away, or restore a backup"
        ):
            await store.open()
        assert sqlite.file.read_bytes() == content
        sqlite.file.unlink()
        await until(lambda: store.trouble is None)
        await spend(store)
        await store.close()

    asyncio.run(main())


def test_a_file_with_damage_in_the_middle_is_reported(sqlite: Place) -> None:
    async def main() -> None:
        store = at(sqlite.url)
        await asyncio.gather(*(spend(store, "0.001") for _ in range(15)))
        await store.close()
        with sqlite.file.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 200_000)
        with pytest.raises(StoreUnavailable, match="the file is damaged: move it away"):
            await store.open()
        await store.close()

    asyncio.run(main())


def test_a_folder_in_place_of_the_file_is_reported(sqlite: Place) -> None:
    async def main() -> None:
        sqlite.file.mkdir(parents=True)
        store = at(sqlite.url)
        with pytest.raises(StoreUnavailable, match="cannot be opened: check its folder"):
            await store.open()
        await store.close()

    asyncio.run(main())


def test_a_file_in_place_of_the_folder_is_reported(sqlite: Place) -> None:
    async def main() -> None:
        sqlite.file.parent.write_text("a file")
        store = at(sqlite.url)
        with pytest.raises(StoreUnavailable, match=r"cannot be used: (file exists|not a directory)"):
            await store.open()
        await store.close()

    asyncio.run(main())


def test_another_processs_lock_is_reported_in_time_and_does_not_block_the_loop(sqlite: Place) -> None:
    async def main() -> None:
        store = impatient(sqlite.url, 0.5)
        await store.open()
        with locked(sqlite):
            began = time.monotonic()
            holding = asyncio.create_task(store.open())
            turns = 0
            while not holding.done():
                await asyncio.sleep(0.001)
                turns += 1
            with pytest.raises(StoreUnavailable, match="another process kept the file locked"):
                await holding
            assert time.monotonic() - began >= 0.4
            assert turns > 20
        await until(lambda: store.trouble is None)
        await spend(store)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_reader_does_not_wait_for_a_lock(sqlite: Place) -> None:
    async def main() -> None:
        store = impatient(sqlite.url, 0.5)
        await hold(store)
        with locked(sqlite):
            assert await entries_of(store, 0) == []
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


def test_two_processes_that_create_the_file_at_the_same_moment_share_it(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with at(sqlite.url) as first:
            await spend(first)
            await first.ledger.beat()
            identity, looked = SqliteBackend._identity, []

            def not_there_yet(backend: SqliteBackend) -> tuple[int, int] | None:
                looked.append(backend)
                return None if len(looked) == 1 else identity(backend)

            monkeypatch.setattr(SqliteBackend, "_identity", not_there_yet)
            async with at(sqlite.url) as second:
                assert await numbers(second) == usd("0.01")

    asyncio.run(main())


def test_no_caller_waits_longer_than_the_stores_timeout(sqlite: Place) -> None:
    async def main() -> None:
        store = at(sqlite.url)
        await store.open()
        gate = threading.Event()
        blocking = asyncio.create_task(store.executor.run(lambda tx: gate.wait()))
        await asyncio.sleep(0)
        store.executor.timeout_s = 0.1
        with pytest.raises(Refused):
            await hold(store)
        assert "did not answer within 0.1 s" in str(store.trouble)
        for waiting in (store.ledger.refresh(), entries_of(store, 0)):
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.1 s"):
                await waiting
        store.executor.timeout_s = PATIENCE_S
        gate.set()
        await blocking
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0")
        await store.close()

    asyncio.run(main())


def test_a_loop_blocked_for_longer_than_the_timeout_does_not_count_against_the_store(sqlite: Place) -> None:
    async def main() -> None:
        store = at(sqlite.url)
        await store.open()
        store.executor.timeout_s = 0.05
        holding = asyncio.create_task(hold(store))
        await asyncio.sleep(0)
        time.sleep(1.0)  # synchronous application code: the result has arrived when the loop continues
        await holding
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


def test_a_call_waits_for_a_short_lock(sqlite: Place) -> None:
    async def main() -> None:
        store = at(sqlite.url)
        await store.open()
        with locked(sqlite):
            holding = asyncio.create_task(hold(store))
            await asyncio.sleep(0.05)
            assert not holding.done()
        await holding
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


def remove(place: Place) -> None:
    for file in place.file.parent.iterdir():
        file.unlink()


def test_a_removed_file_is_created_again_with_this_processs_money(sqlite: Place) -> None:
    """Money that it spent is not spent twice. The loss is reported, and nothing is granted until other processes have
    had time to report.
    """

    async def main() -> None:
        clock = sqlite.clock()
        store = at(sqlite.url, clock=clock)
        know(store, None, "requests/claude")
        heard: list[Reply] = []
        store.ledger.heard = heard.append
        await spend(store, "0.70", "0.70")
        given = await hold(store, "0.10")
        budget = store.ledger.purses.budgets["requests/claude"]
        store.ledger.count(budget, budget.purse.key.period, 3)
        await store.ledger.refresh()
        remove(sqlite)
        await store.ledger.refresh()
        assert sqlite.booked() == (pico("0.80"), pico("0.70"))
        assert sqlite.booked("requests/claude") == (3, 3)
        (answer,) = heard
        assert {key.budget: amount for key, amount in answer.forgotten.items()} == {
            CLAUDE: pico("0.80"),
            "requests/claude": 3,
        }
        with pytest.raises(TimeoutError):
            await hold(store, "0.01", within_s=0.2)
        clock.now += FREEZE_MS / 1000
        with pytest.raises(Refused):
            await hold(store, "0.25")
        settle(store, given, "0.10")
        await hold(store, "0.20")
        await store.close()

    asyncio.run(main())


def test_an_older_copy_of_the_file_is_repaired_by_live_processes(sqlite: Place, tmp_path: Path) -> None:
    async def main() -> None:
        clock = sqlite.clock()
        one, two = at(sqlite.url, clock=clock), at(sqlite.url, clock=clock)
        await spend(one, "0.10")
        await spend(two, "0.10")
        await one.ledger.refresh()
        with sqlite3.connect(sqlite.file) as source, sqlite3.connect(tmp_path / "copy.db") as copy:
            source.backup(copy)
        source.close()
        copy.close()
        settle(one, await hold(one, "0.30"), "0.30")
        settle(two, await hold(two, "0.20"), "0.20")
        await one.ledger.refresh()
        await two.ledger.refresh()
        remove(sqlite)
        (tmp_path / "copy.db").replace(sqlite.file)
        for store in (one, two, one, two):
            await store.ledger.refresh()
        assert sqlite.booked() == (pico("0.70"), pico("0.70"))
        assert seen(one) == seen(two) == usd("0.70")
        clock.now += FREEZE_MS / 1000
        with pytest.raises(Refused):
            await hold(one, "0.35")
        await hold(two, "0.30")
        await one.close()
        await two.close()

    asyncio.run(main())


def test_an_amount_beyond_a_columns_range_becomes_the_largest_number(shared: Place) -> None:
    async def main() -> None:
        store = at(shared.url, "9300000")
        for _ in range(10):
            await spend(store, "1000000", "0")
        await store.ledger.refresh()
        assert shared.sql(f"SELECT booked FROM koo_treasuries WHERE budget = '{CLAUDE}'") == [
            (TOTAL_PICO_MAX,)
        ]
        assert store.trouble is None
        with pytest.raises(Refused):
            await hold(store, "0.01")
        await spend(store, "0", "0")
        await store.close()

    asyncio.run(main())


# ── any database ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_of_a_newer_koo_is_refused_with_advice(shared: Place) -> None:
    async def main() -> None:
        store = at(shared.url)
        await store.open()
        await store.close()
        shared.sql("UPDATE koo_schema SET steps = 99")
        with pytest.raises(StoreUnavailable, match=r"written by a newer koo \(schema 99; .*upgrade koo"):
            await store.open()
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "url", ["", "data.db", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@host/db"]
)
def test_an_unsupported_url_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(ConfigurationError, match="KOO_STATE_URL") as refused:
        SqlStore(url)
    assert "secret" not in str(refused.value)


def test_the_options_of_an_asyncpg_url_are_translated_for_libpq() -> None:
    url = read_url("postgresql+asyncpg://u@h/d?ssl=require&prepared_statement_cache_size=0", Path())
    assert isinstance(url, URL)
    assert (url.drivername, dict(url.query)) == ("postgresql+psycopg", {"sslmode": "require"})


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["postgres16", "postgres18"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


def test_a_server_that_starts_later_is_used_as_soon_as_it_is_available(server: PostgresServer) -> None:
    async def main() -> None:
        url = server.url("psycopg", server.create_database())
        await asyncio.to_thread(server.kill)
        store = at(url)
        with pytest.raises(
            StoreUnavailable,
            match=rf"PostgreSQL at 127\.0\.0\.1:{server.port}/.*the server refuses connections",
        ) as told:
            await store.open()
        assert PASSWORD not in str(told.value)
        await asyncio.to_thread(server.start)
        await until(lambda: store.trouble is None)
        await spend(store)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_server_restart_between_two_calls_causes_no_error(server: PostgresServer) -> None:
    async def main() -> None:
        store = at(server.url("asyncpg", server.create_database()))
        await spend(store)
        await store.ledger.beat()
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await spend(store)
        assert await numbers(store) == usd("0.02")
        assert store.trouble is None
        await store.close()

    asyncio.run(main())


@pytest.mark.slow
def test_a_server_killed_under_load_loses_no_settlement_and_no_money(server: PostgresServer) -> None:
    async def main() -> None:
        store = at(server.url("psycopg", server.create_database()), "1000")
        changes: list[str | None] = []
        store.watch(changes.append)
        settled = refused = 0
        over = asyncio.Event()

        async def call() -> None:
            nonlocal settled, refused
            while not over.is_set():
                try:
                    given = await hold(store, "0.001")
                except Refused:
                    refused += 1
                    await asyncio.sleep(0.01)
                    continue
                await asyncio.sleep(0)
                settle(store, given, "0.0005")
                settled += 1

        def reached(count: int) -> bool:
            return settled >= count

        def is_away(before: int) -> bool:
            return refused > before and store.trouble is not None

        running = asyncio.create_task(store.ledger.run())
        callers = [asyncio.create_task(call()) for _ in range(20)]
        for _ in range(2):
            before = refused
            await until(functools.partial(reached, settled + 200))
            await asyncio.to_thread(server.kill)
            await until(functools.partial(is_away, before))
            await asyncio.to_thread(server.start)
            await until(lambda: store.trouble is None)
        over.set()
        await asyncio.gather(*callers)
        running.cancel()
        assert await numbers(store) == (settled * Decimal("0.0005"), Decimal(0))
        assert [change is None for change in changes[:4]] == [False, True, False, True]
        await store.close()

    asyncio.run(main())


def test_a_frozen_server_is_abandoned_in_time_and_its_transaction_is_rolled_back(
    server: PostgresServer,
) -> None:
    async def main() -> None:
        store = at(server.url("psycopg", server.create_database()))
        await spend(store)
        await store.ledger.beat()
        store.executor.timeout_s = 1.0
        told: list[str | None] = []
        store.watch(told.append)
        server.pause()
        began = time.monotonic()
        holding = [asyncio.create_task(hold(store)) for _ in range(10)]
        for result in await asyncio.gather(*holding, return_exceptions=True):
            assert isinstance(result, Refused)
        assert time.monotonic() - began < 10
        # This is the first report; later ones are about the connection that was cut.
        assert "did not answer within 1 s" in str(told[0]) and None not in told
        assert store.trouble is not None
        server.resume()
        store.executor.timeout_s = PATIENCE_S
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_frozen_server_does_not_block_closing(server: PostgresServer) -> None:
    async def main() -> None:
        store = impatient(server.url("psycopg", server.create_database()), 2.0)
        await spend(store)
        store.executor.timeout_s = 0.3
        server.pause()
        thread = store_threads()[-1]
        await store.close()
        assert not store.is_open
        await until(lambda: not thread.is_alive())
        server.resume()

    asyncio.run(main())


def test_a_server_that_becomes_read_only_is_reported_to_waiting_callers_too(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = note_pauses(monkeypatch)

    async def main() -> None:
        database = server.create_database()
        store = at(server.url("psycopg", database))
        given = await hold(store)
        server.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        settle(store, given, "0.01")
        with pytest.raises(StoreUnavailable, match="it is read-only"):
            await store.ledger.beat()
        told: list[str | None] = []
        store.watch(told.append)
        # Reads succeed. Neither they nor three attempts to write make the store count as back.
        await until(lambda: max(pauses, default=0.0) > 3 * PAUSE_S_MIN)
        assert "read-only" in str(store.trouble) and None not in told
        server.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = off")
        await until(lambda: store.trouble is None)
        assert await numbers(store) == usd("0.01")
        await store.close()

    asyncio.run(main())


def test_a_row_locked_by_another_session_is_reported(server: PostgresServer) -> None:
    async def main() -> None:
        database = server.create_database()
        store = impatient(server.url("psycopg", database), 2.0)
        await spend(store)
        await store.ledger.beat()
        blocker = at(server.url("psycopg", database))
        await blocker.open()
        began, done = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def block(tx: object) -> None:
            tx.rows("SELECT * FROM koo_treasuries FOR UPDATE")  # type: ignore[attr-defined]
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(done.wait(), loop).result(20)

        blocking = asyncio.create_task(blocker.executor.run(block))
        await began.wait()
        with pytest.raises(StoreUnavailable, match=r"kept a row locked|took too long"):
            await store.ledger.refresh()
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
def test_an_error_about_the_url_omits_its_password(change: dict[str, str], sentence: str) -> None:
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


def test_a_user_without_the_right_to_create_tables_gets_an_error(server: PostgresServer) -> None:
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
