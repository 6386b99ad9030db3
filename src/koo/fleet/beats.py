"""The fleet's beat: reports this process's state to the store, and applies what comes back.

One transaction about once a second: this process's row and what is new of its guards go up; what operators and
providers did elsewhere (`sharing.py`), which guards are down in other processes, and who leads come down. No call waits
for it. A breaker that changes its phase has it sent at once.

While the store is away nothing is heard and no process leads; every part does what it would do in a single process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from koo.breakers import DATABASE
from koo.clock import Clock
from koo.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, Event, OverrideSet
from koo.fleet.watched import Watched, release
from koo.forks import forget_in_child
from koo.guard import Guard
from koo.policies.fleet import (
    LEASE_BEATS,
    Check,
    GuardKey,
    Heard,
    Leadership,
    Presence,
    Told,
    beat_s,
)
from koo.sharing import Sharing
from koo.storage.base import Store, StoreUnavailable
from koo.storage.signals import SINCE_MAX

log = logging.getLogger("koo")

RUNG_S = 0.1
"""News does not wait for the next beat, but a storm of news is one beat."""
Guards = Callable[[], Iterable[tuple[GuardKey, Guard]]]


class Checks:
    """Unbilled checks that were made here and are not reported yet, and what was heard of those made elsewhere.

    `told_at`: when something was last heard of a service's place, in this process's monotonic seconds.
    """

    def __init__(self) -> None:
        self.untold: tuple[Check, ...] = ()
        self.seen = 0
        self.told_at: dict[tuple[str, str], float] = {}
        self._news: list[Check] = []

    def note(self, check: Check) -> None:
        """One was made here."""
        before = (one for one in self.untold if one[:2] != check[:2])
        self.untold = (*before, check)

    def hear(self, told: Told, heard: Heard, now: float) -> None:
        """A beat was answered."""
        own = {one[:2] for one in told.checks}
        self.untold = tuple(one for one in self.untold if one not in told.checks)
        for one in heard.checks:
            if one[:2] not in own:
                self.told_at[one[:2]] = now - one.ago_s
                self._news.append(one)
        if heard.checks_seen is not None:
            self.seen = heard.checks_seen

    def take(self) -> list[Check]:
        """What was heard since the last time."""
        news, self._news = self._news, []
        return news


class Fleet:
    """This process among those on its store. `guards`: all of them; `presence`: what is said of this process."""

    def __init__(
        self, store: Store, clock: Clock, sharing: Sharing, guards: Guards, presence: Callable[[], Presence]
    ) -> None:
        self.leadership = Leadership()
        self.heard: Heard | None = None
        """What the last beat brought; None while the store is away."""
        self._store = store
        self._clock = clock
        self._sharing = sharing
        self._guards = guards
        self._presence = presence
        self.checks = Checks()
        self._watched: dict[GuardKey, Watched] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat_at = float("-inf")
        self._is_failing = False
        forget_in_child(self)

    # ── who leads ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def leads(self) -> bool:
        """Does this process lead? Then it sweeps, and checks the services on behalf of all."""
        return self.leadership.leads(self._clock.monotonic())

    @property
    def is_led(self) -> bool:
        """Does another process lead? Without a leader each process does the work itself, only slower."""
        return self.leadership.is_led(self._clock.monotonic())

    # ── the beat ──────────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """The first beat, before the first call: a new process knows what the others know.

        Raises `StoreUnavailable`; then the next beats try.
        """
        await self.beat()

    async def run(self) -> None:
        """Beat until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._sharing.begin()
        try:
            while True:
                await self._until_due()
                await self._try_to_beat()
        finally:
            self._sharing.end()
            self._loop = None

    async def _try_to_beat(self) -> None:
        try:
            await self.beat()
        except StoreUnavailable:
            self._lose()  # The store itself says so once, and again when it is back.
        except Exception:
            self._lose()
            if not self._is_failing:
                log.exception("the fleet's beat failed, and is tried again")
            self._is_failing = True
        else:
            self._is_failing = False

    async def beat(self) -> None:
        """Report, listen, and apply what was heard. Raises `StoreUnavailable`."""
        self._beat_at = now = self._clock.monotonic()
        if self._sharing.seen is None:
            await self._sharing.catch_up()
        told, watched = self._tell(now)
        heard, signals = await self._store.roll_call.beat(told, self._sharing.seen)
        self.heard = heard
        self.leadership.hear(told, heard, now)
        self._note_told(told, heard, watched, now)
        self.checks.hear(told, heard, now)
        self._sharing.take(signals)
        if len(signals) == SINCE_MAX:
            self.ring()

    def _tell(self, now: float) -> tuple[Told, dict[GuardKey, Guard]]:
        beat = beat_s(self._processes)
        guards = dict(self._guards())
        lines, probes, in_flight = [], [], 0
        for key, guard in guards.items():
            in_flight += guard.breaker.running
            watched = self._watched.get(key)
            if watched is None:
                watched = self._watched[key] = Watched(guard, now, is_new=self.heard is not None)
            line = watched.line(key, guard, now)
            if watched.is_news(line, now):
                lines.append(line)
            if self._shares_probes(key) and (ask := watched.ask(key, guard, beat, now)) is not None:
                probes.append(ask)
                watched.let_probe(guard, is_governed=True)
        told = Told(
            presence=self._presence(),
            in_flight=in_flight,
            beat_s=beat,
            lease_s=LEASE_BEATS * beat,
            anew=tuple(lines),
            gone=tuple(key for key in self._watched if key not in guards),
            checks=self.checks.untold if self.leads else (),
            checks_seen=self.checks.seen,
            probes=tuple(probes),
        )
        return told, guards

    @property
    def _processes(self) -> int:
        return 1 if self.heard is None else self.heard.processes

    def _shares_probes(self, key: GuardKey) -> bool:
        """Each process probes a database itself: probes cost it nothing, and an outage is over sooner."""
        return self._processes > 1 and key.name != DATABASE

    def _note_told(self, told: Told, heard: Heard, guards: dict[GuardKey, Guard], now: float) -> None:
        """Note what the store has. If the store did not know this process, everything must be reported again."""
        if heard.is_new:
            for watched in self._watched.values():
                watched.told = None
        for line in told.anew:
            self._watched[line.key].note_told(line, now)
        for key in told.gone:
            del self._watched[key]
        for key, count in heard.units.items():
            self._watched[key].unit.hear(count, guards[key].breaker.given, now)
        for key, guard in guards.items():
            watched = self._watched[key]
            watched.heed(guard, heard.opinions.get(key), self._clock.monotonic())
            watched.let_probe(guard, is_governed=self._shares_probes(key))

    def meet(self, key: GuardKey, guard: Guard) -> None:
        """A guard was made: what others say of it holds from its first call on."""
        if self.heard is not None:
            watched = self._watched[key] = Watched(guard, self._clock.monotonic(), is_new=True)
            watched.heed(guard, self.heard.opinions.get(key), self._clock.monotonic())
            watched.let_probe(guard, is_governed=self._shares_probes(key))

    def note_check(self, check: Check) -> None:
        """An unbilled check was made here: the leader reports it to the others."""
        if self.leads:
            self.checks.note(check)
            self.ring()

    def _lose(self) -> None:
        """The store is away: what others said is no longer known to hold."""
        self.heard = None
        for _, guard in self._guards():
            release(guard)
        for watched in self._watched.values():
            watched.unit.give_up()

    async def _until_due(self) -> None:
        due_s = self._beat_at + beat_s(self._processes) - self._clock.monotonic()
        timer = asyncio.get_running_loop().call_later(max(0.0, due_s), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        early_s = self._beat_at + RUNG_S - self._clock.monotonic()
        if early_s > 0:
            await self._clock.sleep(early_s)
        self._wake.clear()

    def ring(self) -> None:
        """There is news: beat now."""
        if self._loop is not None and not self._loop.is_closed():
            self._wake.set()

    def on_event(self, event: Event) -> None:
        """A breaker's step is news."""
        if isinstance(event, (CircuitOpened, CircuitHalfOpened, CircuitClosed, OverrideSet)):
            self.ring()

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────

    async def leave(self) -> None:
        """This process closes: it is no longer on the roll, and leads nothing."""
        self._forget()
        try:
            await self._store.roll_call.leave()
        except StoreUnavailable:
            pass  # Its row will count as silent soon, and be forgotten after a day.

    def forget_parent(self) -> None:
        """In a forked child, which is another process under another name."""
        self._loop, self._wake = None, asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        self.leadership.resign()
        self._lose()
        self._watched.clear()
