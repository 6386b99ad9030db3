"""koo without a single lasting loop: threads with `asyncio.run` each, loops used in turn, a server and its threads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import koo
from koo import Platform, ServiceTimeout
from koo.ai.types import Query
from koo.errors import Kind
from koo.policies.verdict import NEUTRAL, SUCCESS
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, answer, hang, stream
from tests.platform.test_platform import QUESTION, options


def in_thread(work: Callable[[], Any]) -> Any:
    """Run a function in a new thread. Returns its result or raises its error."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(30)


def closed(platform: Platform) -> None:
    koo.run(platform.close())


# ── the bridge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_four_threads_query_through_the_bridge_and_share_one_koo(tmp_path: Path) -> None:
    with FakeAnthropic(latency_s=0.1) as server:
        platform = Platform(options(tmp_path, server))
        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(lambda _: koo.run(platform.query(QUESTION)).text, range(8)))
        assert len(said) == 8 and all(said)
        health = platform.service_health("claude")
        assert health["metrics"]["total_requests"] == 8
        assert Decimal(health["rate_limits"]["daily_budget"]["spent"]) == server.billed_usd
        closed(platform)


def test_a_stream_is_a_plain_iterator_and_leaving_it_early_stops_the_provider(tmp_path: Path) -> None:
    with FakeAnthropic() as server:
        server.script(stream(["Par", "is."]), stream(["one ", "two "], stall_after=1))
        platform = Platform(options(tmp_path, server))
        assert "".join(str(chunk) for chunk in koo.run(platform.stream(QUESTION))) == "Paris."
        chunks = koo.run(platform.stream(QUESTION))
        assert str(next(chunks)) == "one "
        chunks.close()  # type: ignore[attr-defined]
        breaker = platform.services["claude"].default_guard.breaker
        ends = time.monotonic() + 20
        while not server.abandoned and time.monotonic() < ends:
            time.sleep(0.01)  # the server notices the end of the connection a moment later
        assert (server.abandoned, breaker.running) == (1, 0)
        closed(platform)


def test_a_transaction_runs_through_the_bridge(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))

    async def work() -> Any:
        async with platform.database.session_scope() as session:
            return (await session.execute(text("SELECT 40 + 2"))).scalar()

    with ThreadPoolExecutor(3) as pool:
        assert [pool.submit(koo.run, work()).result(30) for _ in range(3)] == [42, 42, 42]
    koo.run(platform.database.close())


def test_a_deadline_set_in_a_thread_is_the_callers_and_does_not_count_against_the_service(
    tmp_path: Path,
) -> None:
    with FakeAnthropic() as server:
        server.script(hang())
        platform = Platform(options(tmp_path, server))
        with koo.deadline(0.3), pytest.raises(TimeoutError) as caught:
            koo.run(platform.query(QUESTION))
        assert isinstance(caught.value, ServiceTimeout) is (
            getattr(caught.value, "kind", None) is Kind.DEADLINE
        )
        assert platform.service_health("claude")["health"]["failure_count"] == 0
        closed(platform)


# ── asyncio.run in each thread ────────────────────────────────────────────────────────────────────────────────────────


def test_four_threads_with_a_loop_each_all_get_answers(tmp_path: Path) -> None:
    with FakeAnthropic(latency_s=0.2) as server:
        platform = Platform(options(tmp_path, server))
        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(lambda _: asyncio.run(platform.query(QUESTION)).text, range(8)))
        assert (
            len(said) == 8
            and all(said)
            and platform.service_health("claude")["metrics"]["total_requests"] == 8
        )
        closed(platform)


def test_streams_batches_and_checks_of_such_threads_work_too(tmp_path: Path) -> None:
    with FakeAnthropic() as server:
        server.script(stream(["Par", "is."]), stream(["Par", "is."]))
        platform = Platform(options(tmp_path, server))

        async def listen() -> str:
            async with platform.stream(QUESTION) as pieces:
                said = "".join([str(piece) async for piece in pieces])
                assert pieces.answer is not None and pieces.answer.text == said
                return said

        async def leave() -> str:
            async with platform.stream(QUESTION) as pieces:
                return str(await anext(pieces))

        assert in_thread(lambda: asyncio.run(listen())) == "Paris."
        assert in_thread(lambda: asyncio.run(leave())) == "Par"
        both = in_thread(lambda: asyncio.run(platform.query_many([QUESTION, QUESTION])))
        assert [one.text != "" for one in both] == [True, True]
        assert in_thread(lambda: asyncio.run(platform.check_services()))["claude"]["healthy"]
        assert in_thread(lambda: asyncio.run(platform.spend(by=("service",))))["calls"] > 0
        assert in_thread(lambda: asyncio.run(platform.system_health()))["overall_health"] == "healthy"
        closed(platform)


def test_a_caller_that_is_cancelled_in_its_own_loop_is_cancelled_on_koos(tmp_path: Path) -> None:
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))
        koo.run(platform.query(QUESTION))
        server.script(hang(), answer())

        async def impatient() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await platform.query(QUESTION)

        in_thread(lambda: asyncio.run(impatient()))
        assert in_thread(lambda: asyncio.run(platform.query(QUESTION))).text
        assert server.abandoned == 1
        closed(platform)


# ── a server's loop, and its threads ──────────────────────────────────────────────────────────────────────────────────


def test_threads_of_a_running_server_use_its_loop_through_the_bridge_or_from_their_own(
    tmp_path: Path,
) -> None:
    """A `def` endpoint of FastAPI runs in a thread, while the application's loop runs in the main one."""
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))

        async def work() -> int:
            async with platform.database.session_scope() as session:
                return int((await session.execute(text("SELECT 42"))).scalar() or 0)

        async def main() -> None:
            async with platform:
                assert await work() == 42
                assert await asyncio.to_thread(lambda: koo.run(platform.query(QUESTION)).text)
                assert await asyncio.to_thread(lambda: asyncio.run(platform.query(QUESTION)).text)
                assert await asyncio.to_thread(lambda: koo.run(work())) == 42
                assert await asyncio.to_thread(_loop_of_the_bridge) is asyncio.get_running_loop()

        asyncio.run(main())
        assert in_thread(lambda: koo.run(platform.query(QUESTION)).text), "and afterwards koo's own loop"
        closed(platform)


def _loop_of_the_bridge() -> asyncio.AbstractEventLoop:
    async def here() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    return koo.run(here())


def test_a_call_that_cannot_cross_loops_is_refused_with_a_sentence_that_names_the_bridge(
    tmp_path: Path,
) -> None:
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))

        async def transaction() -> None:
            async with platform.database.session_scope():
                pass

        async def main() -> None:
            async with platform:
                await transaction()
                attempts: list[Callable[[], Coroutine[Any, Any, Any]]] = [transaction, platform.open]
                for attempt in attempts:
                    said = await asyncio.to_thread(_refusal, attempt)
                    assert "another event loop" in said and "koo.run(" in said and "\n" not in said

        asyncio.run(main())


def _refusal(attempt: Callable[[], Coroutine[Any, Any, Any]]) -> str:
    with pytest.raises(RuntimeError) as caught:
        asyncio.run(attempt())
    return str(caught.value)


def test_with_two_loops_used_in_turn_the_second_gets_an_error_with_the_code_to_write_and_the_first_still_works(
    tmp_path: Path,
) -> None:
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))
        first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
        try:
            assert first.run_until_complete(platform.query(QUESTION)).text
            with pytest.raises(RuntimeError, match=r"not closed: call `await platform\.close\(\)`"):
                second.run_until_complete(platform.query(QUESTION))
            assert first.run_until_complete(platform.query(QUESTION)).text
            first.run_until_complete(platform.close())
            assert second.run_until_complete(platform.query(QUESTION)).text, "closed there, it opens here"
            second.run_until_complete(platform.close())
        finally:
            first.close()
            second.close()


def test_two_threads_with_a_lasting_loop_each_get_answers_in_turn(tmp_path: Path) -> None:
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))
        with asyncio.Runner() as one, asyncio.Runner() as other:
            for _ in range(2):
                assert in_thread(lambda: one.run(platform.query(QUESTION)).text)
                assert in_thread(lambda: other.run(platform.query(QUESTION)).text)
        closed(platform)


def test_a_thread_with_a_lasting_loop_may_open_koo_on_it(tmp_path: Path) -> None:
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))

        async def main() -> None:
            async with platform:
                assert (await platform.query(QUESTION)).text
                async with platform.database.session_scope() as session:
                    await session.execute(text("SELECT 1"))

        in_thread(lambda: asyncio.run(main()))


# ── forks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_of_a_process_with_open_koo_opens_its_own(tmp_path: Path) -> None:
    """The child uses its own connections, as under gunicorn's `--preload`, and the parent's still work."""
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))
        try:
            assert koo.run(platform.query(QUESTION)).text
            before = server.connections
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.write(write, koo.run(platform.query(QUESTION), timeout_s=60).text.encode())
                    koo.run(platform.close(), timeout_s=60)
                finally:
                    os._exit(0)
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                assert pipe.read()
            os.waitpid(child, 0)
            assert server.connections > before
            assert koo.run(platform.query(QUESTION)).text
            assert len(server.queries) == 3
        finally:
            closed(platform)


def test_two_threads_that_are_first_at_the_same_time_create_one_koo(tmp_path: Path) -> None:
    with FakeAnthropic() as server:
        platform = Platform(options(tmp_path, server))
        gate = threading.Barrier(4)

        def ask(_: int) -> int:
            gate.wait()
            koo.run(platform.query(replace(QUESTION)))
            return id(platform.parts)

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(ask, range(4)))) == 1
        assert platform.service_health("claude")["metrics"]["total_requests"] == 4
        assert isinstance(QUESTION, Query)
        closed(platform)


# ── streams of a user's own operation ────────────────────────────────────────────────────────────────────────────────


class Counting:
    """A streaming operation that records the loops it ran on and how many of its streams are open."""

    def __init__(self) -> None:
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.open = 0

    async def numbers(self, upto: int) -> AsyncIterator[int]:
        self.loops.add(asyncio.get_running_loop())
        self.open += 1
        try:
            for number in range(upto):
                await asyncio.sleep(0)
                yield number
        finally:
            self.open -= 1

    @asynccontextmanager
    async def manager(self, upto: int) -> AsyncIterator[Numbers]:
        self.loops.add(asyncio.get_running_loop())
        self.open += 1
        try:
            yield Numbers(upto)
        finally:
            self.open -= 1


class Numbers:
    """The stream that the context manager returns."""

    def __init__(self, upto: int) -> None:
        self.upto = upto

    async def pieces(self) -> AsyncIterator[int]:
        for number in range(self.upto):
            await asyncio.sleep(0)
            yield number

    async def total(self) -> int:
        await asyncio.sleep(0)
        return sum(range(self.upto))


def test_a_stream_of_an_own_operation_is_a_plain_iterator_through_the_bridge(tmp_path: Path) -> None:
    platform, counting = Platform(options(tmp_path)), Counting()
    platform.register_service("own", max_cost_usd=1)
    assert list(koo.run(platform.execute_stream("own", counting.numbers, 3))) == [0, 1, 2]
    left = koo.run(platform.execute_stream("own", counting.numbers, 3))
    assert next(left) == 0
    left.close()  # type: ignore[attr-defined]
    metrics = platform.service_health("own")["metrics"]
    assert (metrics["successful_requests"], metrics["neutral_requests"], counting.open) == (1, 1, 0)
    closed(platform)


def test_a_stream_of_an_own_operation_runs_on_the_loop_that_reads_it_and_its_guard_on_koos(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        counting = Counting()
        async with Platform(options(tmp_path)) as platform:
            platform.register_service("own", max_cost_usd=1)

            loops = []

            async def read() -> list[Any]:
                loops.append(asyncio.get_running_loop())
                seen: list[Any] = [n async for n in platform.execute_stream("own", counting.numbers, 3)]
                async with platform.execute_stream("own", counting.manager, 4) as opened:
                    seen += [opened.upto, await opened.total(), [n async for n in opened.pieces()]]
                async with platform.execute_stream("own", counting.numbers, 3) as opened:
                    seen.append(await anext(opened))
                left = platform.execute_stream("own", counting.numbers, 3)
                seen.append(await anext(left))
                del left  # dropped in the middle, on the wrong loop
                with pytest.raises(koo.UnknownService):
                    await anext(platform.execute_stream("nobody", counting.numbers, 3))
                return seen

            read_there = asyncio.to_thread(asyncio.run, read())
            assert await read_there == [0, 1, 2, 4, 6, [0, 1, 2, 3], 0, 0]
            assert counting.loops == set(loops)
            await until(lambda: not counting.open)
            verdicts = platform.services["own"].default_guard.tally.totals().verdicts
            assert (verdicts[SUCCESS], verdicts[NEUTRAL]) == (2, 2)
            assert not platform.parts.budgets.view("own").held_usd

    asyncio.run(main())
