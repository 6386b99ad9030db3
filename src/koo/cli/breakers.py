"""`koo breaker`: the circuit breakers of the running server, why each opened, and operators' overrides."""

from __future__ import annotations

import time
from typing import Any, TypedDict
from urllib.parse import quote, urlencode

from koo.cli.client import ServerClient, ask, connect, who
from koo.cli.client import act as post
from koo.cli.reasons import database_state, why_database, why_service
from koo.cli.tables import Column, put_table
from koo.cli.terminal import CommandFailed, Exit, for_s, progress, put, put_json, put_whole, run_async
from koo.cli.text import one_line
from koo.cli.words import counted, in_utc, latency, moment, seconds_of, span, when
from koo.errors import name_of
from koo.monitoring.incident_markdown import markdown_of
from koo.monitoring.incident_shapes import Incident, IncidentCall, Incidents, OneIncident
from koo.monitoring.shapes import BreakerStatus, SystemHealth, Time

BREAKERS = (
    Column("breaker"),
    Column("state", coloured=True),
    Column("since", whole=True),
    Column("why"),
    Column("next attempt", whole=True),
    Column("incident", whole=True),
)
CALLS = (
    Column("ended", whole=True),
    Column("took", right=True),
    Column("outcome"),
    Column("kind"),
    Column("status", right=True),
    Column("met"),
)
CALLS_SHOWN = 10
"""How many of the last calls are shown; --markdown prints all."""
STATES = {"open": "circuit open", "half_open": "tests recovery", "forced_open": "forced open"}


class Breakers(TypedDict):
    """What the server returns."""

    breakers: list[BreakerStatus]
    timestamp: Time


class Done(TypedDict):
    """What each act returns."""

    message: str
    breakers: list[BreakerStatus]
    timestamp: Time


def list_all(url: str | None, *, as_json: bool) -> Exit:
    """Print one line per breaker, the database's first."""
    _, answer = run_async(ask(url, "/monitoring/breakers", Breakers))
    if as_json:
        put_json(answer)
    else:
        now = seconds_of(answer["timestamp"]) or time.time()
        put_table(BREAKERS, [_row(one, now) for one in answer["breakers"]])
    return Exit.OK


def _row(one: BreakerStatus, now: float) -> list[str]:
    attempt = seconds_of(one["next_attempt"])
    # `opened_at` is when its failures last opened it, and not when an operator did.
    has_opened = one["state"] in ("open", "half_open") and one["opened_at"] is not None
    return [
        one["name"],
        _state(one),
        when(one["opened_at"] or "") if has_opened else "",
        one["reason"] or one["operator"],
        "" if attempt is None else moment(attempt, now),
        one["incident"] or "",
    ]


def _state(one: BreakerStatus) -> str:
    state = STATES.get(one["state"], one["state"])
    return f"{state} (shadow)" if one["override"] == "metrics_only" else state


def act(
    what: str,
    name: str,
    reason: str,
    url: str | None,
    *,
    for_: str | None = None,
    off: bool = False,
    as_json: bool,
) -> Exit:
    """Trip, reset or shadow one breaker, or all breakers of a service."""
    body: dict[str, Any] = {"by": who(), "reason": reason}
    if for_ is not None:
        body["for_s"] = for_s(for_)
    if off:
        body["off"] = True
    answer = run_async(post(url, f"/monitoring/breakers/{_path(name)}/{what}", Done, body))
    if as_json:
        put_json(answer)
    else:
        put(answer["message"])
    return Exit.OK


def why(name: str, url: str | None, *, markdown: bool, as_json: bool) -> Exit:
    """The last incident of a breaker, or the one of that id."""
    answer, now = run_async(_find(name, url))
    if as_json:
        put_json(answer)
    elif markdown:
        text = markdown_of(answer)
        put_whole("".join(f"{one_line(line)}\n" for line in text.splitlines()))
    else:
        _show(answer["incident"])
        if now and answer["incident"]["state"] == "closed":
            put(f"now {now}")
    return Exit.OK


async def _find(name: str, url: str | None) -> tuple[OneIncident, str]:
    """Return the incident, and what is wrong with that component now."""
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            service = name.partition("/")[0]
            component = service if service == "database" else f"ai:{service}"
            asked = urlencode({"component": component, "limit": 200})
            listed = await client.get(f"/monitoring/incidents?{asked}", Incidents)
            ids = [
                one["id"]
                for one in listed["incidents"]
                if name in (one["guard"], one["guard"].partition("/")[0])
            ]
            if not ids and not _is_id(name):
                known = (await client.get("/monitoring/breakers", Breakers))["breakers"]
                sentence = _nothing_of(name, [one["name"] for one in known])
                now = await _reason_now(client, service)
                raise CommandFailed(f"{sentence}; it is {now}" if now else sentence, Exit.USAGE, "not_found")
            found = await client.get(f"/monitoring/incidents/{ids[0] if ids else name}", OneIncident)
            return found, await _reason_now(client, found["incident"]["guard"].partition("/")[0])


async def _reason_now(client: ServerClient, name: str) -> str:
    """Return the state and the reason of a component that is not healthy; empty if it is, or if there is none."""
    # A refused key or a used-up limit refuses every call while the breaker is closed: without this the answer would be
    # that nothing is wrong.
    health = await client.get("/monitoring/health", SystemHealth)
    now = seconds_of(health["timestamp"]) or time.time()
    if name == "database":
        state, why = database_state(health["database"]), why_database(health["database"], now)
    elif (view := health["ai_services"]["services"].get(name)) is not None:
        state, why = view["state"], why_service(view, now)
    else:
        return ""
    return f"{state}: {why}" if why else ""


def _nothing_of(name: str, known: list[str]) -> str:
    """Tell a mistyped name from a breaker that never opened."""
    if any(name in (one, one.partition("/")[0]) for one in known):
        return f"the breaker of {name_of(name)} has not opened in the last 30 days"
    return f"there is no breaker of that name; the known ones are: {', '.join(map(name_of, known))}"


def _is_id(name: str) -> bool:
    return len(name) == 16 and all(letter in "0123456789abcdef" for letter in name)


def _show(one: Incident) -> None:
    ended = when(one["closed_at"]) if one["closed_at"] else ""
    put(f"{one['guard']} opened {when(one['opened_at'])}: {one['reason']}")
    if one["trigger"] is not None:
        put(f"why: {one['trigger']['sentence']}")
    if one["state"] == "lost":
        put(
            f"lost: its process ended without reporting the outcome; its last report was {when(one['last_heard'])}"
        )
    elif ended:
        put(f"closed {ended}, after {span(one['lasted_s'])}: {one['ended']}")
    else:
        put(f"{one['state']} for {span(one['lasted_s'])}")
    put(f"refused: {counted(one['refused'], 'call')} in {counted(one['processes'], 'process', 'processes')}")
    if one["shadow"]:
        put(f"in shadow: it refused nothing, and would have refused {counted(one['passed'], 'call')}")
    for service, count in one["fallback"].items():
        put(f"answered by {service} instead: {counted(count, 'call')}")
    for deed in one["acts"]:
        by = f" by {deed['by']}" if deed["by"] else ""
        put(f"{when(deed['at'])} {deed['what']}{by}" + (f": {deed['reason']}" if deed["reason"] else ""))
    for mark in one["before"][-5:]:
        put(f"before, {when(mark['at'])}: {mark['component']}: {in_utc(mark['text'])}")
    _show_calls("the calls behind it", one["calls"])
    _show_calls("probes", one["probes"])
    put(f"incident {one['id']}; all of it: koo breaker why {one['id']} --markdown")


def _show_calls(title: str, calls: list[IncidentCall]) -> None:
    if not calls:
        return
    shown = calls[-CALLS_SHOWN:]
    put("")
    put(title if len(shown) == len(calls) else f"{title}, the last {len(shown)} of {len(calls)}")
    put_table(CALLS, [_call(call) for call in shown])


def _call(call: IncidentCall) -> list[str]:
    status = "" if call["status"] is None else str(call["status"])
    return [
        when(call["at"]),
        latency(call["duration_s"]),
        call["outcome"],
        call["kind"],
        status,
        call["sentence"],
    ]


def _path(name: str) -> str:
    """Quote a name as segments of a path. Raises `CommandFailed` if it would change the path."""
    parts = name.split("/")
    if not all(part.strip(".") for part in parts):
        raise CommandFailed(f"{name_of(name)}: no such breaker", Exit.USAGE, "not_found")
    return "/".join(quote(part.encode(errors="replace"), safe="") for part in parts)
