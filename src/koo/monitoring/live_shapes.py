"""The shapes that only the live stream has; the rules of `shapes` apply here too."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal, NotRequired

from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.shapes import Doc, Summary, Time, TypedDict, Usd


class LiveStatus(Summary):
    """The summary, and the process that sends it."""

    koo: KooHealth
    version: Annotated[str, Doc("koo's version")]
    label: Annotated[str, Doc("KOO_VERSION_LABEL; empty if it is not set")]
    process: Annotated[str, Doc("the process's id in `fleet`")]


class PointValues(TypedDict):
    """The newest value of each list of a `Series`; null if nothing is known."""

    calls: int | None
    failed: int | None
    throttled: int | None
    refused: int | None
    slow: int | None
    p50: float | None
    p95: float | None
    state: str | None
    used: NotRequired[int | None]
    waiting: NotRequired[int | None]
    places: NotRequired[int | None]


class Point(TypedDict):
    """The newest sample of each series of the history."""

    at: Annotated[Time, Doc("the start of its span")]
    step_s: int
    series: Annotated[dict[str, PointValues], Doc("by component: database, ai:SERVICE")]


class SavedOf(TypedDict):
    """What koo saved for one component, or for all."""

    refused: Annotated[int, Doc("calls that an open breaker refused immediately")]
    repeated: Annotated[int, Doc("calls that succeeded after the first attempt had failed")]
    fallen_back: Annotated[int, Doc("calls that another service answered instead of this one")]
    over_budget: Annotated[int, Doc("calls refused by a budget")]
    not_spent: Annotated[Usd, Doc("the worst-case cost of these calls, an upper bound")]


class Saved(SavedOf):
    """What koo saved today (UTC), or since this process began to count if nothing else is known."""

    since: Time
    scope: Annotated[
        Literal["this process", "all processes"],
        Doc("this process: the state store has not replied yet today"),
    ]
    components: Annotated[
        dict[str, SavedOf], Doc("by component (database, ai:SERVICE); those without savings are omitted")
    ]
    timestamp: Time
