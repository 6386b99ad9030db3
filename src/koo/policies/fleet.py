"""The fleet: what the processes on one state store tell one another about themselves, about once a second.

Each has a row, and a beat keeps it fresh. Whose row is not fresh is *silent*: it was killed, or is stopped, or is cut
off. One process *leads*: the row of the leader has a holder, an epoch that grows with each new holder, and an end. The
beat renews it. A leader counts its time from when it asked and stops a little before the store lets another one in, so
two clocks that run apart by less than two in a hundred never let two lead at once. A process that was stopped while it
led looks at its clock first; what it does in the store is refused there for its old epoch, too.

Times ending in `_ms` are the store's clock, in milliseconds since 1970; `now` is this process's monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

PhaseWord = Literal["closed", "open", "half_open"]

BEAT_S = 1.0
BEATS_PER_SECOND_MAX = 100
"""What all processes together ask of the store; a thousand of them beat every ten seconds."""
LEASE_BEATS = 4
"""A leader that misses three beats is replaced with the fourth: seconds after a kill, and no single slow beat does."""
SILENT_BEATS = 5
DRIFT = 0.02
"""By how much two clocks may run apart."""
LATELY_S = 60.0
"""A guard that was called in this time is in use."""


def beat_s(processes: int) -> float:
    """The time between two beats of one process, where so many share the store."""
    return max(BEAT_S, processes / BEATS_PER_SECOND_MAX)


@dataclass(frozen=True, slots=True)
class Presence:
    """What a process says of itself. `ledger`: the name under which its purses are.

    `worker`: which one of its host, where a server has several. `configuration`: digests of its options, as JSON.
    """

    ledger: str
    host: str
    worker: str
    pid: int
    version: str
    label: str
    configuration: str


class GuardKey(NamedTuple):
    """A guard across processes: its name, and a digest of what it stands before, so that two that only share the name
    are two."""

    name: str
    place: str


@dataclass(frozen=True, slots=True)
class GuardLine:
    """One guard in one process. `is_down`: it lets through probes at most, and none has succeeded, here or elsewhere.

    `calls`: of the last minute, those that were refused included. `ago_s`: for how long it has been in this phase.
    `is_proved`: a probe has succeeded since the last beat.
    """

    key: GuardKey
    phase: PhaseWord
    is_down: bool
    ago_s: float
    calls: int
    is_proved: bool = False

    @property
    def is_called(self) -> bool:
        return self.calls > 0


class Check(NamedTuple):
    """What an unbilled check found: `kind` of the error and its reason, both empty where it is well.

    `place`: what was asked, with which key. `ago_s`: how long ago the store heard of it.
    """

    service: str
    place: str
    kind: str
    reason: str
    ago_s: float = 0.0


class Opinion(NamedTuple):
    """What the processes that are heard say of one guard: in how many it is down, of those that it matters to.

    It matters to a process that has called it in the last minute, or in which it is not closed. `proved_ago_s`: how
    long ago a probe of one of them succeeded.
    """

    key: GuardKey
    down: int
    concerned: int
    proved_ago_s: float


class ProbeAsk(NamedTuple):
    """Units of probes (`probing.py`): asked for, or kept, for so long; none are given back.

    `concurrency`: how many there are in the whole fleet.
    """

    key: GuardKey
    units: int
    for_s: float
    concurrency: int
    is_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a beat carries up. `anew`: guards whose line has changed; `gone`: those that are there no longer.

    `checks`: what this process found, heeded if it leads. `checks_seen`: the number of the last ones it has heard.
    """

    presence: Presence
    in_flight: int = 0
    beat_s: float = BEAT_S
    lease_s: float = LEASE_BEATS * BEAT_S
    anew: tuple[GuardLine, ...] = ()
    gone: tuple[GuardKey, ...] = ()
    checks: tuple[Check, ...] = ()
    checks_seen: int = 0
    probes: tuple[ProbeAsk, ...] = ()


class Leader(NamedTuple):
    """Who leads, and in which epoch."""

    process: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a beat brings down. `process`: the name under which this process spoke.

    `is_new`: the store did not know it before, so it has to tell all its guards. `leader`: None where the last one's
    time is over and no other has begun. `units`: of probes that were asked for, so many were granted.
    """

    process: str
    is_new: bool
    processes: int
    leader: Leader | None
    opinions: Mapping[GuardKey, Opinion]
    checks: tuple[Check, ...] = ()
    checks_seen: int | None = None
    units: Mapping[GuardKey, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A process on the roll, as it is shown. Times are wall seconds of the store's clock; `lives`: its beat comes."""

    process: str
    ledger: str
    host: str
    worker: str
    pid: int
    version: str
    label: str
    started_at: float
    seen_at: float
    silent_for_s: float
    in_flight: int
    configuration: dict[str, dict[str, str]]
    lives: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberGuard:
    """One guard in one process that is heard."""

    process: str
    key: GuardKey
    phase: str
    is_down: bool
    since: float
    calls: int


class LeasedUnits(NamedTuple):
    """Of a limit a minute or an hour: how many units are leased to processes that have not told their use."""

    name: str
    limit: int
    leased: int
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """The whole roll, for people."""

    members: list[Member]
    guards: list[MemberGuard]
    leader: Leader | None
    units: list[LeasedUnits] = field(default_factory=list)


class Leadership:
    """What one process knows of who leads."""

    __slots__ = ("_known_until", "epoch", "leader", "until")

    def __init__(self) -> None:
        self.leader: Leader | None = None
        self.epoch = 0
        """Of this process, while it leads."""
        self.until = self._known_until = float("-inf")

    def hear(self, told: Told, heard: Heard, asked_at: float) -> None:
        """A beat that was sent at `asked_at` was answered."""
        self.leader = heard.leader
        # From when it asked: the store counts from later, whenever the answer came.
        self._known_until = asked_at + told.lease_s * (1 - DRIFT)
        is_own = heard.leader is not None and heard.leader.process == heard.process
        self.epoch = heard.leader.epoch if is_own and heard.leader is not None else 0
        self.until = self._known_until if is_own else float("-inf")

    def leads(self, now: float) -> bool:
        """Does this process lead now?"""
        return now < self.until

    def is_led(self, now: float) -> bool:
        """Does another process lead, as far as this one has heard?"""
        return self.leader is not None and not self.epoch and now < self._known_until

    def resign(self) -> None:
        """This process closes, or is a forked child: it leads nothing, and knows nothing of who does."""
        self.leader, self.epoch = None, 0
        self.until = self._known_until = float("-inf")


class Lately:
    """How often a guard was asked in the last minute, from a count that only grows; to a quarter of a minute."""

    __slots__ = ("_marks",)

    def __init__(self, count: int, now: float) -> None:
        self._marks = [(now, count)]

    def note(self, count: int, now: float) -> int:
        """The count is so high now; returns by how much it grew in the last minute."""
        marks = self._marks
        if now - marks[-1][0] >= LATELY_S / 4:
            marks.append((now, count))
            while len(marks) > 1 and now - marks[1][0] >= LATELY_S:
                del marks[0]
        return count - marks[0][1]
