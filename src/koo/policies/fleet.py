"""The fleet: what the processes on one state store report about themselves, about once a second.

Each process has a row, which its beat keeps fresh. A process with a stale row is *silent*: killed, stopped, or cut off.
One process *leads*: the leader's row has a holder, an epoch that grows with each new holder, and an end, which the
holder's beat renews. A leader counts its term from when it sent the beat, and stops a little before the store accepts
another leader. So two processes never lead at the same time if their clocks run at speeds that differ by less than 2 %.
A process that was stopped while it led checks its clock before it acts, and the store rejects what it does under its
old epoch.

Times ending in `_ms` are the store's clock, in milliseconds since 1970; `now` is this process's monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

PhaseWord = Literal["closed", "open", "half_open"]

BEAT_S = 1.0
"""The time between two beats. An operator's reset, or an outage that others found, reaches every process within two
beats, which is quick enough for people."""
BEATS_PER_SECOND_MAX = 100
"""How many beats all processes together send to the store per second. So a thousand processes beat every ten
seconds."""
LEASE_BEATS = 4
"""The length of a leader's term, in beats. A leader that misses three beats is replaced at the fourth: within seconds
after a kill, but not because of one slow beat."""
SILENT_BEATS = 5
"""After this many beats a process counts as silent. This is one more than the term of a leader, so that a process that
may still lead never counts as silent."""
DRIFT = 0.02
"""By how much the speeds of two clocks may differ (`hand.py` has the reason for 2 %)."""
LATELY_S = 60.0
"""A guard that was called within this time counts as in use."""


def beat_s(processes: int) -> float:
    """The time between two beats of one process if this many processes share the store."""
    return max(BEAT_S, processes / BEATS_PER_SECOND_MAX)


@dataclass(frozen=True, slots=True)
class Presence:
    """What a process reports about itself. `ledger`: the name of its purses' owner in the ledger.

    `worker`: its number on its host, if a server has several workers. `configuration`: digests of its options, as JSON.
    """

    ledger: str
    host: str
    worker: str
    pid: int
    version: str
    label: str
    configuration: str


class GuardKey(NamedTuple):
    """A guard across processes: its name, and a digest of what it guards. Two processes may use one name for guards of
    different servers, and the digest keeps those apart."""

    name: str
    place: str


@dataclass(frozen=True, slots=True)
class GuardLine:
    """One guard in one process. `is_down`: it admits at most probes, and none has succeeded here or elsewhere.

    `calls`: calls of the last minute, including refused ones. `ago_s`: how long the guard has been in this phase.
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
    """The result of an unbilled check: the error's `kind` and reason, both empty if the check passed.

    `place`: which address was checked, with which key. `ago_s`: how long ago the store received the result.
    """

    service: str
    place: str
    kind: str
    reason: str
    ago_s: float = 0.0


class Opinion(NamedTuple):
    """What the live processes report about one guard: in how many it is down, of those that are concerned.

    A process is concerned if it has called the guard in the last minute, or if the guard is not closed there.
    `proved_ago_s`: how long ago a probe in one of them succeeded.
    """

    key: GuardKey
    down: int
    concerned: int
    proved_ago_s: float


class ProbeAsk(NamedTuple):
    """A request for probe units (`probing.py`), or a report that they are kept, for `for_s` seconds; 0 gives them back.

    `concurrency`: how many units exist in the whole fleet.
    """

    key: GuardKey
    units: int
    for_s: float
    concurrency: int
    is_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a beat reports. `anew`: guards whose line has changed; `gone`: guards that no longer exist.

    `checks`: this process's results, which the store takes only from the leader. `checks_seen`: the number of the last
    results that this process has received.
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
    """What a beat returns. `process`: the name of this process in the store.

    `is_new`: the store had no row of this process, so the process must report all its guards. `leader`: None if the
    last one's term is over and no new one has begun. `units`: how many of the requested probe units were granted.
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
    """A process of the fleet, for display. Times are wall seconds of the store's clock; `lives`: its beat is fresh."""

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
    """Units of one limit per minute or hour that are leased to processes which have not reported their use."""

    name: str
    limit: int
    leased: int
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """All processes of the fleet with their guards, for display."""

    members: list[Member]
    guards: list[MemberGuard]
    leader: Leader | None
    units: list[LeasedUnits] = field(default_factory=list)


class Leadership:
    """Who leads, as far as one process knows."""

    __slots__ = ("_known_until", "epoch", "leader", "until")

    def __init__(self) -> None:
        self.leader: Leader | None = None
        self.epoch = 0
        """This process's epoch, while it leads."""
        self.until = self._known_until = float("-inf")

    def hear(self, told: Told, heard: Heard, asked_at: float) -> None:
        """Process the reply to a beat that was sent at `asked_at`."""
        self.leader = heard.leader
        # The term counts from when the beat was sent, not from the reply. The store started to count it in between. If
        # a reply that was delayed for three seconds started the term here, this process would lead three seconds into
        # the next leader's term.
        self._known_until = asked_at + told.lease_s * (1 - DRIFT)
        is_own = heard.leader is not None and heard.leader.process == heard.process
        self.epoch = heard.leader.epoch if is_own and heard.leader is not None else 0
        self.until = self._known_until if is_own else float("-inf")

    def leads(self, now: float) -> bool:
        """Whether this process leads now."""
        # The end is compared with the clock at each use; no timer ends the leadership. A process that was stopped for
        # a minute while it led resumes in the middle of a step, before any timer of its event loop can run.
        return now < self.until

    def is_led(self, now: float) -> bool:
        """Whether another process leads, as far as this one knows."""
        return self.leader is not None and not self.epoch and now < self._known_until

    def resign(self) -> None:
        """This process closes, or is a forked child: it does not lead, and cannot tell which process does."""
        self.leader, self.epoch = None, 0
        self.until = self._known_until = float("-inf")


class Lately:
    """How often a guard was called in the last minute, from a count that only grows; precise to a quarter of a
    minute."""

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
