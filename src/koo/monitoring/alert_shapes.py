"""What operators do about alerts, and what became of them, as it is seen."""

from __future__ import annotations

from typing import Annotated

from koo.monitoring.shapes import Alert, Doc, SilenceView, Time, TypedDict


class AlertHistory(TypedDict):
    """Episodes that fired, of all processes, the newest beginning first."""

    episodes: list[Alert]
    next_cursor: Annotated[str | None, Doc("`cursor` of the next page; null: this is the last one")]
    since: Time
    until: Time
    timestamp: Time


class AlertAct(TypedDict):
    """An alert, and what was done about it."""

    message: str
    alert: Alert
    timestamp: Time


class Silences(TypedDict):
    """The silences in force, the next to end first."""

    silences: list[SilenceView]
    timestamp: Time


class SilenceAct(TypedDict):
    """A silence that was made or ended."""

    message: str
    silence: SilenceView
    timestamp: Time
