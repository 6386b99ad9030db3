"""The hold of a request that was never sent is released. The hold of any other request is booked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from asyncio import StreamReader, StreamWriter
from decimal import Decimal
from pathlib import Path

import pytest

from koo import Platform, PlatformOptions, Query, RetryOptions, ServiceOptions
from koo.errors import ExternalServiceError, Kind
from koo.http.connector import STALE_S_MAX
from tests.http.test_client import Talk, read_request, serving

ANSWER = (
    b'{"id":"1","model":"m","choices":[{"message":{"content":"ok"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1}}'
)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
BILL = (3 * Decimal(1000) + 1 * Decimal(1000)) / 1_000_000


def reset(writer: StreamWriter) -> None:
    """Close with a RST, like a host that no longer has the connection's state."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def options(home: Path, url: str) -> PlatformOptions:
    service = ServiceOptions(
        name="lab", kind="openai_compatible", model="m", base_url=f"{url}/v1", declared=True,
        api_key="k", input_price=Decimal(1000), output_price=Decimal(1000), daily_budget_usd=Decimal(1000),
        retry=RetryOptions(attempts_max=1),
    )  # fmt: skip
    return PlatformOptions(home=home, state_url="sqlite:///state.db", services=(service,))


async def spent(
    talk: Talk, home: Path, questions: int = 1
) -> tuple[Decimal, Decimal, list[ExternalServiceError]]:
    """The amounts booked and held after a number of queries to a server, and the errors of the queries."""
    errors = []
    async with serving(talk) as url, Platform(options(home, url)) as platform:
        for _ in range(questions):
            try:
                await platform.query(Query(service="lab", prompt="Hi", max_tokens=10))
            except ExternalServiceError as error:
                errors.append(error)
        budget = platform.service_health("lab")["rate_limits"]["daily_budget"]
        return Decimal(budget["spent"]), Decimal(budget["reserved"]), errors


@pytest.mark.parametrize("gently", [False, True], ids=["reset", "closed"])
def test_a_kept_connection_that_was_already_closed_is_not_a_failure(tmp_path: Path, gently: bool) -> None:
    """The server closes before the first byte of a response. It has received nothing, so the query is sent again.

    That uses up no retry, does not count for the breaker, and is billed once.
    """

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        if not gently:
            reset(writer)

    async def main() -> None:
        async with serving(talk) as url, Platform(options(tmp_path, url)) as platform:
            for _ in range(3):
                assert (await platform.query(Query(service="lab", prompt="Hi", max_tokens=10))).attempts == 1
            health = platform.service_health("lab")
            assert Decimal(health["rate_limits"]["daily_budget"]["spent"]) == 3 * BILL
            metrics = health["metrics"]
            assert (metrics["total_requests"], metrics["failed_requests"], metrics["retries"]) == (3, 0, 0)

    asyncio.run(main())


def test_after_a_restart_all_kept_connections_are_given_up(tmp_path: Path) -> None:
    """A restart closes every kept connection. A query that finds one of them closed must not try the next one."""
    together = 5
    arrived: list[StreamWriter] = []
    all_are_there = asyncio.Event()

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        await read_request(reader)
        arrived.append(writer)
        if len(arrived) == together:
            all_are_there.set()
        await all_are_there.wait()
        writer.write(OK)
        if len(arrived) <= together:
            await read_request(reader)
            reset(writer)

    async def main() -> None:
        async with serving(talk) as url, Platform(options(tmp_path, url)) as platform:
            query = Query(service="lab", prompt="Hi", max_tokens=10)
            await asyncio.gather(*(platform.query(query) for _ in range(together)))
            assert (await platform.query(query)).attempts == 1
            assert len(arrived) == together + 1

    asyncio.run(main())


def test_a_query_is_resent_only_once_after_a_closed_connection(tmp_path: Path) -> None:
    """If the new connection breaks too, the query may have been received: that is a failure, booked at its hold."""
    connections = 0

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        if connections == 1:
            writer.write(OK)
            await read_request(reader)
        reset(writer)

    booked, held, (error,) = asyncio.run(spent(talk, tmp_path, questions=2))
    assert connections == 2 and error.kind is Kind.CONNECTION
    assert booked > 2 * BILL and not held


@pytest.mark.parametrize("gently", [False, True], ids=["reset", "closed"])
def test_a_query_on_a_new_connection_that_breaks_may_be_billed(tmp_path: Path, gently: bool) -> None:
    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        await read_request(reader)
        if not gently:
            reset(writer)

    booked, held, (error,) = asyncio.run(spent(talk, tmp_path))
    assert error.kind is Kind.CONNECTION and booked > BILL and not held


def test_a_query_whose_response_has_begun_may_be_billed(tmp_path: Path) -> None:
    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        await writer.drain()

    booked, held, errors = asyncio.run(spent(talk, tmp_path, questions=2))
    assert len(errors) == 1 and booked > 2 * BILL and not held


def test_a_query_on_a_kept_connection_that_breaks_late_may_be_billed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies after seconds of work closes its connection in the same way."""
    assert STALE_S_MAX > 1
    monkeypatch.setattr("koo.http.connector.STALE_S_MAX", 0.05)

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        await asyncio.sleep(0.2)

    booked, _, errors = asyncio.run(spent(talk, tmp_path, questions=2))
    assert len(errors) == 1 and booked > 2 * BILL


@pytest.mark.parametrize("way", ["cancel", "deadline"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_query_that_is_cancelled_while_it_connects_costs_nothing(
    tmp_path: Path, way: str, streamed: bool
) -> None:
    """The port accepts no further connections, because its backlog is full."""

    async def main() -> tuple[str, str]:
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        callers = []
        for _ in range(8):
            caller = socket.socket()
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(full.getsockname())
            callers.append(caller)
        try:
            async with Platform(options(tmp_path, f"http://127.0.0.1:{full.getsockname()[1]}")) as platform:
                query = Query(service="lab", prompt="Hi", timeout_s=0.3 if way == "deadline" else None)
                stream = platform.stream(query)
                task = asyncio.ensure_future(anext(stream) if streamed else platform.query(query))
                if way == "cancel":
                    await asyncio.sleep(0.2)
                    task.cancel()
                with pytest.raises((asyncio.CancelledError, ExternalServiceError)):
                    await task
                budget = platform.service_health("lab")["rate_limits"]["daily_budget"]
                return budget["spent"], budget["reserved"]
        finally:
            for one in (full, *callers):
                one.close()

    assert asyncio.run(main()) == ("0", "0")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_query_that_is_cancelled_after_it_was_sent_is_booked_at_its_hold(
    tmp_path: Path, streamed: bool
) -> None:
    async def main() -> tuple[Decimal, str]:
        arrived = asyncio.Event()

        async def talk(reader: StreamReader, writer: StreamWriter) -> None:
            await read_request(reader)
            arrived.set()
            await reader.read()

        async with serving(talk) as url, Platform(options(tmp_path, url)) as platform:
            query = Query(service="lab", prompt="Hi", max_tokens=10)
            stream = platform.stream(query)
            task = asyncio.ensure_future(anext(stream) if streamed else platform.query(query))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            budget = platform.service_health("lab")["rate_limits"]["daily_budget"]
            return Decimal(budget["spent"]), budget["reserved"]

    booked, held = asyncio.run(main())
    assert booked == Decimal(2 + 256 + 10) / 1000 and held == "0"
