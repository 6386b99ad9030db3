"""The alerts of this process, kept in the state store beside those of others.

Breakers and probes are each process's own, so alerts are too: an episode belongs to the process that found it, and no
other one ends it. What lasts is written again every few seconds, which renews its lease. A process that closes lets
go of its episodes; one that dies is found out when the lease ends. Whoever then can see the part in question takes the
episode over, under its old time: the next process of a service that was started again, or another one beside it. What
nobody can see any more, because it is no longer configured, ends after a day.

A store that is away loses nothing: what began or ended meanwhile is written when it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from koo.alerts.engine import LISTED_AFTER_END_S, Alerts, Episode
from koo.alerts.rules import Finding
from koo.clock import Clock
from koo.monitoring.shapes import Alert
from koo.options import DAY_S
from koo.storage import episodes
from koo.storage.base import StoreUnavailable
from koo.storage.episodes import Free
from koo.storage.store import SqlStore

LOOK_ROUND_EVERY_S = 5.0
EXPIRES_AFTER_S = DAY_S
KEPT_S = 90 * DAY_S
UNWRITTEN_MAX = 1000
FIELDS = ("fingerprint", "type", "component", "message", "started_at", "ended_at", "data")


class Lookout:
    """Lets alerts begin and end, and keeps them. `sees`: can this process see a component at all?"""

    def __init__(self, store: SqlStore, clock: Clock, sees: Callable[[str], bool]) -> None:
        self._store = store
        self._clock = clock
        self._sees = sees
        self._alerts = Alerts()
        self._knows_news = False
        self._unwritten: dict[tuple[str, float], Episode] = {}
        self._round_at = 0.0

    def views(self) -> list[Alert]:
        """What holds now, the worst first, then what ended within fifteen minutes. Changes nothing."""
        return self._alerts.views(self._clock.wall())

    async def begin(self) -> None:
        """Go on where the last process stopped. Raises `StoreUnavailable`; then it is done when the store is back."""
        self._round_at = self._clock.monotonic() + LOOK_ROUND_EVERY_S
        await self._look_round()

    async def look(self, findings: Iterable[Finding]) -> None:
        """Take in what holds now. Never raises for a store that is away."""
        for episode in self._alerts.step(findings, self._clock.wall()):
            self._unwritten[episode.fingerprint, episode.started_at] = episode
        while len(self._unwritten) > UNWRITTEN_MAX:
            del self._unwritten[next(iter(self._unwritten))]
        now = self._clock.monotonic()
        is_due = now >= self._round_at
        if is_due:
            self._round_at = now + LOOK_ROUND_EVERY_S
        if self._store.trouble is None and (is_due or self._unwritten):
            with suppress(StoreUnavailable):
                await self._write(self._alerts.lasting if is_due else [])
                if is_due:
                    await self._look_round()

    async def sweep(self) -> None:
        """End what nobody sees any more, and forget what ended long ago. Raises `StoreUnavailable`."""
        wall = self._clock.wall()
        await self._store.episodes.expire(wall - EXPIRES_AFTER_S)
        await self._store.episodes.prune(wall - KEPT_S)

    async def finish(self) -> None:
        """Write what is not written, and let others take over. Raises `StoreUnavailable`."""
        if self._unwritten or self._alerts.lasting:
            await self._write(self._alerts.lasting)
            await self._store.episodes.release()

    async def _write(self, lasting: Iterable[Episode]) -> None:
        """What is not written yet and what lasts; who fails to write it tries again at the next look."""
        unwritten = dict(self._unwritten)
        chosen = {(one.fingerprint, one.started_at): one for one in lasting} | unwritten
        if not chosen:
            return
        await self._store.episodes.save(*map(_kept, chosen.values()))
        for key, episode in unwritten.items():
            if self._unwritten.get(key) is episode:
                del self._unwritten[key]

    async def _look_round(self) -> None:
        """Take over what nobody else sees; at first also what ended a short while ago, for the list."""
        if not self._knows_news:
            recent = await self._store.episodes.load_recent(self._clock.wall() - LISTED_AFTER_END_S)
            self._alerts.restore(_alert(one) for one in recent if one.ended_at is not None)
            self._knows_news = True
        free = [one for one in await self._store.episodes.load_free() if self._wants(one)]
        if free:
            self._alerts.restore(map(_alert, await self._store.episodes.take(free)))

    def _wants(self, free: Free) -> bool:
        return self._sees(free.episode.component)


def _kept(episode: Episode) -> episodes.Episode:
    return episodes.Episode(**{name: getattr(episode, name) for name in FIELDS})


def _alert(episode: episodes.Episode) -> Episode:
    return Episode(**{name: getattr(episode, name) for name in FIELDS})
