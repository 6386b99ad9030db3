"""What is seen of incidents: the list, and one of them whole."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal

from koo.monitoring.history_shapes import HistoryMark
from koo.monitoring.shapes import Doc, Time, TypedDict

IncidentWord = Literal["open", "recovering", "closed", "lost"]


class IncidentSummary(TypedDict):
    """One opening of a breaker, to its end."""

    id: Annotated[str, Doc("stable: the same in every process and after a restart")]
    component: Annotated[str, Doc("database, or ai:SERVICE")]
    guard: Annotated[str, Doc("which breaker: database, SERVICE, or SERVICE/MODEL")]
    state: Annotated[
        IncidentWord,
        Doc("recovering: probes test it; lost: its process is gone, and did not say how it ended"),
    ]
    shadow: Annotated[bool, Doc("it only counted, and refused nothing")]
    opened_at: Time
    closed_at: Annotated[Time | None, Doc("null: it lasts, or is lost")]
    lasted_s: Annotated[float, Doc("to its end, to the last word of its process, or until now")]
    rule: Annotated[
        str,
        Doc(
            "failures_in_a_row, failure_rate, slow_rate, probe_failed, probe_hung, probes_inconclusive, or "
            "operator; others may be added"
        ),
    ]
    reason: Annotated[str, Doc("why it opened, in words")]
    ended: Annotated[str, Doc("how it ended, in words; empty: it has not")]
    refused: Annotated[int, Doc("calls that were refused, in all processes")]
    processes: Annotated[int, Doc("in how many it was open at the same time")]
    process: Annotated[str, Doc("the one that opened first, which this incident describes")]


class Trigger(TypedDict):
    """The arithmetic of the opening: the counts as they were, and the thresholds that they met."""

    sentence: Annotated[str, Doc("the rule with its numbers")]
    failures_in_a_row: int
    failures_in_a_row_max: Annotated[int, Doc("this many open it")]
    calls: Annotated[int, Doc("in the window, with those that ran and were slow already")]
    failures: int
    slow: int
    running_slow: Annotated[int, Doc("of the slow ones, those that had not ended")]
    calls_min: Annotated[int, Doc("the shares count from this many calls on")]
    failure_rate: Annotated[float, Doc("0 to 1; 0 without calls")]
    failure_rate_max: Annotated[float, Doc("this share opens it")]
    slow_rate: Annotated[float, Doc("0 to 1; 0 without calls")]
    slow_rate_max: Annotated[float, Doc("this share opens it")]
    window_s: float
    slow_s: Annotated[float | None, Doc("a call that takes this long is slow, in seconds; null: none is")]
    primed: Annotated[str, Doc("why one failure was enough; empty: it was not")]


class IncidentCall(TypedDict):
    """A call that the breaker judged; never its prompt or its answer."""

    at: Annotated[Time, Doc("when it ended")]
    duration_s: float
    outcome: Annotated[
        str,
        Doc(
            "failed, failed_elsewhere (another model could not reach the host), slow, cut (by its caller's deadline, "
            "slow already), running; of probes also succeeded, hung, inconclusive"
        ),
    ]
    kind: Annotated[str, Doc("what it met, in one word, as in errors; empty: it did not fail")]
    status: Annotated[int | None, Doc("of the HTTP answer; null: no answer with one came")]
    sentence: str
    in_row: Annotated[int, Doc("its position in a run of failures; 0: not in one")]


class IncidentStep(TypedDict):
    """Something that happened while it lasted."""

    at: Time
    what: Annotated[str, Doc("opened, half_open, closed, act, key, pause, check, ended; others may be added")]
    text: str


class IncidentAct(TypedDict):
    """What an operator did."""

    at: Time
    what: str
    by: Annotated[str, Doc("empty: it was not said")]
    reason: Annotated[str, Doc("empty: none was given")]
    until: Annotated[Time | None, Doc("when it ends; null: only by a reset")]


class IncidentElsewhere(TypedDict):
    """The same in another process: an incident with its own id."""

    id: str
    process: str
    state: IncidentWord
    opened_at: Time
    closed_at: Time | None
    reason: str
    refused: int


class Incident(IncidentSummary):
    """One opening of a breaker: why, what came before, what it did, who did what, and how it ended."""

    trigger: Annotated[Trigger | None, Doc("null: an operator forced it open")]
    calls: Annotated[
        list[IncidentCall],
        Doc(
            "that failed or were slow in the window, the oldest first, 200 at most; the others are only counted"
        ),
    ]
    calls_left_out: Annotated[int, Doc("calls of the window that are not kept")]
    before: Annotated[list[HistoryMark], Doc("what happened anywhere in the hour before, the oldest first")]
    refused_for_s: Annotated[float, Doc("for how long this process refused calls")]
    passed: Annotated[int, Doc("calls that a shadow would have refused")]
    fallback: Annotated[
        dict[str, int], Doc("calls that another service answered instead, in this process, by service")
    ]
    probes: Annotated[list[IncidentCall], Doc("calls that tested recovery, the oldest first")]
    steps: Annotated[list[IncidentStep], Doc("the oldest first")]
    acts: Annotated[list[IncidentAct], Doc("of operators, the oldest first")]
    left_out: Annotated[int, Doc("probes, steps and acts beyond 200 of each, which are not kept")]
    elsewhere: list[IncidentElsewhere]
    last_heard: Annotated[Time, Doc("when its process last reported it")]


class Incidents(TypedDict):
    """The newest first."""

    incidents: list[IncidentSummary]
    trouble: Annotated[str, Doc("why those of other processes are missing; empty: they are not")]
    timestamp: Time


class OneIncident(TypedDict):
    """One incident, whole."""

    incident: Incident
    trouble: Annotated[str, Doc("why the state store's part is missing; empty: it is not")]
    timestamp: Time
