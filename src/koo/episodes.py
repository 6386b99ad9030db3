"""Episodes: an alert from its beginning to its end, operators' acts on it, and the protocols that store both.

An episode begins as pending. It fires when its condition has lasted long enough, is recovering while the condition is
gone but may return, and ends as resolved. It never goes back to pending: a condition that returns after the end starts
a new episode.

Each process has its own breakers and probes, so each detects a problem separately. But people are notified once: a
store has at most one active episode per fingerprint, which all processes that see the problem share.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, Protocol

from koo.events import Severity
from koo.notices import Notice, What

Phase = Literal["pending", "firing", "recovering", "resolved"]


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A person is working on an episode: `by` whom, since wall time `at`, until `until` (None: until it ends)."""

    by: str
    at: float
    until: float | None = None
    note: str = ""

    def holds(self, now: float) -> bool:
        """Whether the acknowledgement is still in force at wall time `now`."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One alert from its beginning to its end; times are wall seconds, None: not yet.

    `fingerprint` is its kind and component, `type` its severity. `fired_at` is when it had lasted long enough,
    `notified_at` when a notice to people was first due.
    """

    id: str
    fingerprint: str
    type: Severity
    component: str
    message: str
    started_at: float
    phase: Phase = "firing"
    fired_at: float | None = None
    notified_at: float | None = None
    ended_at: float | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    acknowledged: Acknowledgement | None = None

    @property
    def kind(self) -> str:
        """The rule that detected it."""
        return self.fingerprint.partition(":")[0]

    def end_at(self, now: float) -> float:
        """The episode's end if it ends now: never before its beginning, even if the clock was set back."""
        return max(now, self.started_at, self.fired_at or self.started_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """No notices of alerts that match `kind` and `component`, patterns such as `ai:*`, until wall time `ends_at`.

    `by` and `reason` are from the operator who created it at `made_at`.
    """

    id: str
    kind: str = "*"
    component: str = "*"
    made_at: float
    ends_at: float
    by: str
    reason: str

    def covers(self, kind: str, component: str, now: float) -> bool:
        """Whether the silence matches and is in force at wall time `now`."""
        return now < self.ends_at and fnmatchcase(kind, self.kind) and fnmatchcase(component, self.component)


def in_ms(wall_s: float) -> float:
    """Wall seconds as a store keeps them, in whole milliseconds."""
    return round(wall_s * 1000) / 1000


def new_id() -> str:
    """A unique id for an episode or a silence, safe in a URL path."""
    return secrets.token_hex(8)


def notice_of(what: What, episode: Episode, number: int | None = None) -> Notice:
    """The notice of an episode; `number` counts reminders.

    The key starts with the episode's id, and is the same in every process and after a restart.
    """
    return Notice(
        key=f"{episode.id}:{what}" if number is None else f"{episode.id}:{what}:{number}",
        what=what,
        fingerprint=episode.fingerprint,
        kind=episode.kind,
        severity=episode.type,
        component=episode.component,
        message=episode.message,
        started_at=episode.started_at,
        ended_at=episode.ended_at,
        data=episode.data,
    )


class Place(NamedTuple):
    """The position at which a page of the history ends."""

    started_at: float
    id: str


class Episodes(Protocol):
    """The episodes of all processes on one store. Each method raises `StoreUnavailable`.

    A process that sees an episode holds a lease on it. The episode ends when the last process has left it.
    """

    async def keep(self, *episodes: Episode, said: Collection[str] = ()) -> list[Episode]:
        """Write the episodes that this process sees, under a new lease; returns them as stored, in the same order.

        An episode that others have ended in the meantime is returned as resolved and is not written. If the fingerprint
        already has an active episode, that one continues, with its id, its beginning and its acknowledgement. The first
        process that keeps one with `notified_at` writes the notice that it is firing, unless the notice's key is in
        `said` (this process has delivered it itself).
        """
        ...

    async def leave(self, *episodes: Episode, said: Collection[str] = ()) -> None:
        """This process no longer sees these episodes. Those that no other living process sees are ended.

        If a notice of the alert was due, the notice of its end is written, unless that notice's key is in `said`. An
        episode that never fired is deleted; one that the store does not have yet is written as ended.
        """
        ...

    async def orphaned(self) -> list[Episode]:
        """Active episodes that no living process sees, oldest first."""
        ...

    async def take(self, *episodes: Episode) -> list[Episode]:
        """Take over orphaned episodes; returns those that no other process took first."""
        ...

    async def release(self) -> None:
        """Let other processes take over the episodes of this one immediately."""
        ...

    async def acknowledge(self, episode_id: str, acknowledged: Acknowledgement | None) -> Episode | None:
        """Set or clear who is working on an active episode; returns None if there is no such episode."""
        ...

    async def history(
        self, since: float, until: float, *, limit: int, after: Place | None = None
    ) -> list[Episode]:
        """Episodes that fired and were active at some time from `since` to `until`, newest beginning first.

        `after`: only those after this position.
        """
        ...

    async def expire(self, before: float) -> None:
        """End the episodes that no process has seen since wall time `before`."""
        ...

    async def prune(self, before: float) -> None:
        """Delete the episodes that ended before wall time `before`."""
        ...


class Silences(Protocol):
    """The silences of all processes on one store. Each method raises `StoreUnavailable`."""

    async def add(self, silence: Silence) -> None:
        """Store a new silence."""
        ...

    async def end(self, silence_id: str, at: float) -> Silence | None:
        """End a silence early, at wall time `at`; returns None if no such silence is in force."""
        ...

    async def lasting(self, now: float) -> list[Silence]:
        """The silences in force at wall time `now`, the next to end first."""
        ...

    async def prune(self, before: float) -> None:
        """Delete the silences that ended before wall time `before`."""
        ...
