"""The alerts of this process, kept in the state store beside those of other processes.

Breakers and probes are each process's own, so alerts are too: an episode belongs to the process that found it, and no
other one ends it. What lasts is written again every few seconds, which renews its lease. A process that closes releases
its episodes; those of a process that died are orphaned when the lease ends. The next process that observes the
component takes an orphaned episode over, under its old time: the same service started again, or another process beside
it. If no process observes the component any more, because it is no longer configured, the episode ends after a day.

While the store is away nothing is lost: what began or ended meanwhile is written when it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from koo.alerts.engine import LISTED_AFTER_END_S, Alerts
from koo.alerts.rules import Finding
from koo.clock import Clock
from koo.monitoring.shapes import Alert
from koo.options import DAY_S
from koo.storage.base import Episode, Store, StoreUnavailable

RENEW_EVERY_S = 5.0
EXPIRES_AFTER_S = DAY_S
ENDED_KEPT_S = 90 * DAY_S
UNWRITTEN_MAX = 1000


class AlertKeeper:
    """Lets alerts begin and end, and keeps them. `observes`: can this process observe a component at all?"""

    def __init__(self, store: Store, clock: Clock, observes: Callable[[str], bool]) -> None:
        self._store = store
        self._clock = clock
        self._observes = observes
        self._alerts = Alerts()
        self._knows_news = False
        self._unwritten: dict[tuple[str, float], Episode] = {}
        self._renew_at = 0.0

    def views(self) -> list[Alert]:
        """What holds now, the worst first, then what ended within fifteen minutes. Changes nothing."""
        return self._alerts.views(self._clock.wall())

    async def begin(self) -> None:
        """Go on where the last process stopped. Raises `StoreUnavailable`; then that is done when the store is back."""
        self._renew_at = self._clock.monotonic() + RENEW_EVERY_S
        await self._take_over()

    async def look(self, findings: Iterable[Finding]) -> None:
        """Take in what holds now. Does not raise when the store is away."""
        for episode in self._alerts.step(findings, self._clock.wall()):
            self._unwritten[episode.fingerprint, episode.started_at] = episode
        while len(self._unwritten) > UNWRITTEN_MAX:
            del self._unwritten[next(iter(self._unwritten))]
        now = self._clock.monotonic()
        is_due = now >= self._renew_at
        if is_due:
            self._renew_at = now + RENEW_EVERY_S
        if self._store.trouble is None and (is_due or self._unwritten):
            with suppress(StoreUnavailable):
                await self._write(self._alerts.lasting if is_due else [])
                if is_due:
                    await self._take_over()

    async def sweep(self) -> None:
        """End what no process observes any more, and forget what ended long ago. Raises `StoreUnavailable`."""
        wall = self._clock.wall()
        await self._store.episodes.expire(wall - EXPIRES_AFTER_S)
        await self._store.episodes.prune(wall - ENDED_KEPT_S)

    async def finish(self) -> None:
        """Write what is not written, and let others take over. Raises `StoreUnavailable`."""
        if self._unwritten or self._alerts.lasting:
            await self._write(self._alerts.lasting)
            await self._store.episodes.release()

    async def _write(self, lasting: Iterable[Episode]) -> None:
        """Write what is not written yet, and renew what lasts; after a failure the next look tries again."""
        unwritten = dict(self._unwritten)
        chosen = {(one.fingerprint, one.started_at): one for one in lasting} | unwritten
        if not chosen:
            return
        await self._store.episodes.save(*chosen.values())
        for key, episode in unwritten.items():
            # A look during the write may have ended it: that newer version is not written yet.
            if self._unwritten.get(key) is episode:
                del self._unwritten[key]

    async def _take_over(self) -> None:
        """Take over orphaned episodes of what this process observes; the first time, list what ended recently too."""
        if not self._knows_news:
            recent = await self._store.episodes.load_recent(self._clock.wall() - LISTED_AFTER_END_S)
            self._alerts.restore(one for one in recent if one.ended_at is not None)
            self._knows_news = True
        orphaned = [
            one for one in await self._store.episodes.load_orphaned() if self._observes(one.episode.component)
        ]
        if orphaned:
            self._alerts.restore(await self._store.episodes.take(orphaned))
