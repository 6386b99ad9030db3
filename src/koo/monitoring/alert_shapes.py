"""Shapes of operators' acts on alerts and of the alert history."""

from __future__ import annotations

from typing import Annotated

from koo.monitoring.shapes import Alert, Doc, SilenceView, Time, TypedDict


class AlertHistory(TypedDict):
    """Episodes that fired, of all processes, the newest start first."""

    episodes: list[Alert]
    next_cursor: Annotated[str | None, Doc("`cursor` of the next page; null on the last page")]
    since: Time
    until: Time
    timestamp: Time


class AlertAct(TypedDict):
    """The result of an act on an alert."""

    message: str
    alert: Alert
    timestamp: Time


class Silences(TypedDict):
    """The silences in force, the next to end first."""

    silences: list[SilenceView]
    timestamp: Time


class SilenceAct(TypedDict):
    """The result of creating or ending a silence."""

    message: str
    silence: SilenceView
    timestamp: Time
