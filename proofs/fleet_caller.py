"""One process of the breaker proof: it calls a provider at its own pace, and reports what its breaker does.

`python -m proofs.fleet_caller JSON` prints a line of JSON for each step: "ready", "open", "closed", "primed", "leads".
It reads "pace SECONDS" (0: rest) and "reset", and closes when its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from koo import Query
from koo.alert_options import AlertOptions
from koo.errors import ExternalServiceError
from koo.events import CircuitClosed, CircuitOpened, CircuitPrimed, Event
from koo.options import BreakerOptions, LimitOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform

SERVICE = "claude"
WORDS: dict[type[Event], str] = {CircuitOpened: "open", CircuitClosed: "closed", CircuitPrimed: "primed"}


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does. Times are seconds."""

    number: int
    base_url: str
    state_url: str
    home: str
    webhook: str
    recovery_s: float

    def command(self) -> list[str]:
        """The command that starts it."""
        return [sys.executable, "-m", "proofs.fleet_caller", json.dumps(asdict(self))]


def options(task: Task) -> PlatformOptions:
    """One service with one attempt per call, whose breaker opens after five failures."""
    service = ServiceOptions(
        name=SERVICE,
        kind="anthropic",
        api_key="test-key",
        model="claude-sonnet-5-5",
        base_url=task.base_url,
        retry=RetryOptions(attempts_max=1),
        breaker=BreakerOptions(recovery_s=task.recovery_s, open_s_max=task.recovery_s, success_threshold=2),
        limits=LimitOptions(per_minute=None, per_hour=None, per_day=None),
    )
    return PlatformOptions(
        home=Path(task.home),
        state_url=task.state_url,
        services=(service,),
        alerts=AlertOptions(webhook=task.webhook),
        health_check_interval_s=3600.0,
    )


def say(word: str) -> None:
    """Print one line, with the clock that all processes of a machine share."""
    print(json.dumps({"said": word, "at": time.monotonic()}), flush=True)


class Caller:
    """Makes calls one after the other, `pace_s` apart; rests while that is 0."""

    def __init__(self, platform: Platform, number: int) -> None:
        self._platform = platform
        self._query = Query(service=SERVICE, prompt=f"from {number}", max_tokens=20)
        self.pace_s = 0.0
        self.changed = asyncio.Event()

    async def run(self) -> None:
        while True:
            if self.pace_s:
                with suppress(ExternalServiceError):
                    await self._platform.query(self._query)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.pace_s or None):
                    await self.changed.wait()
                self.changed.clear()


async def tell_who_leads(platform: Platform) -> None:
    """Report when this process begins to lead."""
    before = False
    while True:
        leads = platform.parts.fleet.leads
        if leads and not before:
            say("leads")
        before = leads
        await asyncio.sleep(0.05)


async def call(task: Task) -> None:
    """Run until its input ends."""
    async with Platform(options(task)) as platform:
        platform.events.listen(lambda event: say(WORDS[type(event)]) if type(event) in WORDS else None)
        caller = Caller(platform, task.number)
        tasks = [asyncio.create_task(work) for work in (caller.run(), tell_who_leads(platform))]
        say("ready")
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "reset":
                platform.reset_service(SERVICE)
            else:
                caller.pace_s = float(line.removeprefix("pace "))
                caller.changed.set()
        for one in tasks:
            one.cancel()


if __name__ == "__main__":
    asyncio.run(call(Task(**json.loads(sys.argv[1]))))
