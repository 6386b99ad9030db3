"""The shapes of the history; the rules of `shapes` apply here too."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal, NotRequired

from koo.monitoring.shapes import Doc, Time, TypedDict, Usd


class Series(TypedDict):
    """One component. Each list has one value per span, the oldest first; null if nothing is known about the span."""

    calls: Annotated[list[int | None], Doc("calls that the dependency answered or failed to answer")]
    failed: Annotated[list[int | None], Doc("throttled ones included")]
    throttled: list[int | None]
    refused: Annotated[list[int | None], Doc("calls refused by koo; they never reached the dependency")]
    slow: list[int | None]
    p50: Annotated[list[float | None], Doc("seconds; null if no call succeeded")]
    p95: Annotated[list[float | None], Doc("seconds; null if no call succeeded")]
    state: Annotated[list[str | None], Doc("the worst state of the span")]
    spent: NotRequired[
        Annotated[
            list[Usd | None],
            Doc("booked in the span; services only; null while the state store is unreachable"),
        ]
    ]
    used: NotRequired[Annotated[list[int | None], Doc("the most connections in use; database only")]]
    waiting: NotRequired[
        Annotated[list[int | None], Doc("the most callers in the pool's queue; database only")]
    ]
    places: NotRequired[Annotated[list[int | None], Doc("the maximum number of connections; database only")]]


class HistoryMark(TypedDict):
    """An event at one moment."""

    at: Time
    kind: Annotated[
        str,
        Doc(
            "alert, circuit, act (an operator's), deploy, settings; kinds may be added, so display unknown ones too"
        ),
    ]
    component: str
    text: str


class History(TypedDict):
    """The history in spans of `step_s` seconds, from `since` on."""

    since: Annotated[Time, Doc("the start of the first span")]
    until: Annotated[Time, Doc("the end of the last span")]
    step_s: int
    scope: Annotated[
        Literal["this process", "all processes"],
        Doc("whose calls these are: the last hour covers this process only, in finer steps"),
    ]
    series: Annotated[dict[str, Series], Doc("by component: database, ai:SERVICE")]
    marks: list[HistoryMark]
    trouble: Annotated[str, Doc("why the state store's part is missing; empty if it is included")]
    timestamp: Time
