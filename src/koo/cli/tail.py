"""`koo tail`: what happens on the running server, line by line: alerts, opened breakers, operators' acts, calls,
requests.

It requests what is new each second (`following.py`). While the server does not respond, it keeps trying, and then
prints what happened in between, so no line is lost or repeated.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import TypedDict
from urllib.parse import urlencode

from koo.cli.client import ServerClient, connect
from koo.cli.following import LATE_S, Alerts, Calls, Line, Marks, Requests
from koo.cli.tables import COLOURS, coloured, put_words
from koo.cli.terminal import CommandFailed, Exit, progress, put_whole, run_async, say
from koo.cli.text import json_text
from koo.cli.words import duration, in_utc, seconds_of, span, when
from koo.monitoring.alert_shapes import AlertHistory
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.history_shapes import History
from koo.monitoring.shapes import Alert
from koo.monitoring.spend_shapes import BookedCall, BookedCalls

EVERY_S = 1.0
AWAY_EVERY_S = 2.0
PAST_S_MAX = 86_400.0
"""Older events are available from `koo alerts history` and `koo spend`."""
PAGE, PAGES_MAX = 500, 10
TAKEN_S = 10.0
"""A sample taken after the start may belong to a span that began this much earlier."""
WRITTEN_S = 20.0
"""By then every process has recorded a completed minute."""
AWAY = ("no_server", "store_unavailable", "draining")
"""Kinds of failures after which it tries again."""


def tail(since: str, service: str | None, url: str | None, *, errors: bool, as_json: bool) -> Exit:
    """Runs until Ctrl-C. `since`: how long ago to start. `service`: show only this one, or only "database"."""
    past_s = duration(since)
    if past_s is None or past_s > PAST_S_MAX:
        raise CommandFailed(
            f"--since is {since!r}; give a duration such as 10m, at most 24h", Exit.USAGE, "usage"
        )
    component = None if service is None else service if service == "database" else f"ai:{service}"
    shown = Shown(component, errors=errors, as_json=as_json)
    try:
        run_async(_follow(url, past_s, shown))
    except CommandFailed as ended:
        if ended.code is not Exit.INTERRUPTED:
            raise
    return Exit.OK


class Shown:
    """Selects the lines to show and prints them."""

    def __init__(self, component: str | None, *, errors: bool, as_json: bool) -> None:
        self.component = component
        self._errors = errors
        self._as_json = as_json

    def put(self, lines: Iterable[Line]) -> None:
        """Print the lines, oldest first."""
        for line in sorted(lines, key=lambda one: one.at):
            if self._wants(line):
                self._put(line)

    def _wants(self, line: Line) -> bool:
        # A service includes its models.
        component = line.component.partition("/")[0] if line.component.startswith("ai:") else line.component
        is_its = self.component is None or component == self.component
        return is_its and (line.is_error or not self._errors)

    def _put(self, line: Line) -> None:
        at = datetime.fromtimestamp(line.at, UTC).isoformat()
        if self._as_json:
            said = {
                "at": at,
                "what": line.word,
                "component": line.component,
                "text": line.text,
                "facts": line.facts,
            }
            put_whole(json_text(json.dumps(said, ensure_ascii=not _reads_utf8())) + "\n")
            return
        word = coloured(f"{line.word:<8}", COLOURS.get(line.word, "red" if line.is_error else "dim"))
        put_words(when(at), word, f"{line.component}: {in_utc(line.text)}")


def _reads_utf8() -> bool:
    return (sys.stdout.encoding or "ascii").lower().replace("-", "").startswith("utf8")


async def _follow(url: str | None, past_s: float, shown: Shown) -> None:
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            fleet = await client.get("/monitoring/fleet", FleetStatus)
            await _warn_of_unknown(client, shown.component)
        follower = Follower(client, (seconds_of(fleet["timestamp"]) or 0.0) - past_s, shown.component)
        follower.has_others = sum(one["state"] == "live" for one in fleet["processes"]) > 1
        try:
            async for lines in _look_over_and_over(follower, client.url):
                shown.put(lines)
        finally:
            shown.put(follower.calls.rest())


class Known(TypedDict):
    """What is read of the server's services."""

    services: dict[str, object]


async def _warn_of_unknown(client: ServerClient, component: str | None) -> None:
    """Warn of a mistyped service, for which nothing would ever be shown."""
    # It is only a warning: an operation that another process has registered is unknown to this server.
    if component in (None, "database"):
        return
    known = (await client.get("/ai/services/health", Known))["services"]
    if component.removeprefix("ai:") not in known:
        say(
            f"koo: the server has no service {component.removeprefix('ai:')}; it has {', '.join(known) or 'none'}"
        )


async def _look_over_and_over(follower: Follower, url: str) -> AsyncIterator[list[Line]]:
    """Yield what is new, each second. Raises `CommandFailed` for errors that trying again cannot fix."""
    loop = asyncio.get_running_loop()
    away_since: float | None = None
    while True:
        lines: list[Line] = []
        try:
            async for line in follower.look():
                lines.append(line)  # noqa: PERF401 - those that came before a failure count as shown
        except CommandFailed as failed:
            if failed.kind not in AWAY:
                raise
            if away_since is None:
                away_since = loop.time()
                say(f"koo: {url} does not respond; retrying until it does ({failed.kind})")
        else:
            if away_since is not None:
                say(f"koo: {url} responds again after {span(loop.time() - away_since)}")
            away_since = None
        yield lines
        await asyncio.sleep(EVERY_S if away_since is None else AWAY_EVERY_S)


class Follower:
    """Reads all sources of one server, each from its last position. `has_others`: counts cover all processes."""

    def __init__(self, client: ServerClient, start: float, component: str | None) -> None:
        self._client = client
        self._component = component
        self.has_others = False
        self.marks, self.alerts = Marks(start), Alerts(start)
        self.requests, self.calls = Requests(start), Calls(start - TAKEN_S)
        self._marks_at = self._alerts_at = self._requests_at = start

    async def look(self) -> AsyncIterator[Line]:
        """Yield what is new. Raises `CommandFailed`; then sources that were not read keep their position."""
        async for line in self._past():
            yield line
        async for line in self._alert_history():
            yield line
        async for line in self._booked():
            yield line

    async def _past(self) -> AsyncIterator[Line]:
        # Another process's marks may arrive late, so read a minute more than is new. `Marks` drops what was already
        # shown.
        late = min(self._marks_at - LATE_S, self.calls.since)
        asked = {"since": _iso(late), "all_processes": str(self.has_others).lower()}
        history = await self._client.get(f"/monitoring/history?{urlencode(asked)}", History)
        now = seconds_of(history["timestamp"]) or 0.0
        # Each process records its own minutes, so a minute may still grow after its end.
        settles_s = WRITTEN_S if self.has_others else 0.0
        for line in (*self.marks.take(history["marks"]), *self.calls.take(history, settles_s)):
            yield line
        # If there is trouble, the response covers only the process that responds. The position must not move: otherwise
        # marks of other processes in this period would never be shown.
        if not history["trouble"]:
            self.marks.forget(now - 2 * LATE_S)
            self._marks_at = now

    async def _alert_history(self) -> AsyncIterator[Line]:
        episodes: list[Alert] = []
        asked = {"since": _iso(self._alerts_at - LATE_S), "limit": "200"}
        while True:
            page = await self._client.get(f"/monitoring/alerts/history?{urlencode(asked)}", AlertHistory)
            episodes += page["episodes"]
            if (cursor := page["next_cursor"]) is None:
                break
            asked["cursor"] = cursor
        for line in self.alerts.take(episodes):
            yield line
        self._alerts_at = seconds_of(page["timestamp"]) or self._alerts_at

    async def _booked(self) -> AsyncIterator[Line]:
        if self._component == "database":
            return
        asked = {"limit": str(PAGE)}
        if self._component is not None:
            asked["service"] = self._component.removeprefix("ai:")
        # The API returns requests newest first and has no start time, so read pages until one begins before the
        # window. The position is the time of the first page: a request recorded while the later pages are read is new
        # next time.
        late, now, calls = self._requests_at - LATE_S, self._requests_at, list[BookedCall]()
        for place in range(PAGES_MAX):
            page = await self._client.get(f"/ai/requests?{urlencode(asked)}", BookedCalls)
            now = (seconds_of(page["timestamp"]) or now) if not place else now
            calls += page["requests"]
            if (cursor := page["next_cursor"]) is None or _begins_before(page["requests"], late):
                break
            asked["cursor"] = cursor
        else:
            say(f"koo: more than {PAGE * PAGES_MAX:,} requests within a minute; the older ones are left out")
        for line in self.requests.take(calls):
            yield line
        self.requests.forget(now - 2 * LATE_S)
        self._requests_at = now


def _begins_before(requests: list[BookedCall], at: float) -> bool:
    return bool(requests) and (seconds_of(requests[-1]["at"]) or 0.0) < at


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
