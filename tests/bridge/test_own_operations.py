"""Users' own operations on a loop other than koo's: they run where their client is, and only their guard crosses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from sqlalchemy import text

import koo
from koo import Platform
from koo.crossing import OVER
from koo.deadlines import ends_at
from koo.errors import CallerMistake, CircuitOpen, Kind
from koo.options import NEVER
from koo.testing.polling import until
from tests.bridge.test_forks import in_child
from tests.bridge.test_platform_in_threads import closed
from tests.platform.test_platform import QUESTION, options

tag: ContextVar[str] = ContextVar("tag", default="none")


def made(home: Path, **registered: Any) -> Platform:
    """A platform with one registered operation, "mine"."""
    platform = Platform(options(home))
    platform.register_service("mine", **registered)
    return platform


def beside(platform: Platform, work: Callable[[], Any]) -> Any:
    """Run `work` in another thread, while koo is open on the loop that runs in this one. Returns its result."""

    async def main() -> Any:
        async with platform:
            return await asyncio.to_thread(work)

    return asyncio.run(main())


class Client:
    """A client like an SDK's: it belongs to the loop on which it was created."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.asked = 0

    async def ask(self, *failures: Exception) -> str:
        assert asyncio.get_running_loop() is self.loop
        self.asked += 1
        await asyncio.sleep(0)
        if self.asked <= len(failures):
            raise failures[self.asked - 1]
        return f"answer {self.asked}"


# ── the loop of an operation ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_operation_runs_on_its_callers_loop_and_is_counted_by_the_one_koo(tmp_path: Path) -> None:
    platform = made(tmp_path)

    async def call() -> str:
        return await platform.execute("mine", Client().ask)

    assert beside(platform, lambda: [asyncio.run(call()) for _ in range(3)]) == ["answer 1"] * 3
    assert platform.service_health("mine")["metrics"]["total_requests"] == 3


def test_threads_with_a_loop_per_call_share_one_koo_in_the_background(tmp_path: Path) -> None:
    platform = made(tmp_path)

    async def call() -> str:
        return await platform.execute("mine", Client().ask)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: asyncio.run(call()), range(12))) == ["answer 1"] * 12
    assert koo.run(platform.execute("mine", lambda: asyncio.sleep(0, "bridged"))) == "bridged"
    assert platform.service_health("mine")["metrics"]["total_requests"] == 13
    closed(platform)


def test_each_attempt_runs_on_the_callers_loop(tmp_path: Path) -> None:
    platform = made(tmp_path, idempotent=True, retry_base_delay=0.001)

    async def call() -> tuple[str, int]:
        client = Client()
        answer = await platform.execute("mine", client.ask, ConnectionError("one"), ConnectionError("two"))
        return answer, client.asked

    assert beside(platform, lambda: asyncio.run(call())) == ("answer 3", 3)


def test_an_open_breaker_refuses_on_every_loop(tmp_path: Path) -> None:
    platform = made(tmp_path, failure_threshold=2, max_retries=0)

    async def call(expected: type[Exception]) -> int:
        client = Client()
        with pytest.raises(expected):
            await platform.execute("mine", client.ask, ConnectionError("down"))
        return client.asked

    def work() -> list[int]:
        return [asyncio.run(call(one)) for one in (ConnectionError, ConnectionError, CircuitOpen)]

    assert beside(platform, work) == [1, 1, 0]


# ── what crosses between the loops ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyError("k"), SystemExit(3), asyncio.CancelledError("own")]
)
def test_an_operations_exception_arrives_unchanged_and_does_not_end_koos_loop(
    tmp_path: Path, error: BaseException
) -> None:
    platform = made(tmp_path)

    async def fails() -> None:
        raise error

    async def call() -> BaseException:
        with pytest.raises(type(error)) as caught:
            await platform.execute("mine", fails)
        return caught.value

    def work() -> str:
        assert _outcome(call) is error
        return asyncio.run(platform.execute("mine", _answer))

    assert beside(platform, work) == "still there"
    assert platform.service_health("mine")["health"]["circuit_breaker_state"] == "closed"


async def _answer() -> str:
    return "still there"


def _outcome(call: Callable[[], Any]) -> BaseException:
    try:
        seen: BaseException = asyncio.run(call())
    # asyncio lets such an exception end the loop of the task that raised it, here the caller's own loop
    except SystemExit as error:
        return error
    return seen


def test_the_context_is_passed_in_both_directions_with_the_nearest_deadline(tmp_path: Path) -> None:
    platform = made(tmp_path, timeout_s=50)

    async def look() -> tuple[str, float]:
        seen = tag.get()
        tag.set("inside")
        return seen, ends_at.get() - asyncio.get_running_loop().time()

    async def call() -> None:
        tag.set("caller")
        seen, left_s = await platform.execute("mine", look)
        assert seen == "caller" and 20 < left_s <= 50
        async with koo.deadline(20):
            seen, left_s = await platform.execute("mine", look)
        assert left_s <= 20 and tag.get() == "caller" and ends_at.get() == NEVER

    beside(platform, lambda: asyncio.run(call()))


def test_a_deadline_ends_an_operation_on_its_own_loop_before_its_caller_continues(tmp_path: Path) -> None:
    platform = made(tmp_path, timeout_s=0.05)
    ended: list[asyncio.AbstractEventLoop] = []

    async def hangs() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            ended.append(asyncio.get_running_loop())

    async def call() -> None:
        with pytest.raises(TimeoutError) as caught:
            await platform.execute("mine", hangs)
        assert getattr(caught.value, "kind", None) is Kind.TIMEOUT
        assert ended == [asyncio.get_running_loop()]

    beside(platform, lambda: asyncio.run(call()))
    assert platform.service_health("mine")["health"]["failure_count"] == 1


def test_a_cancelled_caller_waits_for_the_operations_end_and_counts_as_neutral(tmp_path: Path) -> None:
    platform = made(tmp_path)
    ended: list[str] = []

    async def call() -> None:
        begun = asyncio.Event()

        async def hangs() -> None:
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0)
                ended.append("operation")

        task = asyncio.create_task(platform.execute("mine", hangs))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended.append("caller")

    def work() -> int:
        asyncio.run(call())
        return platform.services["mine"].default_guard.breaker.running

    assert beside(platform, work) == 0
    assert ended == ["operation", "caller"]
    assert platform.service_health("mine")["health"]["failure_count"] == 0


def test_a_callers_loop_that_ends_first_leaks_no_permit(tmp_path: Path) -> None:
    platform = made(tmp_path)
    hung: list[asyncio.Task[None]] = []

    async def call() -> None:
        begun = asyncio.Event()

        async def hangs() -> None:
            begun.set()
            await asyncio.get_running_loop().create_future()

        hung.append(asyncio.create_task(platform.execute("mine", hangs)))
        await begun.wait()  # and `asyncio.run` cancels what is left

    async def main() -> None:
        async with platform:
            await asyncio.to_thread(lambda: asyncio.run(call()))
            await until(lambda: platform.services["mine"].default_guard.breaker.running == 0)

    asyncio.run(main())
    assert hung[0].cancelled() and platform.service_health("mine")["health"]["failure_count"] == 0


def test_if_koos_loop_ends_first_the_error_is_one_sentence(tmp_path: Path) -> None:
    platform, begun, said = made(tmp_path), threading.Event(), list[str]()

    async def hangs() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    def call() -> None:
        with pytest.raises(RuntimeError) as caught:
            asyncio.run(platform.execute("mine", hangs))
        said.append(str(caught.value))

    async def main() -> threading.Thread:
        await platform.open()
        thread = threading.Thread(target=call)
        thread.start()
        await asyncio.to_thread(begun.wait)
        return thread  # the loop ends here, and closes koo

    asyncio.run(main()).join(20)
    assert said == [OVER]


def test_a_second_loop_can_write_off_money_and_close_koo(tmp_path: Path) -> None:
    platform = made(tmp_path)

    async def write_off() -> None:
        with pytest.raises(CallerMistake):
            await platform.write_off("nobody", by="me")

    async def main() -> set[str]:
        await platform.open()
        await asyncio.to_thread(lambda: asyncio.run(write_off()))
        await asyncio.to_thread(lambda: asyncio.run(platform.close()))
        return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert {name for name in asyncio.run(main()) if name.startswith("koo ")} <= {"koo call"}


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Pieces:
    """A client's stream that asserts its loop at each step and at its end. It can be read directly or entered as a
    block."""

    def __init__(self) -> None:
        self.loop, self.left, self.closed = asyncio.get_running_loop(), [1, 2, 3], False

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> int:
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)

    async def aclose(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.closed = True

    async def rest(self) -> list[int]:
        assert asyncio.get_running_loop() is self.loop
        return self.left

    async def __aenter__(self) -> Pieces:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def test_a_stream_is_read_and_closed_on_its_readers_own_loop(tmp_path: Path) -> None:
    platform = made(tmp_path)
    running = platform.services["mine"].default_guard.breaker

    async def read() -> None:
        whole, left = Pieces(), Pieces()
        assert [piece async for piece in platform.execute_stream("mine", lambda: whole)] == [1, 2, 3]
        stream = platform.execute_stream("mine", lambda: left)
        assert await anext(stream) == 1 and running.running == 1
        await stream.aclose()
        assert whole.closed and left.closed and running.running == 0

    async def block() -> None:
        pieces = Pieces()
        async with platform.execute_stream("mine", lambda: pieces) as opened:
            assert await anext(opened) == 1
            assert await opened.rest() == [2, 3]
        assert pieces.closed and running.running == 0

    beside(platform, lambda: [asyncio.run(read()), asyncio.run(block())])
    assert platform.service_health("mine")["health"]["failure_count"] == 0


def test_a_stream_can_be_read_through_the_bridge(tmp_path: Path) -> None:
    platform = made(tmp_path)
    assert list(koo.run(platform.execute_stream("mine", Pieces))) == [1, 2, 3]
    closed(platform)


# ── under trio ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_asyncio_every_entry_point_says_what_to_write(tmp_path: Path) -> None:
    """Under trio asyncio sees no loop. A coroutine that is stepped by hand is in the same situation."""
    platform = made(tmp_path)
    doors: list[Callable[[], Any]] = [
        platform.open, platform.system_health, platform.check_services, platform.spend,
        platform.database.health_check, lambda: transaction(platform),
        lambda: platform.query(QUESTION), lambda: platform.query_many([QUESTION]),
        lambda: platform.execute("mine", _answer), lambda: _first(platform.stream(QUESTION)),
        lambda: _first(platform.execute_stream("mine", Pieces)), lambda: koo.deadline(1).__aenter__(),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(
            RuntimeError, match=r"koo runs on asyncio.*trio\.to_thread\.run_sync\(koo\.run, coroutine\)"
        ):
            door().send(None)


async def _first(pieces: Any) -> Any:
    return await anext(pieces)


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def transaction(platform: Platform) -> Any:
    async with platform.database.session_scope() as session:
        return await session.scalar(text("SELECT 42"))


def test_a_session_on_a_second_loop_is_refused_with_code_that_works(tmp_path: Path) -> None:
    platform = made(tmp_path)

    async def call() -> Any:
        with pytest.raises(RuntimeError, match=r"await asyncio\.to_thread\(koo\.run, coroutine\)"):
            await transaction(platform)
        return await asyncio.to_thread(koo.run, transaction(platform))

    async def main() -> Any:
        async with platform:
            assert await transaction(platform) == 42
            return await asyncio.to_thread(lambda: asyncio.run(call()))

    assert asyncio.run(main()) == 42


def test_the_bridge_uses_the_loop_on_which_only_the_database_is_open(tmp_path: Path) -> None:
    """A `def` endpoint is called after an `async def` one, in a server that never opened the platform."""
    platform = made(tmp_path)

    async def main() -> tuple[Any, Any]:
        assert await transaction(platform) == 42
        here = await asyncio.to_thread(koo.run, transaction(platform))
        health = await asyncio.to_thread(lambda: asyncio.run(platform.database.health_check()))
        await platform.database.close()
        return here, health["healthy"]

    assert asyncio.run(main()) == (42, True)


def test_a_thread_of_a_server_opens_koo_on_the_servers_loop(tmp_path: Path) -> None:
    """A `def` endpoint is called before any `async def` one: AnyIO records the loop for which the thread works."""
    platform = made(tmp_path)

    async def main() -> Any:
        assert (
            await anyio.to_thread.run_sync(lambda: koo.run(platform.execute("mine", _answer)))
            == "still there"
        )
        assert "koo keeper" in {task.get_name() for task in asyncio.all_tasks()}
        return await transaction(platform)

    assert asyncio.run(main()) == 42


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_of_a_servers_thread_has_its_own_loop(tmp_path: Path) -> None:
    platform = made(tmp_path)

    async def main() -> str:
        return await anyio.to_thread.run_sync(
            lambda: in_child(lambda: koo.run(platform.execute("mine", _answer)))
        )

    assert asyncio.run(main()) == "still there"


def test_a_database_whose_platform_is_open_on_another_loop_opens_nothing_here(tmp_path: Path) -> None:
    platform = made(tmp_path)
    koo.run(platform.open())

    async def main() -> set[str]:
        with pytest.raises(RuntimeError, match="open on another event loop"):
            await transaction(platform)
        assert (await platform.database.health_check())["healthy"], "a status call crosses"
        return {task.get_name() for task in asyncio.all_tasks()}

    assert "koo ProbeDatabase" not in asyncio.run(main())
    closed(platform)


def test_a_database_used_on_two_loops_in_turn_has_one_keeper_on_each(tmp_path: Path) -> None:
    platform = made(tmp_path)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        for _ in range(3):
            for loop in (first, second):
                assert loop.run_until_complete(transaction(platform)) == 42
        first.run_until_complete(asyncio.sleep(0))
        first.run_until_complete(_gone(first))
        assert [task.get_name() for task in asyncio.all_tasks(second)] == ["koo ProbeDatabase"]
        second.run_until_complete(platform.database.close())
        assert asyncio.all_tasks(second) == set()
    finally:
        first.close()
        second.close()


async def _gone(loop: asyncio.AbstractEventLoop) -> None:
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=20)
    assert asyncio.all_tasks(loop) == {asyncio.current_task()}
