"""A callback of the application that raises, even an exit, leaks nothing, and the next call works."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import koo
from koo.callbacks import LOGGERS, CarefulLogger
from koo.database.on_commit import on_commit
from koo.events import CircuitHalfOpened
from koo.guard import Guard
from koo.options import BreakerOptions, RetryOptions
from koo.platform import Platform
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, answer, error, stream
from koo.testing.taken import settled
from tests.platform.test_platform import QUESTION, options

RAISED: list[type[BaseException]] = [RuntimeError, SystemExit, KeyboardInterrupt, asyncio.CancelledError]
EXITS = (SystemExit, KeyboardInterrupt)
BREAKER = BreakerOptions(failure_threshold=1, success_threshold=1, recovery_s=0.05)
Rude = Callable[..., Any]


class World:
    """A platform whose breakers open at the first failure and immediately admit a probe, and the calls made to it."""

    def __init__(self, platform: Platform, server: FakeAnthropic) -> None:
        self.platform = platform
        self.server = server

    @property
    def guards(self) -> list[Guard]:
        models = [guard for service in self.platform.services.values() for guard in service.guards]
        return [*models, self.platform.database.guard]

    async def query(self) -> None:
        for step in (error(500, "api_error"), answer(output_tokens=1000)):
            self.server.default = step
            await self.ask(lambda: self.platform.query(QUESTION))

    async def stream(self) -> None:
        async def read() -> None:
            async with self.platform.stream(QUESTION) as pieces:
                async for _ in pieces:
                    pass

        for step in (stream(["one"], cut_after=0, interval_s=0), stream(["one", "two"], interval_s=0)):
            self.server.default = step
            await self.ask(read)

    async def operation(self) -> None:
        async def fail() -> None:
            raise ConnectionResetError

        async def work() -> str:
            return "done"

        await self.ask(
            lambda: self.platform.execute("reports", fail), lambda: self.platform.execute("reports", work)
        )

    async def scope(self) -> None:
        async def fail() -> None:
            async with self.platform.database.session_scope() as session:
                await session.execute(text("SELECT 1 FROM nowhere"))

        async def work() -> None:
            async with self.platform.database.session_scope() as session:
                await session.execute(text("SELECT 1"))

        self.platform.database.guard.count_outage(
            True, None
        )  # its breaker opens, and the next scopes are probes
        await self.ask(fail, work)

    async def ask(self, *calls: Callable[[], Awaitable[object]]) -> None:
        """Make each call, whatever its outcome, until it is admitted, even if as a probe."""
        for call in calls:
            await until(lambda: not any(one.breaker.refuses(one.now()) for one in self.guards))
            with suppress(Exception, asyncio.CancelledError, *EXITS):
                await call()


def rude(raised: type[BaseException]) -> Rude:
    def callback(*given: object, **more: object) -> Any:
        raise raised("rude")

    return callback


class RudeHandler(logging.Handler):
    def __init__(self, raised: type[BaseException]) -> None:
        super().__init__()
        self.handle = rude(raised)  # type: ignore[method-assign]


@contextmanager
def logging_to(handler: logging.Handler) -> Any:
    log = logging.getLogger("koo")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> list[BaseException]:
    """Run it as a program whose loop continues after each exit that a callback requested; returns the exits."""
    exits: list[BaseException] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: None)
    task = loop.create_task(main())
    while not task.done():
        try:
            loop.run_until_complete(task)
        except EXITS as asked:
            exits.append(asked)
        except BaseException:  # the test's own failure, raised below
            break
    for one in asyncio.all_tasks(loop):
        one.cancel()
    try:
        task.result()
    finally:
        loop.run_until_complete(_leave(loop))
        loop.close()
    return exits


async def _leave(loop: asyncio.AbstractEventLoop) -> None:
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_asyncgens()


def world_of(server: FakeAnthropic, home: Path) -> World:
    about = options(
        home, server, breaker=BREAKER, retry=RetryOptions(attempts_max=1), daily_budget_usd=Decimal(100)
    )
    platform = Platform(replace(about, database=replace(about.database, breaker=BREAKER)))
    platform.register_service(
        "reports", failure_threshold=1, success_threshold=1, recovery_timeout=0.05, max_retries=0
    )
    return World(platform, server)


async def all_is_back(world: World) -> None:
    await until(lambda: bool(settled(world.platform)))
    for service in world.platform.services.values():
        assert service.gates.bulkhead.used == 0


async def the_next_works(world: World) -> None:
    world.platform.reset_services()
    world.platform.reset_database()
    world.server.default = answer()
    assert (await world.platform.query(QUESTION)).text
    async with world.platform.stream(QUESTION) as pieces:
        assert [piece async for piece in pieces]
    async with world.platform.database.session_scope() as session:
        assert (await session.execute(text("SELECT 1"))).scalar() == 1


@pytest.mark.parametrize("raised", RAISED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("place", ["listener", "log handler"])
def test_a_listener_or_log_handler_that_raises_leaks_nothing(
    tmp_path: Path, place: str, raised: type[BaseException]
) -> None:
    """Every call causes events: a breaker that opens, admits a probe or closes, or a bill above its hold."""

    async def main() -> None:
        async with FakeAnthropic() as server:
            world = world_of(server, tmp_path)
            handler = RudeHandler(raised) if place == "log handler" else logging.NullHandler()
            stop = world.platform.events.listen(rude(raised)) if place == "listener" else lambda: None
            with logging_to(handler):
                for call in (world.query, world.stream, world.operation, world.scope):
                    await call()
                    await all_is_back(world)
            stop()
            opened = {
                one.source for one in world.platform.events.recent if isinstance(one, CircuitHalfOpened)
            }
            assert opened == {"claude/claude-sonnet-5-5", "reports", "database"}, (
                "a probe publishes an event while it is admitted"
            )
            await the_next_works(world)
            await all_is_back(world)
            await world.platform.close()

    exits = run(main)
    assert bool(exits) == (raised in EXITS), "an exit ends the program all the same"
    assert all(type(one) is raised for one in exits)


@pytest.mark.parametrize("raised", RAISED, ids=lambda one: one.__name__)
def test_a_cost_function_that_raises_leaks_nothing_in_an_operation_or_a_stream(
    tmp_path: Path, raised: type[BaseException]
) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server:
            world = world_of(server, tmp_path)
            platform = world.platform
            platform.register_service(
                "paid", daily_budget=Decimal(10), max_cost_usd=Decimal(1), cost_usd=rude(raised)
            )

            async def work() -> str:
                return "done"

            async def pieces() -> AsyncIterator[str]:
                yield "one"
                yield "two"

            async def read() -> None:
                async with platform.execute_stream("paid", pieces) as opened:
                    async for _ in opened:
                        pass

            await world.ask(lambda: platform.execute("paid", work))
            await all_is_back(world)
            await world.ask(read)
            await all_is_back(world)
            spent = Decimal(platform.service_health("paid")["rate_limits"]["daily_budget"]["spent"])
            assert spent == 2, "a sent call is booked at its maximum cost"
            await platform.close()

    run(main)


@pytest.mark.parametrize("raised", RAISED, ids=lambda one: one.__name__)
def test_a_classifier_that_raises_leaks_nothing(tmp_path: Path, raised: type[BaseException]) -> None:
    async def main() -> None:
        platform = Platform(options(tmp_path))
        platform.register_service("odd", classify=rude(raised), max_retries=0)

        async def fail() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            await platform.execute("odd", fail)
        assert settled(platform) and platform.services["odd"].gates.bulkhead.used == 0
        await asyncio.sleep(0)  # the loop raises the exit here
        await platform.close()

    exits = run(main)
    assert bool(exits) == (raised in EXITS), "an exit ends the program all the same"


@pytest.mark.parametrize("raised", RAISED, ids=lambda one: one.__name__)
def test_a_commit_hook_that_raises_leaks_nothing_and_later_hooks_run(
    tmp_path: Path, raised: type[BaseException]
) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server:
            world, ran = world_of(server, tmp_path), list[str]()

            async def work() -> None:
                async with world.platform.database.session_scope() as session:
                    await session.execute(text("SELECT 1"))
                    on_commit(session, rude(raised))
                    on_commit(session, lambda: ran.append("ran"))

            await world.ask(work)
            await all_is_back(world)
            await until(lambda: ran == ["ran"])
            await the_next_works(world)
            await world.platform.close()

    run(main)


@pytest.mark.parametrize("raised", RAISED, ids=lambda one: one.__name__)
def test_a_log_handlers_exception_does_not_reach_the_code_that_logs(
    raised: type[BaseException],
) -> None:
    """If a loop is running, an exit is raised in its next turn."""

    async def main() -> None:
        for name in LOGGERS:
            log = logging.getLogger(name)
            failing, failing_filter = RudeHandler(raised), rude(raised)
            with logging_to(failing):
                log.error("it was said")
            await asyncio.sleep(0)
            log.addFilter(failing_filter)
            log.error("it was not said")
            log.removeFilter(failing_filter)
            await asyncio.sleep(0)

    exits = run(main)
    assert len(exits) == (2 * len(LOGGERS) if raised in EXITS else 0)


def test_a_log_handlers_single_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Once(logging.Handler):
        failed = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.failed += 1
            if self.failed == 1:
                raise OSError("no room")

    with logging_to(Once()):
        logging.getLogger("koo").warning("it was said")
    (told,) = [record for record in caplog.records if record.getMessage() == "a log handler failed"]
    assert told.exc_info is not None and isinstance(told.exc_info[1], OSError)


def test_koo_uses_careful_loggers() -> None:
    named = set()
    for file in Path(koo.__file__).parent.rglob("*.py"):
        named |= set(re.findall(r'^log = logging\.getLogger\("(koo[^"]*)"\)', file.read_text(), re.MULTILINE))
    assert named <= set(LOGGERS)
    assert all(type(logging.getLogger(name)) is CarefulLogger for name in named)
