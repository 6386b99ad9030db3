"""The fleet's beat: reports this process's state to the store, and applies the reply.

A beat is one transaction about once a second. It writes this process's row and the changes of its guards. It reads what
operators and providers did in other processes (`sharing.py`), which guards are down there, and which process leads. No
call waits for a beat. A breaker that changes its phase causes a beat immediately.

While the store is unreachable there are no reports and no leader, and every part behaves as in a single process.
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
"""The least time between two beats: a change does not wait for the next regular one, but many changes share a beat."""
Guards = Callable[[], Iterable[tuple[GuardKey, Guard]]]


class Checks:
    """Unbilled checks made here that are not reported yet, and the results received from other processes.

    `told_at`: when a result for a service's place was last received, in this process's monotonic seconds.
    """

    def __init__(self) -> None:
        self.untold: tuple[Check, ...] = ()
        self.seen = 0
        self.told_at: dict[tuple[str, str], float] = {}
        self._news: list[Check] = []

    def note(self, check: Check) -> None:
        """Add a check that was made here; it replaces an unreported one of the same service and place."""
        before = (one for one in self.untold if one[:2] != check[:2])
        self.untold = (*before, check)

    def hear(self, told: Told, heard: Heard, now: float) -> None:
        """Process a beat's reply."""
        # The reply contains this process's own checks too, and they must not come back as another process's results.
        # What was noted while the beat was under way is not in `told`, and remains to be reported.
        own = {one[:2] for one in told.checks}
        self.untold = tuple(one for one in self.untold if one not in told.checks)
        for one in heard.checks:
            if one[:2] not in own:
                self.told_at[one[:2]] = now - one.ago_s
                self._news.append(one)
        if heard.checks_seen is not None:
            self.seen = heard.checks_seen

    def take(self) -> list[Check]:
        """The results received since the last call."""
        news, self._news = self._news, []
        return news


class Fleet:
    """This process as a member of the fleet on its store. `guards` yields all its guards; `presence` describes it."""

    def __init__(
        self, store: Store, clock: Clock, sharing: Sharing, guards: Guards, presence: Callable[[], Presence]
    ) -> None:
        self.leadership = Leadership()
        self.heard: Heard | None = None
        """The last beat's reply; None while the store is unreachable."""
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
        """Whether this process leads: then it sweeps, and checks the services on behalf of all."""
        return self.leadership.leads(self._clock.monotonic())

    @property
    def is_led(self) -> bool:
        """Whether another process leads. Without a leader each process does the work itself, only less often."""
        return self.leadership.is_led(self._clock.monotonic())

    # ── the beat ──────────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """The first beat, before the first call, so that a new process knows what the others know.

        Raises `StoreUnavailable`; the following beats then try again.
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
            self._lose()  # the store logs this itself, once, and once more when it is back
        except Exception:
            self._lose()
            if not self._is_failing:
                log.exception("the fleet's beat failed and will be tried again")
            self._is_failing = True
        else:
            self._is_failing = False

    async def beat(self) -> None:
        """Report, and apply the reply. Raises `StoreUnavailable`."""
        # A leader counts its lease from `now`, before it sent the beat, and the store from when it processed the beat.
        # So the leader always stops before the store admits another one, however long the transaction took.
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
        # A full page of signals: there may be more, so read on now and not in a second.
        if len(signals) == SINCE_MAX:
            self.ring()

    def _tell(self, now: float) -> tuple[Told, dict[GuardKey, Guard]]:
        beat = beat_s(self._processes)
        guards = dict(self._guards())
        lines, probes, in_flight = [], [], 0
        for key, guard in guards.items():
            in_flight += guard.breaker.running
            watched = self._watched.get(key)
            # `is_new` only if an earlier beat was answered: otherwise the guard is older than this process's first
            # beat, and the calls it has made so far say nothing about the last minute.
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
    def others(self) -> int:
        """How many other processes were on the state store at the last beat."""
        return self._processes - 1

    @property
    def _processes(self) -> int:
        return 1 if self.heard is None else self.heard.processes

    def _shares_probes(self, key: GuardKey) -> bool:
        """Whether the guard's probes are limited over the whole fleet. Each process probes a database for itself: the
        probes cost the database almost nothing, and the outage ends sooner."""
        return self._processes > 1 and key.name != DATABASE

    def _note_told(self, told: Told, heard: Heard, guards: dict[GuardKey, Guard], now: float) -> None:
        """Record what the store now has, and apply its reply to the guards."""
        # The store had no row of this process: it is new, it was silent for a day, or the store was restored from a
        # backup. The earlier reports are no longer in the store, so the next beat must report every guard, not only the
        # changed ones.
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
        """Apply the other processes' reports to a new guard, before its first call."""
        if self.heard is not None:
            watched = self._watched[key] = Watched(guard, self._clock.monotonic(), is_new=True)
            watched.heed(guard, self.heard.opinions.get(key), self._clock.monotonic())
            watched.let_probe(guard, is_governed=self._shares_probes(key))

    def note_check(self, check: Check) -> None:
        """Report an unbilled check to the other processes, if this process leads."""
        if self.leads:
            self.checks.note(check)
            self.ring()

    def _lose(self) -> None:
        """The store is unreachable: forget the other processes' reports, because they may no longer be true."""
        # If they were kept, they would do harm: a guard that stays primed opens at its first failure, and one whose
        # units ended with the fleet would never probe again, so its breaker would stay open until the store is back.
        self.heard = None
        for _, guard in self._guards():
            release(guard)
        for watched in self._watched.values():
            watched.unit.give_up()

    # The wake event is cleared last: changes during the short sleep are part of the beat that follows. If it were
    # cleared earlier, they would cause one more beat right after it, and many changes in a row would cause a beat every
    # `RUNG_S`.
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
        """Beat now, because something has changed."""
        if self._loop is not None and not self._loop.is_closed():
            self._wake.set()

    def on_event(self, event: Event) -> None:
        """A breaker's change of phase causes a beat."""
        if isinstance(event, (CircuitOpened, CircuitHalfOpened, CircuitClosed, OverrideSet)):
            self.ring()

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────

    async def leave(self) -> None:
        """This process is closing: it gives up the lead and removes its row."""
        self._forget()
        try:
            await self._store.roll_call.leave()
        except StoreUnavailable:
            pass  # its row soon counts as silent, and is deleted after a day

    def forget_parent(self) -> None:
        """In a forked child: report as a separate process, under another name."""
        self._loop, self._wake = None, asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        self.leadership.resign()
        self._lose()
        self._watched.clear()
