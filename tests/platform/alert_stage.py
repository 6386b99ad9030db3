"""One platform on a moved clock, whose alerts go to a webhook receiver and a mail server that outlive each test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from koo.alert_options import AlertOptions
from koo.errors import ExternalServiceError
from koo.options import BreakerOptions, PlatformOptions, RetryOptions
from koo.platform import Platform
from koo.testing.backstage import Backstage
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic
from koo.testing.proxy import FaultProxy
from koo.testing.skipping import SkippingClock
from koo.testing.staging import empty_store
from koo.upkeep import KeepTime
from tests.alerts.hooks import Hook
from tests.alerts.mails import HOST, MailServer
from tests.platform.test_platform import QUESTION, options

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BEGINS_AT = 1_795_932_000.0
"""Wall time of each test, 06:00 UTC: spending already has a pace, and most of the day is ahead."""
PATIENCE_S = 90.0
STEP_S = 5.0
PATIENT: Mapping[str, Any] = {"probe_timeout_s": 3600.0}
"""A clock step during a probe must not exceed the probe's timeout."""


Step = Callable[["Stage"], Awaitable[None]]


@dataclass(frozen=True)
class Course:
    """How an alert starts and ends, and the platform's set-up for it.

    `behind_proxy`: whether the user's database or the state store is on a PostgreSQL behind a proxy.
    `begins_at`: the wall time; None: the real time, which other processes share.
    """

    begin: Step
    end: Step
    service: Mapping[str, Any] = field(default_factory=dict)
    database: Mapping[str, Any] = field(default_factory=dict)
    behind_proxy: Literal["", "database", "state"] = ""
    begins_at: float | None = BEGINS_AT


@dataclass
class Receivers:
    """A webhook receiver and a mail server in their own thread, unaffected by the moved clock."""

    hook: Hook
    mails: MailServer
    empty: bytes = field(repr=False)

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Receivers]:
        backstage = Backstage()
        backstage.start()
        hook, mails = Hook(), MailServer()
        try:
            backstage.run(hook.__aenter__())
            backstage.run(mails.__aenter__())
            yield cls(hook, mails, backstage.run(empty_store(folder)))
            backstage.run(mails.__aexit__())
            backstage.run(hook.__aexit__())
        finally:
            backstage.stop()


@dataclass
class Stage:
    """The objects that a scenario acts on. `kept`: state passed from its start to its end."""

    platform: Platform
    server: FakeAnthropic
    clock: SkippingClock
    receivers: Receivers
    home: Path
    monkeypatch: pytest.MonkeyPatch
    proxy: FaultProxy
    beats: int = 0
    kept: list[Any] = field(default_factory=list)
    _hooks_before: int = 0
    _mails_before: int = 0

    # ── actions ───────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, *script: object, **changes: Any) -> None:
        """Send one query, which the provider answers as scripted."""
        self.server.script(*script)  # type: ignore[arg-type]
        with suppress(ExternalServiceError):
            await self.platform.query(replace(QUESTION, on_limit="refuse", **changes))

    async def passes(self, seconds: float, step_s: float = STEP_S) -> None:
        """Advance the clock, including koo's beats."""
        while seconds > 0:
            self.clock.advance(min(step_s, seconds))
            seconds -= step_s
            await self.beat()

    async def jump(self, seconds: float) -> None:
        """Skip hours in one step, without making koo's beat late."""
        self.platform.parts.own_watch.beats.stop()
        self.clock.advance(seconds)
        await self.beat()

    async def beat(self) -> None:
        """Wait for one more of koo's beats."""
        done = self.beats
        await self.until(lambda: self.beats > done)

    async def until(self, is_so: Callable[[], object]) -> None:
        """Advance the clock until the condition is true."""
        ends_at = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < ends_at, "the condition never became true"
            self.clock.advance(0.25)
            await asyncio.sleep(0.002)

    # ── what people get ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def told(self) -> list[dict[str, Any]]:
        """The messages that the webhook receiver got in this test."""
        taken = self.receivers.hook.taken[self._hooks_before :]
        return [one for request in taken for one in request.json["alerts"]]

    @property
    def letters(self) -> list[Any]:
        """The mails of this test."""
        return list(self.receivers.mails.mails[self._mails_before :])

    async def heard(self, what: str, kind: str) -> dict[str, Any]:
        """Advance the clock until webhook and mailbox have that notice of this alert kind; returns the webhook's."""
        ends_at = time.monotonic() + PATIENCE_S
        while True:
            told = [one for one in self.told if (one["what"], one["kind"]) == (what, kind)]
            if told and any(kind in letter.get_content() and _is(what, letter) for letter in self.letters):
                return told[0]
            assert time.monotonic() < ends_at, (self.platform.active_alerts(), self.told)
            await self.passes(STEP_S)

    async def heard_by_mail(self, kind: str) -> None:
        """Advance the clock until the mailbox has a notice of this alert kind."""
        while not any(kind in letter.get_content() for letter in self.letters):
            await self.passes(1.0)


def _is(what: str, letter: Any) -> bool:
    return ("resolved:" in letter["Subject"]) == (what == "resolved")


@asynccontextmanager
async def stage(
    course: Course,
    home: Path,
    receivers: Receivers,
    monkeypatch: pytest.MonkeyPatch,
    postgres: Callable[[], PostgresServer],
) -> AsyncIterator[Stage]:
    """An open platform, set up for a scenario."""
    (home / "state.db").write_bytes(receivers.empty)
    clock = SkippingClock(course.begins_at)
    with ExitStack() as ends:
        server = ends.enter_context(FakeAnthropic(strict=False))
        chosen = _options(course, home, server, receivers)
        proxy = FaultProxy(HOST, 9)
        if course.behind_proxy:
            postgresql = postgres()
            name = postgresql.create_database()
            ends.callback(postgresql.drop_database, name)
            proxy = ends.enter_context(FaultProxy(postgresql.host, postgresql.port))
            chosen = _through(course, chosen, proxy.through(postgresql.url("psycopg", name)))
        ends.callback(clock.release)
        platform = Platform(chosen, clock=clock)
        made = Stage(platform, server, clock, receivers, home, monkeypatch, proxy)
        made._hooks_before, made._mails_before = len(receivers.hook.taken), len(receivers.mails.mails)
        _count_beats(made)
        async with platform:
            yield made


def _options(course: Course, home: Path, server: FakeAnthropic, receivers: Receivers) -> PlatformOptions:
    service = {
        "breaker": BreakerOptions(failure_threshold=3),
        "retry": RetryOptions(attempts_max=1),
        **course.service,
    }
    once = options(home, server, **service)
    alerts = AlertOptions(
        webhook=receivers.hook.url,
        webhook_secret=SECRET,
        email=("ops@example.com",),
        smtp_url=f"smtp://{HOST}:{receivers.mails.port}",
        sender="koo@example.com",
        public_url="https://koo.example",
    )
    return replace(once, alerts=alerts, database=replace(once.database, **PATIENT, **course.database))


def _through(course: Course, chosen: PlatformOptions, url: str) -> PlatformOptions:
    if course.behind_proxy == "state":
        return replace(chosen, state_url=url)
    return replace(chosen, database=replace(chosen.database, url=url))


def _count_beats(made: Stage) -> None:
    step = KeepTime.step

    async def counted(self: KeepTime) -> None:
        await step(self)
        made.beats += 1

    made.monkeypatch.setattr(KeepTime, "step", counted)
