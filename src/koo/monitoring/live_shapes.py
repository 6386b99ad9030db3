"""What the live stream has beside what other answers have, once; `shapes` says how keys are promised and described."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal, NotRequired

from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.shapes import Doc, Summary, Time, TypedDict, Usd


class LiveStatus(Summary):
    """Everything at a glance, and which process says so."""

    koo: KooHealth
    version: Annotated[str, Doc("of koo")]
    label: Annotated[str, Doc("KOO_VERSION_LABEL; empty: it is not set")]
    process: Annotated[str, Doc("its id in `fleet`")]


class PointValues(TypedDict):
    """The newest value of each list of a `Series`; null: nothing is known."""

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

    at: Annotated[Time, Doc("the beginning of its span")]
    step_s: int
    series: Annotated[dict[str, PointValues], Doc("by component: database, ai:SERVICE")]


class SavedOf(TypedDict):
    """What koo saved of one component, or of all."""

    refused: Annotated[int, Doc("calls that an open breaker refused at once")]
    repeated: Annotated[int, Doc("calls that succeeded, but not with their first attempt")]
    fallen_back: Annotated[int, Doc("answers of another service in place of this one")]
    over_budget: Annotated[int, Doc("calls that a budget refused")]
    not_spent: Annotated[Usd, Doc("the worst case of these: an upper bound")]


class Saved(SavedOf):
    """What koo saved today (UTC), or since this process began to count where that is all that is known."""

    since: Time
    scope: Annotated[
        Literal["this process", "all processes"],
        Doc("this process: the state store has not answered yet today"),
    ]
    components: Annotated[
        dict[str, SavedOf], Doc("by component: database, ai:SERVICE; those that have something")
    ]
    timestamp: Time
