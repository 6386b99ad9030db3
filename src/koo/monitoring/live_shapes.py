"""What the live stream has beside what other answers have, once; `shapes` says how keys are promised and described."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, NotRequired

from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.shapes import Doc, Summary, Time, TypedDict


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
