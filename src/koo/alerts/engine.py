"""Decides when an alert begins, fires, recovers and ends, and which alerts notify people. Time is an argument, so the
module is pure.

The unit is an episode. It is *pending* until its condition has held for its kind's `pending_s`, and is forgotten if the
condition is gone before that. Then it is *firing*. When the condition is gone, it is *recovering* for `recovering_s`
and then *resolved*. If the condition returns while it recovers, the same episode fires again; otherwise a condition
that comes and goes would notify people each time. A breaker that goes from open to half open and back is one episode
too. The alert about its recovery keeps it open (`kept_by`) and is listed instead of it. A greater alert that includes
it (`also`) does the same.

An episode of a process that has gone is *restored*. The new process knows nothing about it yet: its breakers are
closed, and its probes have not run. If the episode ended because nothing was found, each restart would report every
outage as over. So it ends only when this process has the evidence that its kind requires (`evidence`) and has found
nothing. Until then it *waits*, and lesser alerts that are found become part of it.

People are notified once of a firing alert, and of its end if they were notified of its beginning. A silence, an
acknowledgement, or an episode that explains it (`inhibited_by`) in the same component or in one that it depends on
suppresses the notification, but nothing is lost from the history.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from koo.alerts.findings import Finding
from koo.alerts.kinds import KINDS, UNKNOWN, AlertKind
from koo.episodes import Acknowledgement, Episode, Phase, Silence
from koo.options import DAY_S

LISTED_AFTER_END_S = 900.0
UNSEEN_S_MAX = DAY_S
"""Without any evidence a restored episode ends after a day: nothing has shown in that time that it continues."""
SETTLES_S = 60.0
"""A consequence may outlast its cause, because its rule looks back a minute (callers turned away, for example)."""


class Moment(NamedTuple):
    """The current time: `wall` for people, which may jump, and `monotonic` for durations."""

    wall: float
    monotonic: float


HasLooked = Callable[[str, str], bool]
"""Whether this process has the evidence that a kind requires before its absence for a component counts."""


def outer_component(component: str) -> tuple[str, ...]:
    """The component of which this one is a part: `ai:claude` for `ai:claude/opus`."""
    outer, slash, _ = component.partition("/")
    return (outer,) if slash else ()


@dataclass(slots=True)
class Seen:
    """An open episode, and this process's own knowledge about it.

    `since` is when its phase began. `stands_in` is the fingerprint of the alert that is listed instead of it, and
    `inhibited_by` that of the alert that explains it.
    """

    episode: Episode
    since: Moment
    is_found: bool = True
    restored_at: float | None = None  # None once this process has found it too, or has the evidence
    lesser: tuple[Finding, ...] = ()  # its parts that are found while it waits
    stands_in: str = ""
    inhibited_by: str = ""
    inhibited_at: float | None = None
    reminders: int = 0

    @property
    def waits(self) -> bool:
        """Whether only an earlier process found the episode, and this one has no evidence yet."""
        return self.restored_at is not None

    @property
    def is_firing(self) -> bool:
        """Whether the episode is firing and its condition holds now."""
        return self.episode.phase == "firing" and self.is_found


@dataclass(slots=True)
class Alerts:
    """The open episodes, and those that ended recently.

    `outer` returns the components that a component depends on. `kinds` is the table of kinds.
    """

    outer: Callable[[str], Collection[str]] = outer_component
    kinds: Mapping[str, AlertKind] = field(default_factory=lambda: KINDS)
    silences: tuple[Silence, ...] = ()
    _active: dict[str, Seen] = field(default_factory=dict)
    _ended: list[Episode] = field(default_factory=list)

    @property
    def lasting(self) -> list[Episode]:
        """All open episodes, with their latest messages."""
        return [seen.episode for seen in self._active.values()]

    @property
    def seen(self) -> list[Seen]:
        """All open episodes, with this process's knowledge about each."""
        return list(self._active.values())

    def ended(self, now: Moment) -> list[Episode]:
        """Episodes that ended within the last fifteen minutes and whose end is news."""
        return [one for one in self._ended if _is_news(one, now.wall)]

    # ── restored episodes ─────────────────────────────────────────────────────────────────────────────────────

    def restore(self, episodes: Iterable[Episode], now: Moment) -> None:
        """Continue the episodes of a process that has gone."""
        for episode in episodes:
            if episode.phase == "resolved":
                self._remember(episode)
            elif episode.fingerprint not in self._active:
                self._active[episode.fingerprint] = self._restored(episode, now)
        # This is a second pass, because all of them must be known: which of two restored alerts is listed may depend on
        # one that came later in `episodes`.
        for seen in self._active.values():
            if seen.waits:
                seen.stands_in = self._kept_by(seen, ()) or self._waiting_whole(seen.episode)
        self._relate(now)

    def _restored(self, episode: Episode, now: Moment) -> Seen:
        # A pending episode keeps the time for which its condition has held. If it started from zero, an alert with a
        # pending time of a minute would never fire in a process that is restarted every fifty seconds, and that is
        # often the outage. The wall clock may have been set in between, so the time is kept within sensible bounds.
        held_s = now.wall - episode.started_at if episode.phase == "pending" else 0.0
        held_s = min(max(0.0, held_s), self._row(episode.kind).pending_s)
        since = Moment(now.wall - held_s, now.monotonic - held_s)
        return Seen(episode, since, is_found=False, restored_at=now.monotonic)

    def adopt(self, known: Episode, now: Moment, new_id: Callable[[], str]) -> Episode | None:
        """Take over the stored state: another process may have begun the episode, sent notices of it or acknowledged
        it.

        Other processes may also have ended it while this one was stopped. A current finding is then a new episode,
        which is returned to be stored.
        """
        seen = self._active.get(known.fingerprint)
        if seen is None:
            return None
        # The ids are compared because the reply may be about an episode that this process has replaced since it sent
        # the request.
        if known.phase == "resolved":
            return self._begin_anew(seen, now, new_id()) if known.id == seen.episode.id else None
        # It is firing in another process. As a pending episode it would simply be forgotten here when its condition is
        # gone; as a firing one it first has to recover.
        if seen.episode.phase == "pending" and known.fired_at is not None:
            self._enter(seen, "firing", now)
        seen.episode = replace(
            seen.episode,
            id=known.id,
            started_at=known.started_at,
            fired_at=known.fired_at,
            notified_at=known.notified_at,
            acknowledged=known.acknowledged,
        )
        return None

    def _begin_anew(self, seen: Seen, now: Moment, episode_id: str) -> Episode | None:
        if not seen.is_found:
            del self._active[seen.episode.fingerprint]
            return None
        fired_at = now.wall if seen.episode.fired_at is not None else None
        seen.episode = replace(
            seen.episode,
            id=episode_id,
            started_at=now.wall,
            fired_at=fired_at,
            notified_at=None,
            acknowledged=None,
        )
        seen.since, seen.reminders = now, 0
        return seen.episode

    def acknowledge(self, episode_id: str, acknowledged: Acknowledgement | None) -> None:
        """Set or clear an episode's acknowledgement."""
        for seen in self._active.values():
            if seen.episode.id == episode_id:
                seen.episode = replace(seen.episode, acknowledged=acknowledged)

    def trust(self, component: str) -> None:
        """Let a component's restored episodes end unless they are found again, because an operator has reset it."""
        for seen in self._active.values():
            if seen.episode.component.partition("/")[0] == component:
                seen.restored_at = None

    # ── findings ──────────────────────────────────────────────────────────────────────────────────────────────

    def step(
        self, findings: Iterable[Finding], now: Moment, has_looked: HasLooked, new_id: Callable[[], str]
    ) -> list[Episode]:
        """Process the current findings; returns the episodes that began, changed phase or ended, to be stored.

        A pending episode that is over is returned as resolved, without `fired_at`.
        """
        current = {finding.fingerprint: finding for finding in findings}
        # A part does not begin an episode of its own, but one that is already open goes on. If it ended because a
        # greater alert includes it now, people would read "resolved" in the middle of an outage that gets worse.
        parts = {**_parts_of(current.values()), **self._parts_of_waiting(current)}
        changed = []
        for key, finding in current.items():
            seen = self._active.get(key)
            if seen is not None:
                changed += self._go_on(seen, finding, now)
                seen.stands_in = parts.get(key, "")
            elif finding.begins and key not in parts:
                changed.append(self._begin(finding, now, new_id()))
        for key, seen in list(self._active.items()):
            if key not in current:
                seen.is_found = False
                changed += self._not_found(seen, now, parts.get(key, ""), current, has_looked)
        self._relate(now)
        self._ended = [one for one in self._ended if _is_news(one, now.wall)]
        return changed

    def _parts_of_waiting(self, current: Mapping[str, Finding]) -> dict[str, str]:
        """Parts of waiting episodes, whether found or restored. `_parts_of` does not find them, because the greater
        alert is only restored and no finding names it."""
        for seen in self._active.values():
            seen.lesser = ()
        parts = {}
        for finding in current.values():
            whole = self._waiting_whole(finding, current)
            if whole:
                parts[finding.fingerprint] = whole
                self._active[whole].lesser += (finding,)
        for episode in self.lasting:
            whole = self._waiting_whole(episode, current)
            if whole:
                parts[episode.fingerprint] = whole
        return parts

    def _waiting_whole(self, one: Finding | Episode, current: Collection[str] = ()) -> str:
        """The waiting episode of which this is a part; "" for an alert about recovery, which is listed itself."""
        for kind in self._row(one.kind).part_of:
            key = f"{kind}:{one.component}"
            if key not in current and self._is_unseen(key) and one.kind not in self._row(kind).kept_by:
                return key
        return ""

    def _begin(self, finding: Finding, now: Moment, episode_id: str) -> Episode:
        row = self._row(finding.kind)
        is_pending = row.pending_s > 0
        episode = Episode(
            id=episode_id,
            fingerprint=finding.fingerprint,
            type=row.severity,
            component=finding.component,
            message=finding.message,
            started_at=now.wall,
            phase="pending" if is_pending else "firing",
            fired_at=None if is_pending else now.wall,
            data=dict(finding.data),
        )
        self._active[finding.fingerprint] = Seen(episode, now)
        return episode

    def _go_on(self, seen: Seen, finding: Finding, now: Moment) -> list[Episode]:
        seen.is_found, seen.restored_at = True, None
        seen.episode = replace(seen.episode, message=finding.message, data=dict(finding.data))
        if seen.episode.phase == "pending":
            held_s = now.monotonic - seen.since.monotonic
            return self._enter(seen, "firing", now) if held_s >= self._row(finding.kind).pending_s else []
        return self._enter(seen, "firing", now) if seen.episode.phase == "recovering" else []

    def _not_found(
        self, seen: Seen, now: Moment, greater: str, current: Collection[str], has_looked: HasLooked
    ) -> list[Episode]:
        # A breaker that tests its recovery is no longer "open", so the open alert is not found. That is not its end:
        # if the test fails, the breaker opens again, and people would be notified of a second outage. While another
        # alert stands for it, the episode is kept and not listed.
        recovery = "" if greater else self._kept_by(seen, current)
        seen.stands_in = greater or recovery
        if recovery and seen.episode.phase == "firing":
            return self._enter(seen, "recovering", now)
        return self._fade(seen, now) if not seen.stands_in and self._may_end(seen, now, has_looked) else []

    def _fade(self, seen: Seen, now: Moment) -> list[Episode]:
        """Move an episode towards its end, because its condition is gone."""
        # Recovering has a minimum length in monotonic time. Without it, an error rate that crosses its threshold twice
        # a minute would notify people of a beginning and an end each time.
        phase, recovering_s = seen.episode.phase, self._row(seen.episode.kind).recovering_s
        if phase == "pending":
            return self._end(seen, now)
        if phase == "firing" and recovering_s > 0:
            return self._enter(seen, "recovering", now)
        if phase == "recovering" and now.monotonic - seen.since.monotonic < recovering_s:
            return []
        return self._end(seen, now)

    def _enter(self, seen: Seen, phase: Phase, now: Moment) -> list[Episode]:
        fired_at = seen.episode.fired_at
        if phase == "firing" and fired_at is None:
            fired_at = max(now.wall, seen.episode.started_at)
        seen.episode = replace(seen.episode, phase=phase, fired_at=fired_at)
        seen.since = now
        return [seen.episode]

    def _end(self, seen: Seen, now: Moment) -> list[Episode]:
        del self._active[seen.episode.fingerprint]
        ended = replace(seen.episode, phase="resolved", ended_at=seen.episode.end_at(now.wall))
        self._remember(ended)
        return [ended]

    def _remember(self, ended: Episode) -> None:
        if ended.fired_at is not None and self._row(ended.kind).ending is not None:
            self._ended.append(ended)

    def _may_end(self, seen: Seen, now: Moment, has_looked: HasLooked) -> bool:
        """Whether an episode that was not found may end. A restored one needs evidence that this process has looked."""
        # A process that has just started finds nothing, because it has called nothing yet. Without this, each restart
        # during an outage would notify people that the outage is over.
        if seen.restored_at is not None:
            is_old = now.monotonic - seen.restored_at >= UNSEEN_S_MAX
            if is_old or has_looked(seen.episode.kind, seen.episode.component):
                seen.restored_at = None
        return seen.restored_at is None

    # ── how they are related ──────────────────────────────────────────────────────────────────────────────────

    def _kept_by(self, seen: Seen, current: Collection[str]) -> str:
        """The alert about its recovery: found now, or restored together with it and still without evidence."""
        keys = (f"{kind}:{seen.episode.component}" for kind in self._row(seen.episode.kind).kept_by)
        return next((key for key in keys if key in current or self._is_unseen(key)), "")

    def _is_unseen(self, key: str) -> bool:
        seen = self._active.get(key)
        return seen is not None and seen.waits

    def _relate(self, now: Moment) -> None:
        for seen in self._active.values():
            seen.inhibited_by = self._inhibitor(seen.episode)
            if seen.inhibited_by:
                seen.inhibited_at = now.monotonic

    def _inhibitor(self, episode: Episode) -> str:
        """The fingerprint of the episode that explains this one, or ""."""
        # A pending cause counts too. A consequence often has a shorter pending time than its cause, and people would
        # be notified of it first, and a few seconds later of the cause.
        places = (episode.component, *self.outer(episode.component))
        keys = (f"{kind}:{place}" for kind in self._row(episode.kind).inhibited_by for place in places)
        return next((key for key in keys if key in self._active and key != episode.fingerprint), "")

    def _row(self, kind: str) -> AlertKind:
        return self.kinds.get(kind, UNKNOWN)

    # ── notifications ─────────────────────────────────────────────────────────────────────────────────────────

    def silence_of(self, episode: Episode, now: Moment) -> Silence | None:
        """The silence that covers an episode, if any."""
        covering = (one for one in self.silences if one.covers(episode.kind, episode.component, now.wall))
        return next(covering, None)

    def owed(self, now: Moment) -> list[Episode]:
        """Firing episodes of which people must still be notified."""
        return [
            seen.episode
            for seen in self._active.values()
            if seen.is_firing and seen.episode.notified_at is None and not self._is_quiet(seen, now)
        ]

    def reminders(self, now: Moment, every_s: float) -> list[tuple[Episode, int]]:
        """Critical episodes that are still firing, each with the number of its next due reminder, from 1."""
        due: list[tuple[Episode, int]] = []
        for seen in self._active.values() if every_s > 0 else ():
            episode = seen.episode
            if episode.type != "critical" or episode.notified_at is None or not seen.is_firing:
                continue
            # The number is counted from the stored time of the first notice, not from this process's start. So every
            # process, and the same one after a restart, computes the same number and the same key, and the store writes
            # each reminder once.
            number = int((now.wall - episode.notified_at) // every_s)
            if number > seen.reminders and not self._is_quiet(seen, now):
                due.append((episode, number))
        return due

    def reminded(self, fingerprint: str, number: int) -> None:
        """Record that this reminder is written; the next one has a higher number."""
        self._active[fingerprint].reminders = number

    def notified(self, fingerprint: str, at: float) -> None:
        """Record that this process notified people on its own, because the store is unreachable."""
        seen = self._active[fingerprint]
        seen.episode = replace(seen.episode, notified_at=at)

    def _is_quiet(self, seen: Seen, now: Moment) -> bool:
        episode = seen.episode
        acknowledged = episode.acknowledged is not None and episode.acknowledged.holds(now.wall)
        return acknowledged or self.settles(seen, now) or self.silence_of(episode, now) is not None

    def settles(self, seen: Seen, now: Moment) -> bool:
        """Whether the episode is inhibited, or was until a moment ago."""
        # A consequence fades more slowly than its cause, because its rule looks back a minute. Without this time it
        # would notify people just after the end of the outage that explains it.
        return seen.inhibited_at is not None and (
            bool(seen.inhibited_by) or now.monotonic - seen.inhibited_at < SETTLES_S
        )


def _parts_of(findings: Iterable[Finding]) -> dict[str, str]:
    """The parts named by findings: each part's fingerprint, with the fingerprint of the finding that includes it."""
    return {
        f"{kind}:{finding.component}": finding.fingerprint
        for finding in findings
        for kind in finding.data.get("also", ())
    }


def _is_news(ended: Episode, wall: float) -> bool:
    return ended.ended_at is not None and wall - LISTED_AFTER_END_S < ended.ended_at
