"""`koo watch`: the state of the running server, redrawn each second on a terminal; a single frame in a pipe."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from koo.cli.client import ServerClient, connect
from koo.cli.frame import Seen, lines_of
from koo.cli.tables import console, put_rendered
from koo.cli.terminal import HEALTH_EXITS, CommandFailed, Exit, put_json, run_async
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.shapes import Dashboard

if TYPE_CHECKING:
    from rich.live import Live

EVERY_S = 1.0
SILENCE_S = 30.0
"""The stream sends a sample every five seconds."""
FIRST_S = 5.0
"""The stream begins with the whole state, immediately."""
REAL_S = 1.0
"""A stream that is followed without polling lasts longer than this."""
STREAM_AGAIN_S = 60.0
AWAY = ("no_server", "draining")
SERVICE = "service/"
FLEET_EVERY_S = 5.0
"""The fleet is read from the state store and changes slowly."""


def watch(url: str | None, *, as_json: bool) -> Exit:
    """Runs until Ctrl-C on a terminal. In a pipe, or with JSON, prints the current state once; the exit code reflects
    it.
    """
    if as_json or not _can_draw():
        return run_async(_show_once(url, as_json=as_json))
    try:
        run_async(_draw(url))
    except CommandFailed as ended:
        if ended.code is not Exit.INTERRUPTED:
            raise
    return Exit.OK


def _can_draw() -> bool:
    return sys.stdout.isatty() and not console().is_dumb_terminal


class Watched:
    """The server, seen through its live stream, or through polling. The last response is kept until a newer one
    arrives.
    """

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        self._answer: Dashboard | None = None
        self._fleet: FleetStatus | None = None
        self._answered_at = self._heard_at = self._fleet_due_at = 0.0
        self._trouble = ""

    async def look(self) -> None:
        """Poll once. Raises `CommandFailed` for errors that trying again cannot fix, such as a rejected token."""
        try:
            answer = await self._client.get("/monitoring/dashboard", Dashboard)
        except CommandFailed as failed:
            if failed.kind not in AWAY or self._answer is None:
                raise
            self._trouble = f"no koo server answers at {self._client.url}"
            # The next server may be another one, or the fleet may have changed while it was gone: read it again
            # immediately.
            self._fleet_due_at = 0.0
            return
        self._take(answer)
        if self._answered_at >= self._fleet_due_at:
            self._fleet_due_at = self._answered_at + FLEET_EVERY_S
            with suppress(CommandFailed):  # an older server has no fleet
                self._fleet = await self._client.get("/monitoring/fleet", FleetStatus)

    def _take(self, answer: Dashboard) -> None:
        self._answer, self._trouble = answer, ""
        self._answered_at = self._heard_at = time.monotonic()

    async def listen(self) -> bool:
        """Follow the live stream until it ends or breaks; returns whether anything came over it.

        Nothing comes if the server has none, or if a proxy holds it back.
        """
        parts: dict[str, Any] = {}
        has_come = False
        with suppress(CommandFailed):
            stream = self._client.events("/monitoring/live", first_s=FIRST_S, silence_s=SILENCE_S)
            async for name, data in stream:
                has_come = True
                self._heard_at = time.monotonic()
                if name == "whole":
                    parts = data["parts"]
                    self._take(dashboard_of(parts, data["at"]))
                elif name == "part" and self._answer is not None:
                    parts[data["key"]] = data["value"]
                    # Times in parts are absolute. So the reference time stays that of the first message, and elapsed
                    # time is added to it.
                    self._answer = dashboard_of(parts, self._answer["timestamp"])
                self._fleet = parts.get("fleet") or self._fleet
        return has_come

    @property
    def seen(self) -> Seen:
        """What is known now."""
        now = time.monotonic()
        since_s, age_s = now - self._answered_at, now - self._heard_at
        return Seen(self._client.url, self._answer, self._fleet, since_s, age_s, self._trouble)

    @property
    def answer(self) -> Dashboard:
        assert self._answer is not None
        return self._answer


async def _show_once(url: str | None, *, as_json: bool) -> Exit:
    async with connect(url) as client:
        watched = Watched(client)
        await watched.look()
    if as_json:
        put_json(watched.answer)
    else:
        screen = console()
        with screen.capture() as captured:
            screen.print(*lines_of(replace(watched.seen, since_s=0.0, age_s=0.0), screen.width), sep="\n")
        put_rendered("\n".join(line.rstrip() for line in captured.get().splitlines()))
    return HEALTH_EXITS.get(watched.answer["summary"]["overall_health"], Exit.FAILED)


async def _draw(url: str | None) -> None:
    """Draw on a separate screen, each second and when the window is resized. The screen is removed at the end."""
    from rich.console import Group
    from rich.live import Live

    async with connect(url) as client:
        watched = Watched(client)
        await watched.look()  # if there is no server, print one sentence on the ordinary screen
        with Live(console=console(), screen=True, auto_refresh=False) as live:
            resized = asyncio.Event()
            loop = asyncio.get_running_loop()
            handlers: dict[int, Callable[[], None]] = {
                signal.SIGWINCH: resized.set,
                signal.SIGTSTP: partial(_pause, live, resized),
            }
            for one, handle in handlers.items():
                loop.add_signal_handler(one, handle)
            asking = asyncio.create_task(_ask_over_and_over(watched))
            try:
                while not asking.done():
                    live.update(Group(*lines_of(watched.seen, live.console.width)), refresh=True)
                    resized.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(EVERY_S):
                            await resized.wait()
            finally:
                for one in handlers:
                    loop.remove_signal_handler(one)
                asking.cancel()
        await asking


def _pause(live: Live, resized: asyncio.Event) -> None:
    """Ctrl-Z: without this, the shell would continue on the separate screen, without a cursor."""
    live.console.set_alt_screen(False)
    live.console.show_cursor(True)
    os.kill(os.getpid(), signal.SIGSTOP)
    live.console.set_alt_screen(True)
    live.console.show_cursor(False)
    resized.set()


async def _ask_over_and_over(watched: Watched) -> None:
    """Runs in a separate task: while a response is slow, the drawing continues and shows its age."""
    while True:
        began_at = time.monotonic()
        # A stream that has broken: poll once, then reconnect. If nothing came over it, or it ended immediately, as
        # behind a proxy that allows none: poll for a while before the next attempt.
        is_real = await watched.listen() and time.monotonic() - began_at > REAL_S
        until = time.monotonic() + (0.0 if is_real else STREAM_AGAIN_S)
        while True:
            await watched.look()
            if time.monotonic() >= until and not watched.seen.trouble:
                break
            await asyncio.sleep(EVERY_S)


def dashboard_of(parts: Mapping[str, Any], at: str) -> Dashboard:
    """Build the overview from the parts of the live stream; `at`: the server's time."""
    names = (key for key in parts if key.startswith(SERVICE) and parts[key] is not None)
    services = {key.removeprefix(SERVICE): parts[key] for key in names}
    made: Any = {
        "summary": parts["status"],
        "database": parts["database"],
        "ai_services": {"services": services, "budgets": parts.get("budgets") or []},
        "alerts": parts["alerts"],
        "timestamp": at,
    }
    return cast("Dashboard", made)
