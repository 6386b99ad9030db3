"""An alert from its beginning to its end, what operators say about it, and where both are kept.

An episode begins pending. It fires when its condition has held long enough, recovers while the condition is gone but
may come back, and is resolved at the end. It never goes back to pending; what comes back after the end is a new one.

Each process has its own breakers and probes, so each sees separately what is wrong. But people are notified once: a
store has at most one active episode of a fingerprint, and the processes that see it share it.
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
    """A person is working on an episode: `by`, since wall time `at`, until `until` (None: to its end)."""

    by: str
    at: float
    until: float | None = None
    note: str = ""

    def holds(self, now: float) -> bool:
        """It is not over yet at wall time `now`."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One alert from its beginning to its end; times are wall seconds, None: not yet.

    `fingerprint` is its kind and its component, `type` its severity. `fired_at` is when it had held long enough,
    `notified_at` when people were first owed a notice of it.
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
        """The rule that found it."""
        return self.fingerprint.partition(":")[0]

    def end_at(self, now: float) -> float:
        """When it ends if it does now: never before it began, whatever became of the clock."""
        return max(now, self.started_at, self.fired_at or self.started_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """No notices of what matches `kind` and `component`, patterns such as `ai:*`, until wall time `ends_at`.

    `by` and `reason` are the words of the operator who made it at `made_at`.
    """

    id: str
    kind: str = "*"
    component: str = "*"
    made_at: float
    ends_at: float
    by: str
    reason: str

    def covers(self, kind: str, component: str, now: float) -> bool:
        """It matches, and has not ended at wall time `now`."""
        return now < self.ends_at and fnmatchcase(kind, self.kind) and fnmatchcase(component, self.component)


def in_ms(wall_s: float) -> float:
    """Wall seconds as a store keeps them, in whole milliseconds."""
    return round(wall_s * 1000) / 1000


def new_id() -> str:
    """An id that no other episode or silence has, and that may stand in a path."""
    return secrets.token_hex(8)


def notice_of(what: What, episode: Episode, number: int | None = None) -> Notice:
    """What is to be said of an episode; `number` counts reminders.

    The key begins with the episode's id, and is the same in every process and after a restart.
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
    """Where a page of the history ends."""

    started_at: float
    id: str


class Episodes(Protocol):
    """The episodes of all processes on one store. Each method raises `StoreUnavailable`.

    A process keeps its sight of an episode under a lease, and the episode ends when the last one has left it.
    """

    async def keep(self, *episodes: Episode, said: Collection[str] = ()) -> list[Episode]:
        """Write what this process sees, under a new lease; returns them as the store knows them, in the same order.

        One that others have ended in the meantime is returned as resolved, and is not written.
        Where the fingerprint has an episode that lasts already, that one goes on, with its id, its beginning and what
        was said about it. The first process that keeps one with `notified_at` writes the notice that it fires, unless
        its key is in `said`: this process has delivered it itself.
        """
        ...

    async def leave(self, *episodes: Episode, said: Collection[str] = ()) -> None:
        """This process sees them no longer. Those that no other living process sees have ended.

        If people were owed a notice that it fires, the notice that it is resolved is written, unless its
        key is in `said`. What never fired is forgotten; what the store has never heard of is written down as ended.
        """
        ...

    async def orphaned(self) -> list[Episode]:
        """Those that last and that no living process sees, oldest first."""
        ...

    async def take(self, *episodes: Episode) -> list[Episode]:
        """See orphaned ones from now on; returns those that no other process took first."""
        ...

    async def release(self) -> None:
        """Let other processes take over at once the episodes that this one sees."""
        ...

    async def acknowledge(self, episode_id: str, acknowledged: Acknowledgement | None) -> Episode | None:
        """Set or clear who is working on an active episode; returns None if there is no such episode."""
        ...

    async def history(
        self, since: float, until: float, *, limit: int, after: Place | None = None
    ) -> list[Episode]:
        """Those that fired and lasted at some time from `since` to `until`, the newest beginning first.

        `after`: only those that come after this place.
        """
        ...

    async def expire(self, before: float) -> None:
        """End those that no process has seen since wall time `before`."""
        ...

    async def prune(self, before: float) -> None:
        """Forget those that ended before wall time `before`."""
        ...


class Silences(Protocol):
    """The silences of all processes on one store. Each method raises `StoreUnavailable`."""

    async def add(self, silence: Silence) -> None:
        """Keep a new one."""
        ...

    async def end(self, silence_id: str, at: float) -> Silence | None:
        """End one early, at wall time `at`; returns None if no such silence is in force."""
        ...

    async def lasting(self, now: float) -> list[Silence]:
        """Those that have not ended at wall time `now`, the next to end first."""
        ...

    async def prune(self, before: float) -> None:
        """Forget those that ended before wall time `before`."""
        ...
