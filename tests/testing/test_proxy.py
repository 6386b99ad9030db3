"""The proxy that breaks connections: each fault does what it promises, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest

from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from koo.testing.proxy import FaultProxy
from koo.testing.proxy_messages import Messages, is_commit


@asynccontextmanager
async def echo() -> AsyncIterator[FaultProxy]:
    """A proxy for a server that echoes everything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: bytes) -> bytes:
    writer.write(word)
    async with asyncio.timeout(0.3):
        return await reader.read(100)


def test_the_proxy_forwards_data_in_both_directions() -> None:
    async def main() -> None:
        async with echo() as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            assert await say(reader, writer, b"hello") == b"hello"
            assert (proxy.connections, proxy.open_connections) == (1, 1)
            writer.close()

    asyncio.run(main())


def test_a_reset_reaches_both_ends() -> None:
    async def main() -> None:
        async with echo() as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            await say(reader, writer, b"hello")
            proxy.reset_all()
            with pytest.raises(ConnectionResetError):
                await reader.read(100)
            writer.close()

    asyncio.run(main())


def test_a_black_hole_is_silent_until_healed() -> None:
    async def main() -> None:
        async with echo() as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            await say(reader, writer, b"hello")
            proxy.black_hole()
            with pytest.raises(TimeoutError):
                await say(reader, writer, b"anybody?")
            proxy.heal()
            assert await reader.read(100) == b"anybody?"
            writer.close()

    asyncio.run(main())


def test_forgotten_connections_stay_silent_and_new_ones_work() -> None:
    async def main() -> None:
        async with echo() as proxy:
            old = await asyncio.open_connection(proxy.host, proxy.port)
            await say(*old, b"hello")
            proxy.forget()
            with pytest.raises(TimeoutError):
                await say(*old, b"anybody?")
            new = await asyncio.open_connection(proxy.host, proxy.port)
            assert await say(*new, b"hello") == b"hello"
            old[1].close()
            new[1].close()

    asyncio.run(main())


def test_the_proxy_refuses_and_accepts_again_on_the_same_port() -> None:
    async def main() -> None:
        async with echo() as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            await say(reader, writer, b"hello")
            port = proxy.port
            await proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(proxy.host, port)
            assert await say(reader, writer, b"still here") == b"still here"
            await proxy.accept()
            assert proxy.port == port
            again = await asyncio.open_connection(proxy.host, port)
            assert await say(*again, b"hello") == b"hello"
            writer.close()
            again[1].close()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize(("when", "rows"), [("before", "0"), ("after", "1"), ("hold", "0")])
def test_the_proxy_cuts_exactly_at_commit(
    postgres: PostgresServer, driver: str, when: str, rows: str
) -> None:
    name = postgres.create_database()
    postgres.sql("CREATE TABLE t (n int)", name)

    async def commit(port: int) -> None:
        url = f"postgresql://postgres:koo-test@127.0.0.1:{port}/{name}"
        if driver == "psycopg":
            async with await psycopg.AsyncConnection.connect(url) as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                await connection.commit()
        else:
            asyncpg_connection = await asyncpg.connect(url)
            try:
                async with asyncpg_connection.transaction():
                    await asyncpg_connection.execute("INSERT INTO t VALUES (1)")
            finally:
                asyncpg_connection.terminate()

    async def main() -> None:
        async with FaultProxy(postgres.host, postgres.port) as proxy:
            proxy.cut_commit(when)  # type: ignore[arg-type]
            with pytest.raises((psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                async with asyncio.timeout(0.5):
                    await commit(proxy.port)
            assert (proxy.commits, proxy.cuts) == (1, 1)
            assert postgres.sql("SELECT count(*) FROM t", name) == rows
            # Once only.
            await commit(proxy.port)
            assert (proxy.commits, proxy.cuts) == (2, 1)

    try:
        asyncio.run(main())
    finally:
        postgres.drop_database(name)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_proxy_counts_connections_that_are_logging_in(postgres18: PostgresServer, driver: str) -> None:
    async def main() -> None:
        async with FaultProxy(postgres18.host, postgres18.port) as proxy:
            url = f"postgresql://postgres:koo-test@127.0.0.1:{proxy.port}/postgres"
            proxy.black_hole()
            if driver == "psycopg":
                logins = [asyncio.create_task(psycopg.AsyncConnection.connect(url)) for _ in range(3)]
            else:
                logins = [asyncio.create_task(asyncpg.connect(url)) for _ in range(3)]
            await until(lambda: proxy.logging_in == 3)
            proxy.heal()
            connections = await asyncio.gather(*logins)
            assert (proxy.logging_in, proxy.most_logging_in, proxy.open_connections) == (0, 3, 3)
            for connection in connections:
                await connection.close()

    asyncio.run(main())


def test_a_commit_cut_while_it_is_forwarded_may_be_committed_or_not(postgres18: PostgresServer) -> None:
    """The client gets no reply, and the server keeps running: the client cannot know whether it was committed."""
    name = postgres18.create_database()
    postgres18.sql("CREATE TABLE t (n int)", name)

    async def main() -> None:
        async with FaultProxy(postgres18.host, postgres18.port) as proxy:
            proxy.cut_commit("at")
            url = f"postgresql://postgres:koo-test@127.0.0.1:{proxy.port}/{name}"
            with pytest.raises(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(url) as connection:
                    await connection.execute("INSERT INTO t VALUES (1)")
            assert (proxy.commits, proxy.cuts) == (1, 1)

    try:
        asyncio.run(main())
        assert postgres18.sql("SELECT count(*) FROM t", name) in {"0", "1"}
    finally:
        postgres18.drop_database(name)


def test_messages_are_found_in_pieces_of_any_size() -> None:
    startup = (8 + 5).to_bytes(4, "big") + (196608).to_bytes(4, "big") + b"user\0"
    ssl = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
    query = b"Q" + (4 + 7).to_bytes(4, "big") + b"COMMIT\0"
    sync = b"S" + (4).to_bytes(4, "big")
    parse = b"P" + (4 + 2 + 7 + 2).to_bytes(4, "big") + b"n\0" + b"commit\0" + b"\0\0"
    stream = ssl + startup + sync + query + parse
    for size in (1, 3, len(stream)):
        messages = Messages()
        found = [m for at in range(0, len(stream), size) for m in messages.feed(stream[at : at + size])]
        assert [kind for kind, _ in found] == [b"", b"", b"S", b"Q", b"P"]
        assert [is_commit(message) for message in found] == [False, False, False, True, True]


def test_statements_that_only_resemble_a_commit_are_not_cut() -> None:
    assert not is_commit((b"Q", b"SELECT 'COMMIT'\0"))
    assert not is_commit((b"D", b"COMMIT\0"))
    assert not is_commit((b"P", b"commit\0SELECT 1\0"))


@pytest.mark.parametrize("turns", range(20))
def test_the_proxy_ends_without_an_error_while_a_connection_is_closing(turns: int) -> None:
    reported: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        async with echo() as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            await say(reader, writer, b"hello")
            proxy.black_hole()
            writer.write(b"held up")
            await asyncio.sleep(0.01)
            writer.transport.abort()
            proxy.heal()
            for _ in range(turns):
                await asyncio.sleep(0)

    asyncio.run(main())
    assert reported == []


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (
            lambda proxy: proxy.cut_commit("befor"),
            "when is 'befor'; expected one of 'before', 'at', 'after', 'hold'",
        ),
        (lambda proxy: proxy.cut_commit("at", times=-1), "times is -1"),
        (
            lambda proxy: proxy.black_hole("clients"),
            "toward is 'clients'; expected one of 'client', 'server', 'both'",
        ),
        (lambda proxy: setattr(proxy, "toward", "clients"), "toward is 'clients'"),
        (lambda proxy: setattr(proxy, "delay_s", -1), "delay_s is -1; expected 0 or more"),
        (lambda proxy: setattr(proxy, "dely_s", 1), "FaultProxy has no 'dely_s'; did you mean 'delay_s'"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_fault_that_could_not_occur_raises(misuse: Callable[[Any], object], said: str) -> None:
    """Otherwise the connections would stay sound, and the test would pass."""
    with FaultProxy("127.0.0.1", 1) as proxy, pytest.raises((ValueError, AttributeError), match=said):
        misuse(proxy)
