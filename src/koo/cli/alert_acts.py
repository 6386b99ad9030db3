"""An operator's acts on alerts: acknowledge, silence, and end either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict
from urllib.parse import quote

from koo.cli.client import act, ask, connect, who
from koo.cli.tables import Column, put_table
from koo.cli.terminal import CommandFailed, Exit, for_s, progress, put, put_json, run_async
from koo.cli.words import when
from koo.monitoring.alert_shapes import Silences

SILENCES = (
    Column("until", whole=True),
    Column("component"),
    Column("kind"),
    Column("by"),
    Column("reason"),
    Column("id", whole=True),
)


class Done(TypedDict):
    """What each act returns, in addition to what it changed."""

    message: str


def acknowledge(alert: str, long: str | None, reason: str, url: str | None, *, as_json: bool) -> Exit:
    """Acknowledge an alert: no reminders for the duration `long`, or, without one, until the alert ends."""
    body = {"by": who(), "note": reason} | ({} if long is None else {"for_s": for_s(long)})
    return _act(url, f"/monitoring/alerts/{_id(alert)}/acknowledge", body, as_json)


def unacknowledge(alert: str, reason: str, url: str | None, *, as_json: bool) -> Exit:
    """Withdraw an acknowledgement: reminders resume."""
    body = {"by": who(), "reason": reason}
    return _act(url, f"/monitoring/alerts/{_id(alert)}/unacknowledge", body, as_json)


def silence(
    component: str | None, kind: str | None, long: str, reason: str, url: str | None, *, as_json: bool
) -> Exit:
    """Do not send alerts that match both patterns."""
    if component is None and kind is None:
        raise CommandFailed("name a component or a --kind; '*' silences everything", Exit.USAGE, "usage")
    body = {
        "component": component or "*",
        "kind": kind or "*",
        "for_s": for_s(long),
        "by": who(),
        "reason": reason,
    }
    return _act(url, "/monitoring/alerts/silences", body, as_json)


def end_silence(silence: str, reason: str, url: str | None, *, as_json: bool) -> Exit:
    """End a silence: alerts that are still firing are sent."""
    done = run_async(_delete(f"/monitoring/alerts/silences/{_id(silence)}", reason, url))
    return _put(done, as_json)


def silences(url: str | None, *, as_json: bool) -> Exit:
    """Show the active silences."""
    _, answer = run_async(ask(url, "/monitoring/alerts/silences", Silences))
    if as_json:
        put_json(answer)
    elif not answer["silences"]:
        put("no silences")
    else:
        put_table(
            SILENCES,
            [
                [when(one["ends_at"]), one["component"], one["kind"], one["by"], one["reason"], one["id"]]
                for one in answer["silences"]
            ],
        )
    return Exit.OK


def _act(url: str | None, path: str, body: Mapping[str, object], as_json: bool) -> Exit:
    return _put(run_async(act(url, path, Done, body)), as_json)


def _put(done: Done, as_json: bool) -> Exit:
    if as_json:
        put_json(done)
    else:
        put(done["message"])
    return Exit.OK


async def _delete(path: str, reason: str, url: str | None) -> Done:
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            return await client.delete(path, Done, {"by": who(), "reason": reason})


def _id(given: str) -> str:
    """Quote an id as one segment of a path. Raises `CommandFailed` if it would change the path."""
    if not given or "/" in given or not given.strip("."):
        raise CommandFailed(f"{given!r} is not an id; `koo alerts` lists them", Exit.USAGE, "not_found")
    return quote(given.encode(errors="replace"), safe="")
