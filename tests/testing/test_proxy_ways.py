"""The proxy's faults for any server, with and without an event loop in the test."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import pytest

from koo.testing import FaultProxy, wait_until
from koo.testing.providers import FakeAnthropic


@contextmanager
def parrot() -> Iterator[FaultProxy]:
    """A proxy for a server that echoes everything, without an event loop in the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        talks = [threading.Thread(target=_serve, args=(server,), daemon=True)]
        talks[0].start()
        with FaultProxy(*server.getsockname()) as proxy:
            yield proxy


def _serve(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_say_back, args=(connection,), daemon=True).start()


def _say_back(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(1000):
                connection.sendall(data)
        except OSError:
            pass


@contextmanager
def connected(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection((proxy.host, proxy.port), timeout=20) as client:
        yield client


def test_the_proxy_serves_a_test_without_an_event_loop() -> None:
    with parrot() as proxy:
        with connected(proxy) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
            assert (proxy.connections, proxy.open_connections) == (1, 1)
            proxy.refuses()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((proxy.host, proxy.port))
            client.sendall(b"still")
            assert client.recv(100) == b"still"
            proxy.reset_all()
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        proxy.accepts()
        with connected(proxy) as client:
            client.sendall(b"again")
            assert client.recv(100) == b"again"


def test_a_client_that_connects_right_after_accepts_is_not_refused() -> None:
    async def main() -> None:
        with parrot() as proxy:
            for _ in range(20):
                proxy.refuses()
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((proxy.host, proxy.port))
                proxy.accepts()
                with connected(proxy):
                    pass

    asyncio.run(main())


def test_the_proxy_must_be_started_before_use() -> None:
    with pytest.raises(RuntimeError, match="has not started"):
        FaultProxy("127.0.0.1", 1).refuses()


def test_one_direction_can_be_a_black_hole() -> None:
    with parrot() as proxy, connected(proxy) as client:
        proxy.black_hole("client")
        client.sendall(b"hello")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(20)
        proxy.heal()
        assert client.recv(100) == b"hello"


def test_a_connection_is_cut_after_a_number_of_bytes() -> None:
    with parrot() as proxy:
        proxy.toward, proxy.cut_after_bytes = "client", 7
        with connected(proxy) as client:
            client.sendall(b"hello you")
            came = b""
            while data := client.recv(100):
                came += data
            assert came == b"hello y"
        proxy.cut_after_bytes = None
        with connected(proxy) as client:
            client.sendall(b"hello you")
            assert client.recv(100) == b"hello you"


def test_after_a_cut_no_more_data_reaches_the_server() -> None:
    with parrot() as proxy:
        proxy.toward, proxy.cut_after_bytes = "server", 3
        with connected(proxy) as client:
            client.sendall(b"hello you")
            came = b""
            try:
                while data := client.recv(100):
                    came += data
            except ConnectionResetError:
                pass
            assert b"hello".startswith(came[:5]) and len(came) <= 3


def test_limited_bandwidth_is_a_steady_trickle() -> None:
    """The proxy forwards as many pieces as the bandwidth allows, and none of them early."""
    with parrot() as proxy:
        proxy.toward, proxy.bytes_per_s = "client", 1000.0
        with connected(proxy) as client:
            began = time.monotonic()
            client.sendall(b"x" * 100)
            sizes: list[int] = []
            while sum(sizes) < 100:
                sizes.append(len(client.recv(1000)))
            assert time.monotonic() - began >= 0.09, "a tenth of a second at this bandwidth"
            assert sizes[0] < 100


def test_jitter_is_added_to_the_delay_and_keeps_the_order() -> None:
    draws = iter([1.0, 0.0] * 50)

    async def main() -> None:
        async with await asyncio.start_server(_echo, "127.0.0.1", 0) as server:
            target = server.sockets[0].getsockname()
            async with FaultProxy(*target, draw=lambda: next(draws)) as proxy:
                reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
                proxy.toward, proxy.delay_s, proxy.jitter_s = "client", 0.02, 0.03
                began = time.monotonic()
                for word in (b"one ", b"two ", b"three"):
                    writer.write(word)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                assert await reader.readexactly(13) == b"one two three"
                assert time.monotonic() - began >= 0.049
                writer.close()

    asyncio.run(main())


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


def test_a_vendors_sdk_works_through_the_proxy() -> None:
    """The network can cut a response that the server has sent completely."""

    def ask(client: anthropic.Anthropic) -> str:
        said = client.messages.create(
            model="claude-sonnet-5-5", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
        )
        return str(said.content[0])

    with FakeAnthropic() as server, FaultProxy.before(server.url) as proxy:
        with anthropic.Anthropic(
            base_url=proxy.through(server.base_url), api_key="test-key", max_retries=0
        ) as client:
            assert "Paris." in ask(client)
            proxy.reset_all()
            proxy.toward, proxy.cut_after_bytes = "client", 100
            with pytest.raises(anthropic.APIConnectionError):
                ask(client)
        assert server.attempts == 2 and server.billed_usd > 0
        wait_until(lambda: proxy.open_connections == 0)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("postgresql+asyncpg://u:p@db.example/shop", ("db.example", 5432)),
        ("http://127.0.0.1:8901/v1", ("127.0.0.1", 8901)),
        ("https://ai.example/v1", ("ai.example", 443)),
    ],
)
def test_a_url_can_be_routed_through_the_proxy(url: str, target: tuple[str, int]) -> None:
    assert FaultProxy.before(url).target == target


def test_a_url_without_a_port_is_refused() -> None:
    with pytest.raises(ValueError, match="a host and a port"):
        FaultProxy.before("redis:///0")
