"""The shapes of incidents: the list, and one complete incident."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal

from koo.monitoring.history_shapes import HistoryMark
from koo.monitoring.shapes import Doc, Time, TypedDict

IncidentWord = Literal["open", "recovering", "closed", "lost"]


class IncidentSummary(TypedDict):
    """One opening of a breaker, until its end."""

    id: Annotated[str, Doc("the same in every process and after a restart")]
    component: Annotated[str, Doc("database, or ai:SERVICE")]
    guard: Annotated[str, Doc("the breaker: database, SERVICE, or SERVICE/MODEL")]
    state: Annotated[
        IncidentWord,
        Doc("recovering: probes are testing it; lost: its process ended without reporting the outcome"),
    ]
    shadow: Annotated[bool, Doc("the breaker only counted and refused no call")]
    opened_at: Time
    closed_at: Annotated[Time | None, Doc("null if it is still open or lost")]
    lasted_s: Annotated[float, Doc("until its end, its process's last report, or now")]
    rule: Annotated[
        str,
        Doc(
            "failures_in_a_row, failure_rate, slow_rate, probe_failed, probe_hung, probes_inconclusive, or "
            "operator; others may be added"
        ),
    ]
    reason: Annotated[str, Doc("why it opened, as a sentence")]
    ended: Annotated[str, Doc("how it ended, as a sentence; empty if it has not ended")]
    refused: Annotated[int, Doc("refused calls in all processes")]
    processes: Annotated[int, Doc("the number of processes in which it was open at the same time")]
    process: Annotated[str, Doc("the process that opened first, which this incident describes")]


class Trigger(TypedDict):
    """Why the breaker opened: the counts at that moment, and the thresholds that they reached."""

    sentence: Annotated[str, Doc("the rule and its numbers, as a sentence")]
    failures_in_a_row: int
    failures_in_a_row_max: Annotated[int, Doc("the number that opens the breaker")]
    calls: Annotated[int, Doc("calls in the window, including running ones that were already slow")]
    failures: int
    slow: int
    running_slow: Annotated[int, Doc("slow calls that were still running")]
    calls_min: Annotated[int, Doc("the number of calls from which the rates count")]
    failure_rate: Annotated[float, Doc("0 to 1; 0 without calls")]
    failure_rate_max: Annotated[float, Doc("the rate that opens the breaker")]
    slow_rate: Annotated[float, Doc("0 to 1; 0 without calls")]
    slow_rate_max: Annotated[float, Doc("the rate that opens the breaker")]
    window_s: float
    slow_s: Annotated[
        float | None, Doc("duration in seconds from which a call is slow; null if no call counts as slow")
    ]
    primed: Annotated[str, Doc("why a single failure was enough; otherwise empty")]


class IncidentCall(TypedDict):
    """A call that the breaker counted, without its prompt and its answer."""

    at: Annotated[Time, Doc("when it ended")]
    duration_s: float
    outcome: Annotated[
        str,
        Doc(
            "failed, failed_elsewhere (another model could not reach the host), slow, cut (by its caller's deadline "
            "when it was already slow), running; for probes also succeeded, hung, inconclusive"
        ),
    ]
    kind: Annotated[
        str, Doc("the kind of error in one word, as in exceptions; empty if the call did not fail")
    ]
    status: Annotated[int | None, Doc("the HTTP status; null if there was no HTTP response")]
    sentence: str
    in_row: Annotated[int, Doc("its position in a run of failures; 0 if it is not in one")]


class IncidentStep(TypedDict):
    """An event during the incident."""

    at: Time
    what: Annotated[str, Doc("opened, half_open, closed, act, key, pause, check, ended; others may be added")]
    text: str


class IncidentAct(TypedDict):
    """An operator's act."""

    at: Time
    what: str
    by: Annotated[str, Doc("empty if unknown")]
    reason: Annotated[str, Doc("empty if none was given")]
    until: Annotated[Time | None, Doc("when it ends; null if only a reset ends it")]


class IncidentElsewhere(TypedDict):
    """The same outage in another process, which is an incident with its own id."""

    id: str
    process: str
    state: IncidentWord
    opened_at: Time
    closed_at: Time | None
    reason: str
    refused: int


class Incident(IncidentSummary):
    """One opening of a breaker: its cause, the events before it, its effect, the operators' acts, and its end."""

    trigger: Annotated[Trigger | None, Doc("null if an operator forced the breaker open")]
    calls: Annotated[
        list[IncidentCall],
        Doc(
            "calls in the window that failed or were slow, the oldest first, at most 200; the others are only counted"
        ),
    ]
    calls_left_out: Annotated[int, Doc("the number of calls in the window that are not listed")]
    before: Annotated[list[HistoryMark], Doc("events anywhere in the hour before, the oldest first")]
    refused_for_s: Annotated[float, Doc("seconds in which this process refused calls")]
    passed: Annotated[int, Doc("calls that a shadow breaker would have refused")]
    fallback: Annotated[
        dict[str, int], Doc("calls in this process that another service answered instead, by service")
    ]
    probes: Annotated[list[IncidentCall], Doc("calls that tested recovery, the oldest first")]
    steps: Annotated[list[IncidentStep], Doc("the oldest first")]
    acts: Annotated[list[IncidentAct], Doc("operators' acts, the oldest first")]
    left_out: Annotated[
        int, Doc("the number of probes, steps and acts beyond 200 of each, which are not kept")
    ]
    elsewhere: list[IncidentElsewhere]
    last_heard: Annotated[Time, Doc("when its process last reported it")]


class Incidents(TypedDict):
    """Incidents, newest first."""

    incidents: list[IncidentSummary]
    trouble: Annotated[str, Doc("why other processes' incidents are missing; empty if they are included")]
    timestamp: Time


class OneIncident(TypedDict):
    """One complete incident."""

    incident: Incident
    trouble: Annotated[str, Doc("why the state store's part is missing; empty if it is included")]
    timestamp: Time
