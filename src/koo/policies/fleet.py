"""The fleet: what the processes on one state store report about themselves, about once a second.

Each process has a row, and a beat keeps it fresh. A process whose row is stale is *silent*: killed, stopped, or cut
off. One process *leads*: the leader's row has a holder, an epoch that grows with each new holder, and an end, and the
beat renews it. A leader counts its time from when it asked, and stops a little before the store admits another one: so
two clocks that differ by less than two in a hundred never let two lead at once. A process that was stopped while it led
checks its clock first; and the store refuses what it does under its old epoch.

Times ending in `_ms` are the store's clock, in milliseconds since 1970; `now` is this process's monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

PhaseWord = Literal["closed", "open", "half_open"]

BEAT_S = 1.0
"""A reset, or an outage that others found, reaches every process within two beats: quick enough for people."""
BEATS_PER_SECOND_MAX = 100
"""Requests that all processes together make of the store; a thousand of them beat every ten seconds."""
LEASE_BEATS = 4
"""A leader that misses three beats is replaced at the fourth: seconds after a kill, but not for one slow beat."""
SILENT_BEATS = 5
"""One more than a lease: a process that could still lead is never counted as silent."""
DRIFT = 0.02
"""How much two clocks may differ in speed."""
LATELY_S = 60.0
"""A guard that was called within this time is in use."""


def beat_s(processes: int) -> float:
    """The time between two beats of one process, when this many share the store."""
    return max(BEAT_S, processes / BEATS_PER_SECOND_MAX)


@dataclass(frozen=True, slots=True)
class Presence:
    """What a process reports about itself. `ledger`: the name that its purses are under.

    `worker`: its number on its host, if a server has several. `configuration`: digests of its options, as JSON.
    """

    ledger: str
    host: str
    worker: str
    pid: int
    version: str
    label: str
    configuration: str


class GuardKey(NamedTuple):
    """A guard across processes: its name, and a digest of what it stands before, so that guards that share only a name
    stay apart."""

    name: str
    place: str


@dataclass(frozen=True, slots=True)
class GuardLine:
    """One guard in one process. `is_down`: it admits probes at most, and none has succeeded, here or elsewhere.

    `calls`: of the last minute, refused ones included. `ago_s`: how long it has been in this phase.
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
    """What an unbilled check found: the error's `kind` and reason, both empty if it is well.

    `place`: what was asked, with which key. `ago_s`: how long ago the store received it.
    """

    service: str
    place: str
    kind: str
    reason: str
    ago_s: float = 0.0


class Opinion(NamedTuple):
    """What the live processes report of one guard: in how many it is down, of those that are concerned.

    Concerned is a process that has called it in the last minute, or in which it is not closed. `proved_ago_s`: how long
    ago a probe of one of them succeeded.
    """

    key: GuardKey
    down: int
    concerned: int
    proved_ago_s: float


class ProbeAsk(NamedTuple):
    """Units of probes (`probing.py`): requested or kept, for this long; zero gives them back.

    `concurrency`: how many exist in the whole fleet.
    """

    key: GuardKey
    units: int
    for_s: float
    concurrency: int
    is_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a beat carries up. `anew`: guards whose line has changed; `gone`: guards that no longer exist.

    `checks`: this process's results, heeded if it leads. `checks_seen`: the number of the last ones it received.
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
    """The leader, and its epoch."""

    process: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a beat brings down. `process`: the name under which this process was known.

    `is_new`: the store did not know it before, so it must report all its guards. `leader`: None if the last one's time
    is over and no other has begun. `units`: how many probes were granted, of those requested.
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
    """A process on the roll, as shown. Times are wall seconds of the store's clock; `lives`: its beat is fresh."""

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
    """One guard in one live process."""

    process: str
    key: GuardKey
    phase: str
    is_down: bool
    since: float
    calls: int


class LeasedUnits(NamedTuple):
    """Of a limit per minute or hour: units leased to processes that have not reported their use."""

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
    """What one process knows of the leadership."""

    __slots__ = ("_known_until", "epoch", "leader", "until")

    def __init__(self) -> None:
        self.leader: Leader | None = None
        self.epoch = 0
        """This process's epoch, while it leads."""
        self.until = self._known_until = float("-inf")

    def hear(self, told: Told, heard: Heard, asked_at: float) -> None:
        """A beat that was sent at `asked_at` was answered."""
        self.leader = heard.leader
        # From when it asked: the store starts counting later than that, however late the answer arrived.
        self._known_until = asked_at + told.lease_s * (1 - DRIFT)
        is_own = heard.leader is not None and heard.leader.process == heard.process
        self.epoch = heard.leader.epoch if is_own and heard.leader is not None else 0
        self.until = self._known_until if is_own else float("-inf")

    def leads(self, now: float) -> bool:
        """Whether this process leads now."""
        return now < self.until

    def is_led(self, now: float) -> bool:
        """Whether another process leads, as far as this one knows."""
        return self.leader is not None and not self.epoch and now < self._known_until

    def resign(self) -> None:
        """This process closes, or is a forked child: it does not lead, and does not know which process does."""
        self.leader, self.epoch = None, 0
        self.until = self._known_until = float("-inf")


class Lately:
    """How often a guard was called in the last minute, from a count that only grows; to a quarter of a minute."""

    __slots__ = ("_marks",)

    def __init__(self, count: int, now: float) -> None:
        self._marks = [(now, count)]

    def note(self, count: int, now: float) -> int:
        """Record the count's current value; returns by how much it grew in the last minute."""
        marks = self._marks
        if now - marks[-1][0] >= LATELY_S / 4:
            marks.append((now, count))
            while len(marks) > 1 and now - marks[1][0] >= LATELY_S:
                del marks[0]
        return count - marks[0][1]
