"""The log of an outage, line by line: the log alone shows what broke, since when, until when, and what to do.

Two services (one by its key, one by failures), the database and the state store go down and recover. The script moves
the clock, and does what background tasks would do at that time. `docs/log.md` shows these lines.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from koo.ai.types import Query
from koo.composition import Parts
from koo.deadlines import Deadlines
from koo.errors import KooError
from koo.events import EventBus
from koo.logs.lines import request_id
from koo.options import BreakerOptions, DatabaseOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.testing.clock import WALL_S, StandingClock
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic, FakeCompatible, error
from koo.testing.proxy import FaultProxy
from koo.upkeep import KeepTime, check_service

ROOT = Path(__file__).parents[2]
BREAKER = BreakerOptions(failure_threshold=3, success_threshold=2, recovery_s=60.0)
ONCE = RetryOptions(attempts_max=1)


class StoppedClock(StandingClock):
    """A clock on which no sleep ends: the script does the work of background tasks at its own times."""

    async def sleep(self, delay_s: float) -> None:
        await asyncio.Event().wait()


def service(name: str, kind: Any, url: str, **more: Any) -> ServiceOptions:
    free: dict[str, Any] = {"input_price": Decimal(0), "output_price": Decimal(0), "daily_budget_usd": None}
    return ServiceOptions(
        name=name, kind=kind, base_url=url, api_key="test-key", retry=ONCE, breaker=BREAKER, **free, **more
    )


class Outage:
    """The parts of a platform, their servers, and the steps of the script."""

    def __init__(self, parts: Parts, clock: StoppedClock, proxy: FaultProxy) -> None:
        self.parts = parts
        self.clock = clock
        self.proxy = proxy
        self.upkeep = KeepTime(parts)
        for one in parts.services.values():
            one.gates.draw = lambda: 0.0
        parts.database.guard.gates.draw = lambda: 0.0

    async def pass_time(self, seconds: float) -> None:
        """Advance the clock, then do the work of one second."""
        self.clock.advance(seconds)
        await self.upkeep.step()

    async def ask(self, name: str, times: int = 1, request: str = "") -> None:
        for _ in range(times):
            token = request_id.set(request)
            with suppress(KooError):
                await self.parts.gateway.query(Query(service=name, prompt="secret 4711", max_tokens=10))
            request_id.reset(token)

    async def write(self, times: int = 1) -> None:
        for _ in range(times):
            with suppress(KooError):
                async with self.parts.database.session_scope() as session:
                    await session.execute(text("INSERT INTO notes VALUES (4711)"))

    async def look(self, times: int = 1) -> None:
        """Run the database's own probe."""
        for _ in range(times):
            await self.parts.database.health_check()


async def script(world: Outage, lab: FakeCompatible, claude: FakeAnthropic) -> None:
    """The steps, ten seconds apart unless stated otherwise."""
    # Everything works: not a single line.
    await world.ask("lab")
    await world.ask("claude")
    await world.write()
    await world.look()
    # lab fails, and its circuit opens at the third failure in a row.
    await world.pass_time(10)
    lab.script(*[error(500, "server_error") for _ in range(3)])
    await world.ask("lab", request="0b2f")
    await world.ask("lab", 4)
    # The database's server is down.
    await world.pass_time(10)
    await world.proxy.refuse()
    world.proxy.reset_all()
    await world.look()
    await world.write(4)
    # claude's key is refused.
    await world.pass_time(10)
    claude.script(error(401, "authentication_error", "invalid x-api-key sk-ant-api03-hunter2hunter2"))
    await world.ask("claude", 3)
    # The server is back, and two probes succeed before its circuit's time is over.
    await world.pass_time(10)
    await world.proxy.accept()
    await world.look(2)
    await world.write(2)
    # A minute after the first failures they are counted, and lab's recovery is tested.
    await world.pass_time(41)
    await world.ask("lab", 2)
    # claude's key works again.
    await world.pass_time(9)
    await check_service(world.parts, "claude")
    # A COMMIT is lost.
    await world.pass_time(10)
    world.proxy.cut_commit("at")
    await world.write()
    # lab's provider reports when its quota resets.
    lab.script(error(429, "insufficient_quota", headers={"retry-after": "3600"}))
    await world.ask("lab")
    # An operator pauses the database for a moment.
    await world.pass_time(10)
    world.parts.database.pause()
    await world.pass_time(10)
    world.parts.database.resume()
    # Two quiet minutes.
    await world.pass_time(60)
    await world.pass_time(60)


def _shown(record: logging.LogRecord) -> str:
    """A line as in the document, with a fixed server port and a fixed line of the program."""
    message = re.sub(r"127\.0\.0\.1:\d+/\w+", "db.example:5432/shop", record.getMessage())
    message = re.sub(r"tests\.logs\.test_outage:\d+", "app.orders:41", message)
    return f"{record.levelname.lower():<8} {message}"


def test_the_log_of_an_outage_has_exactly_these_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, postgres18: PostgresServer
) -> None:
    caplog.set_level(logging.INFO, "koo")

    async def main() -> None:
        clock, name = StoppedClock(WALL_S), postgres18.create_database()
        async with (
            FaultProxy(postgres18.host, postgres18.port) as proxy,
            FakeCompatible() as lab,
            FakeAnthropic() as claude,
        ):
            url = proxy.through(postgres18.url("asyncpg", name))
            options = PlatformOptions(
                home=tmp_path,
                state_url=f"sqlite:///{tmp_path / 'state.db'}",
                database=DatabaseOptions(url=url, retry=ONCE, breaker=BREAKER),
                services=(
                    service("lab", "openai_compatible", lab.base_url, model="m", declared=True),
                    service("claude", "anthropic", claude.base_url, model="claude-sonnet-5-5"),
                ),
            )
            parts = Parts(options, clock=clock, deadlines=Deadlines(), events=EventBus())
            await parts.open()
            try:
                async with parts.database.session_scope() as session:
                    await session.execute(text("CREATE TABLE notes (n int)"))
                await script(Outage(parts, clock, proxy), lab, claude)
            finally:
                await parts.close()
        postgres18.drop_database(name)

    asyncio.run(main())
    lines = [_shown(one) for one in caplog.records]
    page = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page, "\n".join(lines)
    assert "4711" not in caplog.text and "hunter2" not in caplog.text
