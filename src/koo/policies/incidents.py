"""Incidents: one record for each opening of a breaker, from its first event to its last. Time is an argument.

A record begins when a closed breaker opens, or when an operator forces it open. It ends when calls pass again; a failed
probe in between does not begin another record. What is known at the beginning (the arithmetic, the calls in the window)
never changes later. Everything else is added in order, up to a bound.

Times are wall seconds, because a record outlives its process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from koo.events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CooldownBegan,
    DatabaseReadOnly,
    DatabaseRotated,
    DatabaseWritable,
    Event,
    HealthCheckFailed,
    HealthCheckPassed,
    KeyBlocked,
    KeyUnblocked,
    OverrideSet,
)
from koo.openings import Act, SeenCall, Trip
from koo.options import NEVER
from koo.policies.diary import CALLS_MAX, OF_PROBES

KEPT = 100
"""How many of the last incidents a process keeps in memory."""
STEPS_MAX = PROBES_MAX = ACTS_MAX = 200
"""Entries kept of each kind in one record: enough for the probes of a day-long outage, one every ten minutes."""
BY_OPERATOR = "operator"
PhaseWord = Literal["open", "half_open", "closed"]


@dataclass(slots=True)
class Call:
    """A call as it is kept: its outcome, and when it ended."""

    at: float
    took_s: float
    outcome: str
    kind: str = ""
    status: int | None = None
    sentence: str = ""
    in_row: int = 0


@dataclass(slots=True)
class Step:
    """Something that happened during the incident."""

    at: float
    what: str
    text: str


@dataclass(slots=True)
class Deed:
    """An operator's act, with its reason; `until`: when the act expires."""

    at: float
    what: str
    by: str = ""
    reason: str = ""
    until: float | None = None


@dataclass(slots=True, kw_only=True)
class Incident:
    """One opening, from beginning to end. `rule`: the breaker's rule that opened it, or `BY_OPERATOR`.

    `arithmetic`: the numbers by which that rule decided. `refused_for_s`: for how long calls were refused, up to
    `phase_at`, when the phase last changed. `left_out`: how many steps, probes and acts were not kept. `ended`: how it
    ended, in words.
    """

    id: str
    guard: str
    opened_at: float
    rule: str
    reason: str
    is_shadow: bool = False
    arithmetic: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    calls_left_out: int = 0
    steps: list[Step] = field(default_factory=list)
    probes: list[Call] = field(default_factory=list)
    acts: list[Deed] = field(default_factory=list)
    left_out: int = 0
    refused: int = 0
    passed: int = 0
    fallback: dict[str, int] = field(default_factory=dict)
    phase: PhaseWord = "open"
    is_forced: bool = False
    phase_at: float = 0.0
    refused_for_s: float = 0.0
    closed_at: float | None = None
    ended: str = ""

    @property
    def lasts(self) -> bool:
        """Whether the incident has not ended, by the last report of its process."""
        return self.closed_at is None

    def packed(self) -> dict[str, Any]:
        """The incident as plain values for JSON."""
        return asdict(self)

    @classmethod
    def unpacked(cls, values: Mapping[str, Any]) -> Incident:
        """The incident that `packed` returned as `values`. Raises TypeError, KeyError or ValueError if they are not
        valid."""
        # Fields that a newer release has added are left out: in a rolling upgrade both releases read the same rows.
        known = {one.name for one in fields(cls)}
        incident = cls(**{name: value for name, value in values.items() if name in known})
        incident.calls = [Call(**one) for one in values["calls"]]
        incident.probes = [Call(**one) for one in values["probes"]]
        incident.steps = [Step(**one) for one in values["steps"]]
        incident.acts = [Deed(**one) for one in values["acts"]]
        return incident

    # ── what happens to it ────────────────────────────────────────────────────────────────────────────────────

    def note(self, at: float, what: str, text: str) -> None:
        """Add a step."""
        self._keep(self.steps, Step(at, what, text), STEPS_MAX)

    def note_act(self, at: float, what: str, act: Act | None) -> None:
        """Add an operator's act."""
        act = act or Act()
        self._keep(self.acts, Deed(at, what, act.by, act.reason, act.until), ACTS_MAX)

    def note_probes(self, at: float, seen: Iterable[SeenCall]) -> None:
        """Add probes that were reported at the time `at`."""
        for one in seen:
            self._keep(self.probes, call_of(one, at), PROBES_MAX)

    def _keep(self, kept: list[Any], one: object, most: int) -> None:
        """Keep an entry if there is room, else only count it."""
        # The first entries are kept, not the last: they show how the incident began. A count is enough for
        # a thousand that follow.
        if len(kept) < most:
            kept.append(one)
        else:
            self.left_out += 1

    def enter(self, phase: PhaseWord, at: float, *, is_forced: bool) -> None:
        """Record that the breaker has entered a phase, or that an operator has forced it open or released it."""
        # The time refused so far is added up before the phase changes: it depends on the phase that ends now.
        self.refused_for_s = self.refusing_s(at)
        self.phase, self.is_forced, self.phase_at = phase, is_forced, at

    def refusing_s(self, now: float) -> float:
        """For how many seconds calls have been refused, up to now."""
        if self.closed_at is not None or self.is_shadow:
            return self.refused_for_s
        refuses = self.is_forced or self.phase != "closed"
        return self.refused_for_s + (max(now - self.phase_at, 0.0) if refuses else 0.0)

    def end(self, at: float, how: str) -> None:
        """End the record: calls pass again, or no more events will come."""
        self.refused_for_s = self.refusing_s(at)
        # A wall clock may be set back while the incident lasts, and a record must not end before it began.
        self.closed_at, self.ended = max(at, self.opened_at), how


def call_of(seen: SeenCall, at: float) -> Call:
    """The record of a call that was reported at the time `at`."""
    failure = seen.failure
    said = ("", None, "") if failure is None else (failure.kind.value, failure.status, failure.sentence)
    return Call(at - seen.ago_s, seen.took_s, seen.outcome, *said, seen.in_row)


class Book:
    """The incidents of one process: the lasting ones by guard, and the most recent ones of all guards."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self.lasting: dict[str, Incident] = {}
        self.kept: deque[Incident] = deque(maxlen=KEPT)

    def follow(self, event: Event, at: float) -> Incident | None:
        """Process an event; returns the incident that it begins, continues or ends. The event may also be a step in
        other incidents."""
        if isinstance(event, CircuitOpened):
            return self._opened(event, at)
        if isinstance(event, OverrideSet):
            return self._overridden(event, at)
        incident = self.lasting.get(event.source)
        if isinstance(event, CircuitHalfOpened) and incident is not None:
            incident.note(at, "half_open", event.why)
            incident.enter("half_open", at, is_forced=incident.is_forced)
            return incident
        if isinstance(event, CircuitClosed) and incident is not None:
            return self._closed(incident, event, at)
        self._note(event, at)
        return None

    def find(self, incident_id: str) -> Incident | None:
        """The incident with this id, if it is kept here."""
        return next((one for one in self.kept if one.id == incident_id), None)

    def abandon(self, guard: str, at: float, why: str) -> Incident | None:
        """End a guard's incident, because the guard will send no more events."""
        incident = self.lasting.pop(guard, None)
        if incident is not None:
            incident.note(at, "ended", why)
            incident.end(at, why)
        return incident

    def _begin(self, incident: Incident) -> Incident:
        incident.phase_at = incident.opened_at
        self.lasting[incident.guard] = incident
        self.kept.append(incident)
        if len(self.lasting) > KEPT:  # `kept` has just dropped its oldest one too
            del self.lasting[next(iter(self.lasting))]
        return incident

    def _opened(self, event: CircuitOpened, at: float) -> Incident:
        incident = self.lasting.get(event.source)
        trip = event.trip
        if incident is not None:
            if trip is not None and trip.rule in OF_PROBES:
                incident.note_probes(at, trip.seen)
            incident.note(at, "opened", event.reason)
            incident.enter("open", at, is_forced=incident.is_forced)
            return incident
        incident = Incident(
            id=self._new_id(),
            guard=event.source,
            opened_at=at,
            rule="" if trip is None else trip.rule,
            reason=event.reason,
            is_shadow=event.is_shadow,
        )
        if trip is not None:
            incident.arithmetic = arithmetic_of(trip)
            incident.calls = [call_of(one, at) for one in trip.seen[-CALLS_MAX:]]
            incident.calls_left_out = trip.left_out
        incident.note(at, "opened", event.reason)
        return self._begin(incident)

    def _overridden(self, event: OverrideSet, at: float) -> Incident | None:
        incident, what = self.lasting.get(event.source), WORDS.get(event.override, event.override)
        forced = event.override == "forced_open"
        if incident is None:
            if not forced:
                return None
            words = f": {event.act.words}" if event.act is not None and event.act.words else ""
            incident = Incident(
                id=self._new_id(),
                guard=event.source,
                opened_at=at,
                rule=BY_OPERATOR,
                reason=f"an operator forced it open{words}",
                phase="closed",
                is_forced=True,
            )
            self._begin(incident)
        incident.note(at, "act", what)
        incident.note_act(at, what, event.act)
        incident.enter(incident.phase, at, is_forced=forced)
        if incident.phase == "closed" and not forced:
            self._end(incident, at, what)
        return incident

    def _closed(self, incident: Incident, event: CircuitClosed, at: float) -> Incident:
        incident.note_probes(at, event.probes)
        how = event.why or ("an operator reset it" if event.by_operator else "enough probes succeeded")
        incident.note(at, "closed", how)
        if event.by_operator:
            incident.note_act(at, "reset", event.act)
        incident.enter("closed", at, is_forced=incident.is_forced and not event.by_operator)
        if not incident.is_forced:
            self._end(incident, at, how)
        return incident

    def _end(self, incident: Incident, at: float, how: str) -> None:
        incident.end(at, how)
        del self.lasting[incident.guard]

    def _note(self, event: Event, at: float) -> None:
        """Add an event to all lasting incidents of the same service."""
        said = _said(event)
        if said is not None:
            service = event.source.partition("/")[0]
            for guard, incident in self.lasting.items():
                if guard.partition("/")[0] == service:
                    incident.note(at, *said)


WORDS = {
    "none": "override removed: the breaker decides again",
    "forced_open": "forced open",
    "disabled": "disabled: every call passes, and no call counts",
    "metrics_only": "in shadow: it counts but refuses nothing",
}
_WORDS_OF: Mapping[type[Event], str] = {
    KeyUnblocked: "the key works again",
    HealthCheckPassed: "a health check passed again",
    DatabaseReadOnly: "the database accepts no writes",
    DatabaseWritable: "the database accepts writes again",
    DatabaseRotated: "all connections are being replaced",
}


def _said(event: Event) -> tuple[str, str] | None:
    if isinstance(event, KeyBlocked):
        return "key", event.reason
    if isinstance(event, CooldownBegan):
        return "pause", event.reason
    if isinstance(event, HealthCheckFailed):
        return "check", f"a health check failed: {event.reason}"
    words = _WORDS_OF.get(type(event))
    return None if words is None else ("key" if isinstance(event, KeyUnblocked) else "check", words)


def arithmetic_of(trip: Trip) -> dict[str, Any]:
    """The numbers of a trip, without its calls. An infinite `slow_s` becomes None, because JSON has no infinity."""
    names = (one.name for one in fields(trip) if one.name not in ("seen", "left_out"))
    numbers = {name: getattr(trip, name) for name in names}
    return {**numbers, "slow_s": None if trip.slow_s == NEVER else trip.slow_s}
