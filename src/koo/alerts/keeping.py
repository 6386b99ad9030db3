"""Keeps this process's alerts in the state store, together with those of other processes.

Each process has its own breakers and probes, so each finds its own alerts. It stores them under a lease. Processes that
find the same thing share one episode: people are notified of it once, and it ends when no process sees it any more
(`koo.storage.episodes`). An open episode is written again every few seconds, which renews the lease and returns what
operators did about it. A process that closes releases its episodes; those of a process that died become free when the
lease ends. The next process that observes the component takes them over, which may be the same service after a restart.
An episode whose component is no longer configured, so that no process observes it, ends after a day.

While the store is unreachable nothing is lost, because changes are written when it is back. But people must be notified
in time, so a process that cannot reach the others notifies on its own. Notifying twice is better than not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from koo.alerts.engine import LISTED_AFTER_END_S, Alerts, HasLooked, Moment, outer_component
from koo.alerts.findings import Finding
from koo.alerts.views import alert_views
from koo.clock import Clock
from koo.episodes import Acknowledgement, Episode, Episodes, Silence, Silences, in_ms, new_id, notice_of
from koo.monitoring.shapes import Alert
from koo.notices import Notice, Notices
from koo.options import DAY_S
from koo.storage.base import StoreUnavailable

RENEW_EVERY_S = 5.0
"""A sixth of a sighting's lease, so a few renewals may fail before other processes consider the episode orphaned."""
EXPIRES_AFTER_S = DAY_S
ENDED_KEPT_S = 90 * DAY_S
UNWRITTEN_MAX = 1000
"""Bounds the memory used during an outage of the store, in which alerts come and go and cannot be written."""
NEWS_MAX = 200
ALONE_AFTER_S = 10.0
"""In a short outage of the store, processes need not each notify people: they reach it again within five seconds."""

Alone = Callable[[Sequence[Notice]], None]


class SweptStore(Protocol):
    """The parts of the store that the fleet's leader cleans up from time to time."""

    @property
    def episodes(self) -> Episodes: ...

    @property
    def silences(self) -> Silences: ...


class AlertStore(SweptStore, Protocol):
    """The parts of a store that alerts need."""

    @property
    def trouble(self) -> str | None: ...

    @property
    def notices(self) -> Notices: ...


class AlertKeeper:
    """Begins and ends alerts, and stores them. `observes` tells whether this process can observe a component.

    `outer` returns the components that a component depends on. `alone` delivers notices from this process's memory,
    without the store. `remind_every_s` is how often people are reminded of a critical alert that is still firing; 0
    means never. `has_channel` tells whether this process can notify people.
    """

    def __init__(
        self,
        store: AlertStore,
        clock: Clock,
        observes: Callable[[str], bool],
        *,
        alone: Alone,
        outer: Callable[[str], Collection[str]] = outer_component,
        remind_every_s: float = 0.0,
        has_channel: bool = True,
    ) -> None:
        self._store = store
        self._clock = clock
        self._observes = observes
        self._alone = alone
        self._remind_every_s = remind_every_s
        self.has_channel = has_channel
        self.alerts = Alerts(outer)
        self._knows_news = False
        self._unwritten: dict[str, Episode] = {}
        self._said: set[str] = set()  # keys of notices that this process delivered itself
        self._away_since: float | None = None
        self._renew_at = 0.0

    def views(self) -> list[Alert]:
        """Open alerts, the worst first, then those that ended within fifteen minutes. Changes nothing."""
        return alert_views(self.alerts, self.now, has_channel=self.has_channel)

    def doubted(self) -> set[str]:
        """Components with alerts of an earlier process for which this one has no evidence yet."""
        doubted = {one.episode.component for one in self.alerts.seen if one.waits}
        return {component.partition("/")[0] for component in doubted}

    @property
    def now(self) -> Moment:
        """The current time."""
        # The time is rounded to milliseconds, as in the store. Otherwise one episode would have two start times, one
        # here and one in the processes that read it.
        return Moment(in_ms(self._clock.wall()), self._clock.monotonic())

    # ── each second ───────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """Continue the last process's alerts. Raises `StoreUnavailable`, and continues them when the store is back."""
        self._renew_at = self._clock.monotonic() + RENEW_EVERY_S
        await self._refresh(self.now)

    def see(self, findings: Iterable[Finding], has_looked: HasLooked) -> Moment:
        """Begin and end alerts by the current findings. The next `look` writes them and notifies people."""
        now = self.now
        # Changes are kept by id, so an episode that changes twice before it is written is written once, in its last
        # phase. In a long outage of the store the oldest changes are dropped: memory must not grow with the outage.
        for episode in self.alerts.step(findings, now, has_looked, new_id):
            self._unwritten[episode.id] = episode
        while len(self._unwritten) > UNWRITTEN_MAX:
            del self._unwritten[next(iter(self._unwritten))]
        return now

    async def look(self, findings: Iterable[Finding], has_looked: HasLooked) -> None:
        """Process the current findings and notify people. Does not raise while the store is unreachable."""
        now = self.see(findings, has_looked)
        if await self._write(now):
            self._away_since = None
            return
        self._away_since = now.monotonic if self._away_since is None else self._away_since
        if now.monotonic - self._away_since >= ALONE_AFTER_S:
            self._notify_alone(now)

    async def _write(self, now: Moment) -> bool:
        """Write what is due; returns False while the store is unreachable."""
        if self._store.trouble is not None:
            return False
        is_due = now.monotonic >= self._renew_at
        with suppress(StoreUnavailable):
            if is_due:
                await self._refresh(now)
                self._renew_at = now.monotonic + RENEW_EVERY_S
            # Changes are written before people are notified: `_keep` returns what other processes have done, so this
            # process does not claim a notice for an episode that is acknowledged, or notified, or already over.
            await self._keep(self.alerts.lasting if is_due else ())
            await self._notify(now)
            await self._remind(now)
            return True
        return False

    async def _refresh(self, now: Moment) -> None:
        """Read silences, and take over orphaned episodes of components that this process observes.

        The first time, also read the episodes that ended recently.
        """
        episodes = self._store.episodes
        if not self._knows_news:
            # The end is a day ahead, because another machine's clock may be ahead of this one.
            since, later = now.wall - LISTED_AFTER_END_S, now.wall + DAY_S
            recent = await episodes.history(since, later, limit=NEWS_MAX)
            self.alerts.restore((one for one in recent if one.ended_at is not None), now)
            self._knows_news = True
        self.alerts.silences = tuple(await self._store.silences.lasting(now.wall))
        orphaned = [one for one in await episodes.orphaned() if self._observes(one.component)]
        if orphaned:
            self.alerts.restore(await episodes.take(*orphaned), now)

    async def _keep(self, lasting: Iterable[Episode]) -> None:
        """Write pending changes and renew open episodes. After a failure the next `look` tries again."""
        # These are copies, because `see` may run while this waits for the store. At the end only the changes that were
        # written are removed; an episode that has changed since has a new object under the same id, and stays.
        unwritten, said = dict(self._unwritten), frozenset(self._said)
        left = [one for one in unwritten.values() if one.phase == "resolved"]
        if left:
            await self._store.episodes.leave(*left, said=said)
        seen = {one.id: one for one in (*unwritten.values(), *lasting) if one.phase != "resolved"}
        await self._adopt(seen.values(), said)
        self._unwritten = {key: one for key, one in self._unwritten.items() if one is not unwritten.get(key)}
        self._said -= said

    async def _adopt(self, seen: Collection[Episode], said: Collection[str] = ()) -> None:
        now = self.now
        for known in await self._store.episodes.keep(*seen, said=said) if seen else ():
            anew = self.alerts.adopt(known, now, new_id)
            if anew is not None:
                self._unwritten[anew.id] = anew

    async def _notify(self, now: Moment) -> None:
        """Claim the notices that are due. The store writes each for the first process that claims it."""
        owed = self.alerts.owed(now)
        if not owed:
            return
        # An operator may have silenced or acknowledged an episode a moment ago, in another process. Both are read again
        # before the claim, because a claim cannot be taken back: the first `_adopt` brings acknowledgements, and the
        # second one claims only what is still due then.
        self.alerts.silences = tuple(await self._store.silences.lasting(now.wall))
        await self._adopt(owed)
        await self._adopt([replace(one, notified_at=now.wall) for one in self.alerts.owed(now)])

    async def _remind(self, now: Moment) -> None:
        # A reminder is marked only after it was written. If the store fails in between, the next attempt writes the
        # same key again, which changes nothing.
        for episode, number in self.alerts.reminders(now, self._remind_every_s):
            await self._store.notices.put(notice_of("reminder", episode, number))
            self.alerts.reminded(episode.fingerprint, number)

    def _notify_alone(self, now: Moment) -> None:
        """Deliver firing and resolved alerts and reminders without the store. Other processes may do the same."""
        # Each notice is delivered once: its key stays in `_said` until the store is back. Then `_keep` passes the keys
        # along, so the store records the claim without writing the same notice for another process to send.
        notices = []
        for episode in self.alerts.owed(now):
            self.alerts.notified(episode.fingerprint, now.wall)
            self._unwritten[episode.id] = replace(episode, notified_at=now.wall)
            notices.append(notice_of("firing", episode))
        ended = [one for one in self._unwritten.values() if one.phase == "resolved"]
        notices += [notice_of("resolved", one) for one in ended if one.notified_at is not None]
        for episode, number in self.alerts.reminders(now, self._remind_every_s):
            self.alerts.reminded(episode.fingerprint, number)
            notices.append(notice_of("reminder", episode, number))
        unsaid = [one for one in notices if one.key not in self._said]
        self._said.update(one.key for one in unsaid)
        if unsaid:
            self._alone(unsaid)

    # ── clean-up ──────────────────────────────────────────────────────────────────────────────────────────────

    async def sweep(self, store: SweptStore) -> None:
        """End episodes that no process observes any more, and delete old ones. Raises `StoreUnavailable`."""
        wall = self._clock.wall()
        await store.episodes.expire(wall - EXPIRES_AFTER_S)
        await store.episodes.prune(wall - ENDED_KEPT_S)
        await store.silences.prune(wall - ENDED_KEPT_S)

    async def finish(self) -> None:
        """Write pending changes and let other processes take over. Raises `StoreUnavailable`."""
        if self._unwritten or self.alerts.lasting:
            await self._keep(self.alerts.lasting)
            await self._store.episodes.release()

    # ── operators' acts ───────────────────────────────────────────────────────────────────────────────────────

    async def acknowledge(self, episode_id: str, acknowledged: Acknowledgement | None) -> Episode | None:
        """Set or clear an open episode's acknowledgement, in every process. Raises `StoreUnavailable`."""
        episode = await self._store.episodes.acknowledge(episode_id, acknowledged)
        self.alerts.acknowledge(episode_id, acknowledged)
        return episode

    async def silence(self, silence: Silence) -> None:
        """Add a silence, in every process. Raises `StoreUnavailable`."""
        await self._store.silences.add(silence)
        self.alerts.silences = (*self.alerts.silences, silence)

    async def end_silence(self, silence_id: str) -> Silence | None:
        """End a silence early; returns None if no such silence is in force. Raises `StoreUnavailable`."""
        ended = await self._store.silences.end(silence_id, self._clock.wall())
        self.alerts.silences = tuple(one for one in self.alerts.silences if one.id != silence_id)
        return ended
