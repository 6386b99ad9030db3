"""The alerts of this process, kept in the state store together with those of other processes.

Breakers and probes are each process's own, so each process finds its own alerts. It stores what it finds under a lease,
and if another process has found the same thing, they share one episode: people are notified of it once, and it ends
when no process sees it any more (`koo.storage.episodes`). An open episode is written again every few seconds, which
renews the lease and returns what operators did about it. A process that closes releases its episodes, and those of a
process that died are free when the lease ends. The next process that observes the component takes them over: the same
service started again, or another process. An episode that no process observes any more, because its component is no
longer configured, ends after a day.

While the store is away nothing is lost: changes are written when it is back. But people have to be notified meanwhile,
so a process that cannot reach the others notifies on its own: twice is better than never.
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
EXPIRES_AFTER_S = DAY_S
ENDED_KEPT_S = 90 * DAY_S
UNWRITTEN_MAX = 1000
NEWS_MAX = 200
ALONE_AFTER_S = 10.0
"""If a store is away only for a moment, processes need not each notify: it is found again within five seconds."""

Alone = Callable[[Sequence[Notice]], None]


class SweptStore(Protocol):
    """What the leader of the fleet sweeps now and then."""

    @property
    def episodes(self) -> Episodes: ...

    @property
    def silences(self) -> Silences: ...


class AlertStore(SweptStore, Protocol):
    """What alerts need of a store."""

    @property
    def trouble(self) -> str | None: ...

    @property
    def notices(self) -> Notices: ...


class AlertKeeper:
    """Lets alerts begin and end, and stores them. `observes`: whether this process can observe a component at all.

    `outer` returns what a component depends on. `alone` delivers notices from this process's memory, without the store.
    `remind_every_s`: how often people are reminded of a critical alert that still fires; 0: never. `has_channel`:
    whether this process can notify people at all.
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
        """What holds now, the worst first, then what ended within fifteen minutes. Changes nothing."""
        return alert_views(self.alerts, self.now, has_channel=self.has_channel)

    def doubted(self) -> set[str]:
        """Components with alerts of an earlier process that this one has neither found nor looked for yet."""
        doubted = {one.episode.component for one in self.alerts.seen if one.waits}
        return {component.partition("/")[0] for component in doubted}

    @property
    def now(self) -> Moment:
        """For people and for durations."""
        # Rounded as the store rounds it: otherwise one episode would have two beginnings, here and in other processes.
        return Moment(in_ms(self._clock.wall()), self._clock.monotonic())

    # ── each second ───────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """Continue where the last process stopped. Raises `StoreUnavailable`; then later, when the store is back."""
        self._renew_at = self._clock.monotonic() + RENEW_EVERY_S
        await self._refresh(self.now)

    def see(self, findings: Iterable[Finding], has_looked: HasLooked) -> Moment:
        """Let alerts begin and end by what holds now. The next look writes them and notifies people."""
        now = self.now
        for episode in self.alerts.step(findings, now, has_looked, new_id):
            self._unwritten[episode.id] = episode
        while len(self._unwritten) > UNWRITTEN_MAX:
            del self._unwritten[next(iter(self._unwritten))]
        return now

    async def look(self, findings: Iterable[Finding], has_looked: HasLooked) -> None:
        """Take in what holds now, and notify people of it. Does not raise when the store is away."""
        now = self.see(findings, has_looked)
        if await self._write(now):
            self._away_since = None
            return
        self._away_since = now.monotonic if self._away_since is None else self._away_since
        if now.monotonic - self._away_since >= ALONE_AFTER_S:
            self._notify_alone(now)

    async def _write(self, now: Moment) -> bool:
        """Write what is due; False while the store is away."""
        if self._store.trouble is not None:
            return False
        is_due = now.monotonic >= self._renew_at
        with suppress(StoreUnavailable):
            if is_due:
                await self._refresh(now)
                self._renew_at = now.monotonic + RENEW_EVERY_S
            await self._keep(self.alerts.lasting if is_due else ())
            await self._notify(now)
            await self._remind(now)
            return True
        return False

    async def _refresh(self, now: Moment) -> None:
        """Read silences, and take over orphaned episodes of components that this process observes.

        The first time, also of what ended recently.
        """
        episodes = self._store.episodes
        if not self._knows_news:
            since, later = (
                now.wall - LISTED_AFTER_END_S,
                now.wall + DAY_S,
            )  # another machine's clock may be ahead
            recent = await episodes.history(since, later, limit=NEWS_MAX)
            self.alerts.restore((one for one in recent if one.ended_at is not None), now)
            self._knows_news = True
        self.alerts.silences = tuple(await self._store.silences.lasting(now.wall))
        orphaned = [one for one in await episodes.orphaned() if self._observes(one.component)]
        if orphaned:
            self.alerts.restore(await episodes.take(*orphaned), now)

    async def _keep(self, lasting: Iterable[Episode]) -> None:
        """Write what is not written yet, and renew open episodes; after a failure the next look tries again."""
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
        """Claim what people are to be notified of; the store writes the notice for the first process that does."""
        owed = self.alerts.owed(now)
        if not owed:
            return
        # An episode that an operator silenced or acknowledged a moment ago in another process must stay quiet.
        self.alerts.silences = tuple(await self._store.silences.lasting(now.wall))
        await self._adopt(owed)
        await self._adopt([replace(one, notified_at=now.wall) for one in self.alerts.owed(now)])

    async def _remind(self, now: Moment) -> None:
        for episode, number in self.alerts.reminders(now, self._remind_every_s):
            await self._store.notices.put(notice_of("reminder", episode, number))
            self.alerts.reminded(episode.fingerprint, number)

    def _notify_alone(self, now: Moment) -> None:
        """Deliver without the store: what fires or has ended, and reminders. Other processes may do the same."""
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

    # ── now and then ──────────────────────────────────────────────────────────────────────────────────────────

    async def sweep(self, store: SweptStore) -> None:
        """End what no process observes any more, and forget what ended long ago. Raises `StoreUnavailable`."""
        wall = self._clock.wall()
        await store.episodes.expire(wall - EXPIRES_AFTER_S)
        await store.episodes.prune(wall - ENDED_KEPT_S)
        await store.silences.prune(wall - ENDED_KEPT_S)

    async def finish(self) -> None:
        """Write what is not written, and let others take over. Raises `StoreUnavailable`."""
        if self._unwritten or self.alerts.lasting:
            await self._keep(self.alerts.lasting)
            await self._store.episodes.release()

    # ── what operators do ─────────────────────────────────────────────────────────────────────────────────────

    async def acknowledge(self, episode_id: str, acknowledged: Acknowledgement | None) -> Episode | None:
        """Set or clear an open episode's acknowledgement, in every process. Raises `StoreUnavailable`."""
        episode = await self._store.episodes.acknowledge(episode_id, acknowledged)
        self.alerts.acknowledge(episode_id, acknowledged)
        return episode

    async def silence(self, silence: Silence) -> None:
        """Silence what it matches, in every process. Raises `StoreUnavailable`."""
        await self._store.silences.add(silence)
        self.alerts.silences = (*self.alerts.silences, silence)

    async def end_silence(self, silence_id: str) -> Silence | None:
        """End a silence early; returns None if no such silence is in force. Raises `StoreUnavailable`."""
        ended = await self._store.silences.end(silence_id, self._clock.wall())
        self.alerts.silences = tuple(one for one in self.alerts.silences if one.id != silence_id)
        return ended
