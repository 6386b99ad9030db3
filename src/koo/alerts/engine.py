"""When an alert begins and when it ends.

The unit is an episode: it begins with the first finding of its kind about a part, goes on for as long as the finding
holds, and ends once. A breaker that goes from open to half open and back is one episode of "circuit open": while
recovery is tested the alarm is kept, but shown as "in recovery", and only closing ends it. What ended
is listed as information for fifteen minutes.

`step` returns the episodes that began or ended, to be kept; `restore` takes over those of a process that is gone, so
that a restart neither forgets a fire nor reports it as new. The process that takes them over knows nothing of them yet:
its breakers are closed and its probes have not looked. So what was restored does not end before everything had the time
to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from koo.alerts.kinds import ENDINGS, KINDS
from koo.alerts.rules import Finding
from koo.clock import iso
from koo.monitoring.shapes import Alert, AlertData
from koo.storage.base import Episode

LISTED_AFTER_END_S = 900.0
RESTORED_KEPT_S = 60.0
"""As long as the usual time between two health checks: a restart is no recovery."""

RANK = {"critical": 0, "warning": 1, "info": 2}


class Alerts:
    """The episodes that last, and the news of those that ended a short while ago."""

    def __init__(self) -> None:
        self._active: dict[str, Episode] = {}
        self._news: list[Episode] = []
        self._doubles: list[Episode] = []
        # Restored, and not found by this process yet; when it may end, or None: from the next step on that is counted.
        self._unseen: dict[str, float | None] = {}

    @property
    def lasting(self) -> list[Episode]:
        """Everything that has begun and not ended, with its latest message."""
        return list(self._active.values())

    def restore(self, episodes: Iterable[Episode]) -> None:
        """Go on with what an earlier process knew; what no longer holds ends `RESTORED_KEPT_S` after the next step.

        Of several that last with the same fingerprint the oldest one goes on. The others end in silence; otherwise they
        would be restored again and again.
        """
        for episode in episodes:
            if episode.ended_at is None:
                self._take_over(episode)
            elif episode.type == "info":
                self._news.append(episode)

    def _take_over(self, episode: Episode) -> None:
        known = self._active.get(episode.fingerprint)
        if known is None:
            self._active[episode.fingerprint] = episode
            self._unseen[episode.fingerprint] = None
        elif episode.started_at < known.started_at:
            newest = replace(episode, message=known.message, data=known.data)
            self._active[episode.fingerprint] = newest
            self._doubles.append(known)
        elif episode.started_at > known.started_at:
            self._doubles.append(episode)

    def step(self, findings: Iterable[Finding], now: float) -> list[Episode]:
        """Take in what holds now (wall seconds); returns the episodes that began or ended, to be kept."""
        current = {finding.fingerprint: finding for finding in findings}
        changed = [replace(double, ended_at=now) for double in self._doubles]
        self._doubles = []
        changed += [
            self._begin(finding, now)
            for key, finding in current.items()
            if finding.begins and key not in self._active
        ]
        for key in current:
            self._unseen.pop(key, None)
        for key, episode in list(self._active.items()):
            if key in current:
                newest = current[key]
                self._active[key] = replace(episode, message=newest.message, data=dict(newest.data))
            elif not _is_recovering(episode, current) and not self._may_be_unseen(key, now):
                changed.extend(self._end(episode, now))
        self._news = [news for news in self._news if _is_listed(news, now)]
        return changed

    def _may_be_unseen(self, key: str, now: float) -> bool:
        """It was restored, and this process has not had the time to look whether it still holds."""
        if key not in self._unseen:
            return False
        until = self._unseen[key]
        if until is None:
            until = self._unseen[key] = now + RESTORED_KEPT_S
        return now < until

    def _begin(self, finding: Finding, now: float) -> Episode:
        episode = Episode(
            fingerprint=finding.fingerprint,
            type=finding.severity,
            component=finding.component,
            message=finding.message,
            started_at=now,
            data=dict(finding.data),
        )
        self._active[finding.fingerprint] = episode
        return episode

    def _end(self, episode: Episode, now: float) -> list[Episode]:
        del self._active[episode.fingerprint]
        self._unseen.pop(episode.fingerprint, None)
        ended = replace(episode, ended_at=now)
        ending = ENDINGS.get(episode.kind)
        if ending is None:
            return [ended]
        data: AlertData = {"lasted_s": max(0.0, now - episode.started_at)}  # the clock may have been set back
        news = replace(
            ended,
            fingerprint=f"{ending.kind}:{ended.component}",
            type="info",
            message=ending.message,
            started_at=now,
            data=data,
        )
        self._news.append(news)
        return [ended, news]

    def views(self, now: float) -> list[Alert]:
        """What holds now, the worst first, then what ended within fifteen minutes. Changes nothing."""
        listed = [e for e in self._active.values() if not _is_recovering(e, self._active)]
        listed += [news for news in self._news if _is_listed(news, now)]
        return [_view(e) for e in sorted(listed, key=lambda e: (RANK[e.type], -e.started_at))]


def _is_recovering(episode: Episode, current: Mapping[str, object]) -> bool:
    """An open breaker that is testing its recovery has neither recovered nor failed anew."""
    row = KINDS.get(episode.kind)
    return row is not None and any(f"{kind}:{episode.component}" in current for kind in row.kept_by)


def _is_listed(news: Episode, now: float) -> bool:
    return news.ended_at is None or news.ended_at > now - LISTED_AFTER_END_S


def _view(episode: Episode) -> Alert:
    return {
        "type": episode.type,
        "component": episode.component,
        "message": episode.message,
        "timestamp": iso(episode.started_at),
        "kind": episode.kind,
        "active": episode.ended_at is None,
        "ended_at": iso(episode.ended_at),
        "data": cast(AlertData, dict(episode.data)),  # the store keeps any JSON
    }
