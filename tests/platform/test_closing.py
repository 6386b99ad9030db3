"""Calls that run when the platform closes: they end, nothing of them is started again, and their money is reported."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from koo.ai.types import Query
from koo.errors import AllServicesFailed, ExternalServiceError, Kind, ServiceFailed
from koo.lookups import LOOKUPS
from koo.options import DatabaseOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from koo.storage.ledger import Ledger
from koo.storage.store import SqlStore
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, Step, error, hang, stream

QUESTION = Query(service="claude", prompt="What is the capital of France?", max_tokens=100)
FAILS = error(500)


def options(home: Path, base_url: str) -> PlatformOptions:
    """Two services at one address, so that a call has a fallback."""

    def service(name: str) -> ServiceOptions:
        return ServiceOptions(
            name=name,
            kind="anthropic",
            model="claude-sonnet-5-5",
            api_key="test-key",
            base_url=base_url,
            declared=True,
            concurrency_max=1,
            retry=RetryOptions(base_s=0.5, cap_s=0.5),
        )

    return PlatformOptions(
        home=home,
        state_url=f"sqlite:///{home / 'state.db'}",
        database=DatabaseOptions(url=f"sqlite:///{home / 'user.db'}"),
        services=(service("claude"), service("twin")),
    )


def unsettled(home: Path) -> int:
    """The money that the store granted and that was neither reported as spent nor returned, in pico-dollars."""
    with closing(sqlite3.connect(home / "state.db")) as file:
        words = (
            "SELECT sum(granted - back + over_granted - spent) FROM koo_purses WHERE budget LIKE 'service/%'"
        )
        return int(file.execute(words).fetchone()[0] or 0)


def _ledger(koo: Platform) -> Ledger:
    ledger = koo.parts.store.ledger
    assert isinstance(ledger, Ledger)
    return ledger


def held(koo: Platform) -> int:
    """The money that calls hold in this process, in pico-dollars."""
    return sum(purse.held for purse in _ledger(koo).purses.purses.values())


def _is_open(koo: Platform) -> bool:
    store = koo.parts.store
    assert isinstance(store, SqlStore)
    return store.is_open


async def close_during(koo: Platform, running: asyncio.Future[object]) -> object:
    """Close while a call runs; returns its outcome. Afterwards nothing is held, unsettled or open."""
    home = koo.options.home
    await koo.close()
    assert unsettled(home) == 0
    async with asyncio.timeout(30):
        (came,) = await asyncio.gather(running, return_exceptions=True)
    assert held(koo) == 0 and unsettled(home) == 0
    assert "closed" in repr(koo.parts.http) and not _is_open(koo)
    return came


def ended(home: Path, ask: Callable[[Platform], Awaitable[object]], step: Step) -> object:
    """The outcome of a call if koo is closed after its first request, which meets `step`; no other request is made."""

    async def main() -> object:
        async with FakeAnthropic() as server:
            server.script(step)
            koo = Platform(options(home, server.base_url))
            await koo.open()
            running = asyncio.ensure_future(ask(koo))
            await until(lambda: bool(server.queries) and (step is not FAILS or held(koo) == 0))
            came = await close_during(koo, running)
            assert len(server.queries) == 1
            async with koo:
                assert (await koo.query(QUESTION)).text, "it continues after opening again"
            return came

    return asyncio.run(main())


def kinds(came: object) -> list[Kind]:
    """The kind of failure of each query in a list."""
    assert isinstance(came, list)
    return [one.kind for one in came if isinstance(one, ExternalServiceError)]


def test_a_call_cut_by_closing_does_not_continue_at_another_service(tmp_path: Path) -> None:
    came = ended(tmp_path, lambda koo: koo.query(replace(QUESTION, fallback=("twin",))), hang(billed=True))
    assert isinstance(came, AllServicesFailed)
    assert kinds(list(came.exceptions)) == [Kind.DRAINING] * 2


def test_the_rest_of_a_list_is_not_started_while_closing(tmp_path: Path) -> None:
    came = ended(tmp_path, lambda koo: koo.query_many([QUESTION] * 3), hang(billed=True))
    assert kinds(came) == [Kind.DRAINING] * 3


def test_a_call_waiting_for_a_slot_is_not_started_while_closing(tmp_path: Path) -> None:
    async def two(koo: Platform) -> list[object]:
        calls = [koo.query(QUESTION), koo.query(QUESTION)]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    assert kinds(ended(tmp_path, two, hang(billed=True))) == [Kind.DRAINING] * 2


def test_a_call_in_a_pause_is_not_repeated_after_closing(tmp_path: Path) -> None:
    """The call wakes when everything is closed, and must open neither the store nor a connection."""
    came = ended(tmp_path, lambda koo: koo.query(QUESTION), FAILS)
    assert isinstance(came, ExternalServiceError) and came.kind is Kind.DRAINING


def unanswered(home: Path, base_url: str, ask: Callable[[Platform], Awaitable[object]]) -> object:
    """The outcome of a call if koo is closed while it waits for a connection: nothing was sent, so it is free."""

    async def main() -> object:
        koo = Platform(options(home, base_url))
        await koo.open()
        running = asyncio.ensure_future(ask(koo))
        await until(lambda: held(koo) > 0)
        await asyncio.sleep(0)
        came = await close_during(koo, running)
        assert koo.parts.budget(koo.services["claude"]).spent_usd == 0
        return came

    return asyncio.run(main())


def test_a_call_waiting_for_a_connection_ends_immediately_and_costs_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        host, port = full.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(4):  # a full backlog accepts no handshake
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex((host, port))
            came = unanswered(tmp_path, f"http://{host}:{port}", lambda koo: koo.query(QUESTION))
    assert isinstance(came, ExternalServiceError) and came.kind is Kind.DRAINING


def test_a_call_waiting_for_a_name_lookup_ends_immediately_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp cancels its lookup. The call must report that koo is closing, not a cancellation that no one
    requested."""

    async def never(*_: object, **__: object) -> list[object]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    monkeypatch.setattr(LOOKUPS, "find", never)

    async def two(koo: Platform) -> list[object]:
        calls = [koo.query(QUESTION), koo.query(replace(QUESTION, service="twin"))]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    assert kinds(unanswered(tmp_path, "http://slow.example", two)) == [Kind.DRAINING] * 2


def test_a_stream_with_a_busy_reader_is_booked_and_gives_the_reason_of_its_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server:
            server.script(stream(["Pa", "ris"], stall_after=1))
            koo = Platform(options(tmp_path, server.base_url))
            chunks = koo.stream(QUESTION)
            assert (await anext(chunks)).text == "Pa"
            await koo.close()
            assert held(koo) == 0 == unsettled(tmp_path)
            assert koo.parts.budget(koo.services["claude"]).spent_usd >= server.billed_usd > 0
            with pytest.raises(ServiceFailed, match="koo was closed during the call") as failed:
                await anext(chunks)
            assert failed.value.kind is Kind.DRAINING and failed.value.partial_text == "Pa"

    asyncio.run(main())
