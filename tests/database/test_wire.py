"""Connections are opened and closed with TCP settings that detect a dead peer, and with the server's own timeouts."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import event, text

from koo.database.database import Database
from koo.database.drivers.psycopg import PromptConnection
from koo.database.drivers.wire import milliseconds
from koo.options import RetryOptions
from koo.testing.polling import until
from koo.testing.postgres import PASSWORD, PostgresServer
from tests.database.conftest import Place
from tests.database.support import ONE, opened, proxied, run, through

SETTINGS = text(
    "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings"
    " WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout')"
)


async def settings_of(database: Database) -> str | None:
    """`idle_in_transaction_session_timeout` and `statement_timeout`, in milliseconds."""
    async with database.session_scope() as session:
        found: str | None = await session.scalar(SETTINGS)
        return found


async def socket_of(database: Database) -> socket.socket:
    """A copy of the socket of a connection."""
    async with database.session_scope() as session:
        raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        fileno = raw.fileno() if hasattr(raw, "fileno") else raw._transport.get_extra_info("socket").fileno()
        return socket.socket(fileno=os.dup(fileno))


def tcp(wire: socket.socket, name: str) -> int:
    return wire.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))


def test_keepalives_and_the_user_timeout_are_set_to_detect_a_dead_peer(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            with await socket_of(database) as wire:
                assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                seen = [tcp(wire, name) for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")]
                assert seen == [30, 10, 3]
                assert tcp(wire, "TCP_USER_TIMEOUT") == 30_000

    run(main)


def test_closing_a_connection_ends_its_running_statement_before_freeing_memory(
    postgres16: PostgresServer,
) -> None:
    """The response and the close arrive in the same turn: if libpq's memory were freed now, it would still be read."""

    async def main() -> None:
        connection = await PromptConnection.connect_within(
            2.0, postgres16.url("psycopg", "postgres").replace("+psycopg", "")
        )
        asleep = asyncio.create_task(connection.execute("SELECT pg_sleep(0.05)"))
        await until(lambda: connection.pgconn.transaction_status == TransactionStatus.ACTIVE)
        select.select([connection.fileno()], [], [], 30)
        await asyncio.sleep(0)  # the selector reports the response
        await asyncio.sleep(0)  # its callback wakes the task, which runs after this one
        await connection.close()
        assert not connection.closed
        # Either the response or the shutdown came first. With freed memory the error would be "pointer is NULL".
        said = ""
        try:
            await asleep
        except psycopg.OperationalError as lost:
            said = str(lost)
        assert not said or "server closed the connection" in said
        assert connection.closed

    run(main)


def test_a_running_copy_ends_with_an_error_when_its_connection_is_closed(
    postgres16: PostgresServer,
) -> None:
    async def main() -> None:
        url = postgres16.url("psycopg", "postgres").replace("+psycopg", "")
        connection = await PromptConnection.connect_within(2.0, url)

        async def read() -> None:
            endless = "COPY (SELECT pg_sleep(60)) TO STDOUT"
            async with connection.cursor() as cursor, cursor.copy(endless) as copy:
                await copy.read()

        reading = asyncio.create_task(read())
        await until(lambda: connection.pgconn.transaction_status == TransactionStatus.ACTIVE)
        await connection.close()
        with pytest.raises(psycopg.OperationalError):
            await reading
        assert connection.closed

    run(main)


def test_an_abandoned_connect_closes_its_socket_immediately() -> None:
    """The socket does not stay open until the error's traceback, which keeps psycopg's frame alive, is collected."""

    async def main() -> None:
        came, left = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(8)
            came.set()
            await reader.read()
            left.set()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            connecting = asyncio.create_task(
                PromptConnection.connect_within(2.0, f"host=127.0.0.1 port={port} dbname=x sslmode=disable")
            )
            await came.wait()
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError) as kept:
                await connecting
            await until(left.is_set)
            assert kept.tb is not None

    run(main)


def test_both_can_be_configured_or_left_to_the_system(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url, keepalive_s=6.0, tcp_user_timeout_s=1.5) as database:
            with await socket_of(database) as wire:
                assert (tcp(wire, "TCP_KEEPIDLE"), tcp(wire, "TCP_KEEPINTVL")) == (6, 2)
                assert tcp(wire, "TCP_USER_TIMEOUT") == 1500
        async with opened(pg.url, keepalive_s=0.0, tcp_user_timeout_s=0.0) as database:
            with await socket_of(database) as wire:
                assert tcp(wire, "TCP_USER_TIMEOUT") == 0
                assert tcp(wire, "TCP_KEEPIDLE") != 30

    run(main)


def test_the_servers_timeouts_end_the_work_of_a_lost_process(any_pg: Place) -> None:
    async def main() -> None:
        async with opened(any_pg.url, scope_timeout_s=40.0, cleanup_timeout_s=1.5) as database:
            assert await settings_of(database) == "41500 41500"
        async with opened(any_pg.url, server_timeouts=False) as database:
            assert await settings_of(database) == "0 0"

    run(main)


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        ("ALTER ROLE {role} SET statement_timeout = '5s'", "41500 5000"),
        ("ALTER ROLE {role} SET statement_timeout = '5min'", "41500 41500"),
        ("ALTER ROLE {role} SET statement_timeout = 0", "41500 41500"),
        ("ALTER DATABASE {database} SET idle_in_transaction_session_timeout = 1500", "1500 41500"),
        (
            "ALTER DATABASE {database} SET statement_timeout = '1s';"
            " ALTER ROLE {role} IN DATABASE {database} SET statement_timeout = '2s'",
            "41500 2000",
        ),
    ],
)
def test_a_roles_own_shorter_timeout_applies_on_every_connection(
    any_pg: Place, given: str, holds: str
) -> None:
    async def main() -> None:
        async with opened(url, scope_timeout_s=40.0, cleanup_timeout_s=1.5) as database:
            assert await settings_of(database) == holds, "on the first connection, which queries them"
            async with database.session_scope():
                assert await settings_of(database) == holds, "and on the second connection"

    role = f"role_{os.urandom(4).hex()}"
    server = any_pg.server
    server.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    name = server.create_database()
    url = any_pg.url.replace("//postgres:", f"//{role}:")
    url = f"{url.rpartition('/')[0]}/{name}"
    server.sql(given.format(role=role, database=name))
    run(main)


@pytest.mark.parametrize(
    ("setting", "ms"),
    [
        ("5000", 5000.0), ("5s", 5000.0), ("1.5s", 1500.0), ("2min", 120_000.0), ("'1h'", 3_600_000.0),
        ("250 ms", 250.0), ("5000us", 5.0), ("1d", 86_400_000.0), ("0", 0.0), ("", 0.0), ("soon", 0.0),
    ],
)  # fmt: skip
def test_a_time_in_postgresqls_notation_is_parsed(setting: str, ms: float) -> None:
    assert milliseconds(setting) == pytest.approx(ms)


def test_an_applications_own_value_wins(pg: Place) -> None:
    async def main() -> None:
        if pg.driver == "psycopg":
            own: dict[str, Any] = {"options": "-c statement_timeout=7000 -c work_mem=1MB"}
        else:
            own = {"server_settings": {"statement_timeout": "7000", "work_mem": "1MB"}}
        database = Database(pg.url, engine_args={"connect_args": own})
        assert await settings_of(database) == "62000 7000"
        async with database.session_scope() as session:
            assert await session.scalar(text("SHOW work_mem")) == "1MB"
        await database.close()

    run(main)


def test_an_applications_own_connection_class_is_kept_with_koos_behaviour(pg: Place) -> None:
    class Own(asyncpg.Connection):  # type: ignore[misc]
        pass

    async def main() -> None:
        database = Database(pg.url, engine_args={"connect_args": {"connection_class": Own}})
        async with database.session_scope() as session:
            raw = (await (await session.connection()).get_raw_connection()).driver_connection
            assert isinstance(raw, Own)
        await database.close()

    if pg.driver == "asyncpg":
        run(main)


def test_after_a_pooler_refused_startup_parameters_they_are_not_sent_again(pg: Place) -> None:
    async def main() -> None:
        async with pooler(pg) as (port, refused):
            url = pg.url.replace(f":{pg.server.port}/", f":{port}/")
            async with opened(url, pool_size=3) as database:
                assert await settings_of(database) == "0 0"
                await asyncio.gather(*(settings_of(database) for _ in range(3)))
                assert len(refused) == 1
                assert database.guard.breaker.consecutive == 0

    run(main)


def test_concurrent_connects_are_each_retried_without_the_refused_parameters(pg: Place) -> None:
    async def main() -> None:
        async with pooler(pg, together=3) as (port, refused):
            url = pg.url.replace(f":{pg.server.port}/", f":{port}/")
            async with opened(url, pool_size=3, retry=RetryOptions(attempts_max=1)) as database:
                assert await asyncio.gather(*(settings_of(database) for _ in range(3))) == ["0 0"] * 3
                assert len(refused) == 3

    run(main)


@asynccontextmanager
async def pooler(pg: Place, *, together: int = 1) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that refuses `statement_timeout` at startup with PgBouncer's error, and forwards everything else.

    It refuses them only once `together` connections have requested it.
    """
    refused: list[bytes] = []
    all_asked = asyncio.Event()
    serving: set[asyncio.Task[Any]] = set()
    words = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: statement_timeout\0\0"

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b""
        while not body:
            head = await reader.readexactly(8)
            body = await reader.readexactly(int.from_bytes(head[:4], "big") - 8)
            if not body:
                writer.write(b"N")  # no encryption
        if b"statement_timeout" in body:
            refused.append(body)
            if len(refused) >= together:
                all_asked.set()
            await all_asked.wait()
            writer.write(b"E" + (len(words) + 4).to_bytes(4, "big") + words)
            writer.close()
            return
        server_reader, server_writer = await asyncio.open_connection(pg.server.host, pg.server.port)
        server_writer.write(head + body)
        await asyncio.gather(pass_on(reader, server_writer), pass_on(server_reader, writer))

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        serving.add(task)
        await asyncio.gather(task, return_exceptions=True)

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], refused
    finally:
        server.close()
        await asyncio.gather(*serving, return_exceptions=True)


def test_closing_a_connection_to_a_silent_server_is_bounded_however_it_is_closed(pg: Place) -> None:
    """A pool closes a surplus connection when a scope returns it, and all connections at its end."""

    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with opened(url, pool_size=1, max_overflow=1, cleanup_timeout_s=0.2) as database:
                async with database.session_scope() as kept:
                    await kept.execute(ONE)
                    surplus = database.session_scope()
                    await (await surplus.__aenter__()).execute(ONE)
                assert database.connections is not None
                pool = database.connections.engine.sync_engine.pool
                event.listen(pool, "close", lambda *_: proxy.black_hole())
                await surplus.__aexit__(None, None, None)
                assert database.metrics.closed == 1
                await database.close()
                assert database.metrics.closed == 2

    run(main)
