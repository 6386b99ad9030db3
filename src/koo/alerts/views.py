"""Alerts as people see them: open ones, ended ones, and why no notification was sent."""

from __future__ import annotations

from typing import cast

from koo.alerts.engine import Alerts, Moment, Seen
from koo.alerts.kinds import ENDINGS, KINDS, UNKNOWN, Evidence
from koo.alerts.own_rules import find_in_koo
from koo.clock import iso
from koo.episodes import Acknowledgement, Episode, Silence
from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.runbook import runbook_path
from koo.monitoring.shapes import (
    Acknowledged,
    Alert,
    AlertData,
    NotificationWord,
    Notified,
    SilenceView,
)

RANK = {"critical": 0, "warning": 1, "info": 2}
NO_CHANNEL = "not sent: no channel is configured"
ENDS: dict[Evidence, str] = {
    "own": "it ends at the next check",
    "answer": "it ends when the dependency answers again",
    "recent": "it ends after enough calls or enough time",
    "store": "it ends when the state store has answered",
}
"""What an earlier process's alert waits for before it ends, by its kind's evidence."""


def alert_views(alerts: Alerts, now: Moment, *, has_channel: bool = True) -> list[Alert]:
    """Open alerts, the worst first, then those that ended within fifteen minutes. Changes nothing."""
    lasting = [_seen_view(seen, alerts, now, has_channel) for seen in alerts.seen if not seen.stands_in]
    listed = [*lasting, *(_news_view(ended, has_channel) for ended in alerts.ended(now))]
    return sorted(sorted(listed, key=_timestamp, reverse=True), key=lambda view: RANK[view["type"]])


def stale_views(koo: KooHealth, now: Moment) -> list[Alert]:
    """The alert that says that the alert engine itself does not run, created without the engine."""
    alerts = Alerts()
    alerts.step(find_in_koo(koo), now, lambda kind, component: True, lambda: "")
    return [view for view in alert_views(alerts, now) if view["kind"] == "monitor_stale"]


def _timestamp(view: Alert) -> str:
    return view["timestamp"]


def past_view(episode: Episode, *, has_channel: bool = True) -> Alert:
    """An episode from the history, of this process or another one."""
    if episode.notified_at is not None:
        notified = _noticed(episode.notified_at, has_channel)
    elif episode.ended_at is not None:
        notified = _notified("ended", "it ended before a notification was due")
    else:
        notified = _notified("kept_quiet", "it is silenced, acknowledged or inhibited")
    return _view(episode, episode.fired_at or episode.started_at, notified)


def silence_view(silence: Silence) -> SilenceView:
    """A silence, for display."""
    return {
        "id": silence.id,
        "kind": silence.kind,
        "component": silence.component,
        "made_at": iso(silence.made_at),
        "ends_at": iso(silence.ends_at),
        "by": silence.by,
        "reason": silence.reason,
    }


# ── one alert ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _seen_view(seen: Seen, alerts: Alerts, now: Moment, has_channel: bool) -> Alert:
    episode = seen.episode
    view = _view(episode, _since(seen), _why(seen, alerts, now, has_channel))
    if seen.waits:
        _say_that_it_waits(view, seen)
    silence = alerts.silence_of(episode, now)
    if silence is not None:
        view["silenced"] = silence_view(silence)
    view["inhibited_by"] = seen.inhibited_by or None
    if episode.acknowledged is not None and not episode.acknowledged.holds(now.wall):
        view["acknowledged"] = None
    return view


def _say_that_it_waits(view: Alert, seen: Seen) -> None:
    """Mark the alert as an earlier process's, which this process has not confirmed."""
    # Its `refuses` is dropped: what the earlier process refused is not refused here, where the next call tests it.
    # Otherwise the alert would say "cannot be called" next to a state that says "healthy".
    data = AlertData(unconfirmed=True)
    for finding in seen.lesser:
        data.update(finding.data)
    if "last_error" not in data and "last_error" in view["data"]:
        data["last_error"] = view["data"]["last_error"]
    data["also"] = sorted({*view["data"].get("also", ()), *(one.kind for one in seen.lesser)})
    found = "; ".join(one.message for one in seen.lesser)
    has_met = (
        f"now: {found}"
        if found
        else f"this one has not seen it, and {ENDS[KINDS.get(seen.episode.kind, UNKNOWN).evidence]}"
    )
    view["message"] = f"an earlier process found: {view['message']}; {has_met}"
    view["data"] = data
    if view["type"] == "critical" and not any(one.severity == "critical" for one in seen.lesser):
        view["type"] = "warning"


def _since(seen: Seen) -> float:
    episode = seen.episode
    if episode.phase == "recovering":
        return seen.since.wall
    return episode.started_at if episode.fired_at is None else episode.fired_at


def _why(seen: Seen, alerts: Alerts, now: Moment, has_channel: bool) -> Notified:
    """Whether people are notified, and if not, the reason."""
    episode, silence = seen.episode, alerts.silence_of(seen.episode, now)
    if episode.notified_at is not None:
        return _noticed(episode.notified_at, has_channel)
    if episode.phase == "pending":
        return _notified("pending", "its condition has not held for long enough yet")
    if silence is not None:
        words = f"silenced by {silence.by} until {iso(silence.ends_at)}: {silence.reason}"
        return _notified("silenced", words)
    if episode.acknowledged is not None and episode.acknowledged.holds(now.wall):
        return _notified("acknowledged", f"{episode.acknowledged.by} has acknowledged it")
    if seen.inhibited_by:
        return _notified("inhibited", f"it follows from {seen.inhibited_by}, which is still open")
    if alerts.settles(seen, now):
        return _notified("inhibited", "its cause ended a moment ago")
    if not seen.is_found:
        return _notified("kept_quiet", "it may be over: its condition was not found at the last check")
    return _notified("due", "it has just begun, or the state store is unreachable")


def _noticed(at: float, has_channel: bool) -> Notified:
    # Without a channel the notice stays in the store and is sent to no one, so it is not shown as "notified".
    return _notified("notified", "", at) if has_channel else _notified("no_channel", NO_CHANNEL)


def _notified(state: NotificationWord, reason: str, at: float | None = None) -> Notified:
    return {"state": state, "at": iso(at), "reason": reason}


def _acknowledged(acknowledged: Acknowledgement) -> Acknowledged:
    return {
        "by": acknowledged.by,
        "at": iso(acknowledged.at),
        "until": iso(acknowledged.until),
        "note": acknowledged.note,
    }


def _view(episode: Episode, since: float, notified: Notified) -> Alert:
    return {
        "type": episode.type,
        "component": episode.component,
        "message": episode.message,
        "timestamp": iso(episode.started_at),
        "kind": episode.kind,
        "active": episode.ended_at is None,
        "ended_at": iso(episode.ended_at),
        "data": cast(AlertData, dict(episode.data)),  # the store keeps any JSON
        "id": episode.id,
        "phase": episode.phase,
        "since": iso(since if episode.ended_at is None else episode.ended_at),
        "acknowledged": None if episode.acknowledged is None else _acknowledged(episode.acknowledged),
        "silenced": None,
        "inhibited_by": None,
        "notified": notified,
        "runbook": runbook_path(episode.kind),
    }


def _news_view(ended: Episode, has_channel: bool) -> Alert:
    """The end of an episode, as an alert of a separate kind with severity info and the time of the end."""
    assert ended.ended_at is not None
    view, ending = past_view(ended, has_channel=has_channel), ENDINGS[ended.kind]
    view["type"], view["kind"], view["message"] = "info", ending.kind, ending.message
    view["timestamp"], view["runbook"] = iso(ended.ended_at), runbook_path(ending.kind)
    view["data"] = {"lasted_s": ended.ended_at - ended.started_at}
    return view
