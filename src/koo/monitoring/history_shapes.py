"""What is seen of the past: the shapes of the history, as `shapes` has those of everything else."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal, NotRequired

from koo.monitoring.shapes import Doc, Time, TypedDict, Usd


class Series(TypedDict):
    """One component, a value for each span in each list, the oldest first; null: nothing is known of that span."""

    calls: Annotated[list[int | None], Doc("that the other side answered or failed to answer")]
    failed: Annotated[list[int | None], Doc("throttled ones included")]
    throttled: list[int | None]
    refused: Annotated[list[int | None], Doc("by koo; they are not calls to the other side")]
    slow: list[int | None]
    p50: Annotated[list[float | None], Doc("seconds; null: nothing succeeded")]
    p95: Annotated[list[float | None], Doc("seconds; null: nothing succeeded")]
    state: Annotated[list[str | None], Doc("the worst one of the span")]
    spent: NotRequired[
        Annotated[list[Usd | None], Doc("booked in the span; services only, null: the state store is away")]
    ]
    used: NotRequired[Annotated[list[int | None], Doc("connections in use, at most; the database only")]]
    waiting: NotRequired[
        Annotated[list[int | None], Doc("callers in the pool's queue, at most; the database only")]
    ]
    places: NotRequired[Annotated[list[int | None], Doc("connections that there may be; the database only")]]


class HistoryMark(TypedDict):
    """Something that happened at a moment."""

    at: Time
    kind: Annotated[
        str,
        Doc(
            "alert, circuit, act (an operator's), deploy, settings; others may be added, so show what you do not know"
        ),
    ]
    component: str
    text: str


class History(TypedDict):
    """The history, in spans of `step_s` seconds from `since` on."""

    since: Annotated[Time, Doc("the beginning of the first span")]
    until: Annotated[Time, Doc("the end of the last one")]
    step_s: int
    scope: Annotated[
        Literal["this process", "all processes"],
        Doc("whose calls: the last hour is this process's own, in finer steps"),
    ]
    series: Annotated[dict[str, Series], Doc("by component: database, ai:SERVICE")]
    marks: list[HistoryMark]
    trouble: Annotated[str, Doc("why the state store's part is missing; empty: it is not")]
    timestamp: Time
