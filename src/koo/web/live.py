"""The live stream: one producer reads the state once a second for all listeners, and does nothing if there are none.

Each second the producer reads the state, encodes each part that has changed once, and offers it to all listeners. A
listener is not a queue: it is a dictionary from a key to the newest event with that key, and a wake-up. A reader that
is slower than the stream receives the newest state and skips what was in between, and its memory is bounded by the
number of keys. Events that do not replace one another (marks, requests) rotate through a few keys each, so the last
ones are kept.

The state store is read in a separate task, so that a store that hangs does not delay the rest.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

from koo.clock import Clock
from koo.errors import Kind, ServiceRefused
from koo.monitoring.guards import now_iso
from koo.platform import Platform
from koo.web.as_json import as_json
from koo.web.live_parts import Parts, event_of
from koo.web.live_source import PlatformSource, Source
from koo.web.readiness import Readiness, readiness_of

log = logging.getLogger("koo.web")

# A stream holds its connection for as long as its page is open. Dashboards left open in many tabs must not use up the
# connections that requests need.
LISTENERS_MAX = 100
LOOK_S = 1.0
READ_S = 3.0
"""Seconds between two reads of the state store."""
FIRST_S = 10.0
"""How long to wait for the first state."""
FIRST_READ_S = 1.0
"""How long to wait for the first read of the state store; what it finds later is sent as parts."""
TURNS = 20
"""For events that do not replace one another: how many wait for a slow reader."""
AGAIN_S = 30.0
COMMENT = b": still here\n\n"
Reason = Literal["", "draining", "session"]


class Listener:
    """One open stream: the newest event of each key until it is taken."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._news = asyncio.Event()
        self.reason: Reason = ""

    def offer(self, key: str, event: bytes) -> None:
        """Replace the waiting event of this key, if there is one, and move it to the end."""
        # The old event is removed first, because assigning to an existing key keeps its old position. Events are sent
        # in the order in which their content was read.
        self._waiting.pop(key, None)
        self._waiting[key] = event
        self._news.set()

    def end(self, reason: Reason) -> None:
        """Send nothing after what is already waiting."""
        self.reason = self.reason or reason  # the first reason wins
        self._news.set()

    def wake(self) -> None:
        """Make `take` return, even with nothing."""
        self._news.set()

    async def take(self, within_s: float) -> bytes:
        """Wait for events and return all that are waiting; empty if none arrived in time."""
        try:
            async with asyncio.timeout(within_s):
                await self._news.wait()
        except TimeoutError:
            return b""
        # No `await` between these lines: on one event loop nothing can be offered between clearing the flag and taking
        # the events, so no event is lost and none is sent twice.
        self._news.clear()
        taken = b"".join(self._waiting.values())
        self._waiting.clear()
        return taken


class Live:
    """The stream of one process. `make`: creates a source when the first listener joins."""

    def __init__(self, make: Callable[[], Source], clock: Callable[[], Clock], readiness: Readiness) -> None:
        self._make, self._clock_of, self._readiness = make, clock, readiness
        self._listeners: dict[Listener, bool] = {}  # whether it has received the whole state
        self._tasks: list[asyncio.Task[None]] = []
        self._turns: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._source: Source | None = None
        self._parts, self._stored = Parts(), dict[str, Any]()
        self._looked, self._read = asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        return len(self._listeners)

    # ── joining and leaving ───────────────────────────────────────────────────────────────────────────────────

    async def join(self, listener: Listener, head: Mapping[str, Any]) -> None:
        """Add a listener, with the whole state as its first message.

        Raises `ServiceRefused` if the limit is reached or this process is ending.
        """
        if self._readiness.closing:
            raise ServiceRefused("koo", "this process is ending", kind=Kind.DRAINING)
        if len(self._listeners) >= LISTENERS_MAX:
            reason = f"{LISTENERS_MAX} live streams are open, which is the limit; use the API instead"
            raise ServiceRefused("koo", reason, AGAIN_S, kind=Kind.SATURATED)
        # The listener is registered as not greeted before the wait: it counts against the limit and keeps the producer
        # awake, but `_offer` skips it. Otherwise it could receive a part before the whole that the part changes.
        self._listeners[listener] = False
        try:
            self._wake()
            async with asyncio.timeout(FIRST_S):
                await self._looked.wait()
        except TimeoutError as error:
            reason = f"the state could not be read within {FIRST_S:.0f} s"
            raise ServiceRefused("koo", reason, AGAIN_S, kind=Kind.SATURATED) from error
        finally:
            # This is also reached when the request is cancelled while waiting. If the listener stayed in the
            # dictionary, it would keep the producer running without a reader, for as long as the process lives.
            if not self._looked.is_set():
                self.leave(listener)
        # There is no `await` between taking the whole state and marking the listener as greeted. A part that changes
        # before is in the whole, and one that changes after is offered: none is missed.
        listener.offer("whole", self._parts.whole({"at": now_iso(self._clock_of()), **head}))
        self._listeners[listener] = True

    def leave(self, listener: Listener) -> None:
        """Remove a listener. When the last one leaves, the producer stops."""
        self._listeners.pop(listener, None)
        if not self._listeners:
            self._sleep()

    def end(self, reason: Reason = "draining") -> None:
        """End all streams: each sends its reason and then ends its response."""
        for listener in tuple(self._listeners):
            listener.end(reason)

    async def close(self) -> None:
        """End all streams and stop the producer."""
        self.end()
        tasks = self._sleep()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        # A platform may be used from one event loop after another (tests, notebooks). Tasks of a loop that has ended
        # never run again and cannot be cancelled; forget them.
        loop = asyncio.get_running_loop()
        if any(task.get_loop() is not loop or task.done() for task in self._tasks):
            self._tasks = []  # of a loop that has ended
        if not self._tasks:
            self._begin()
            self._source = self._make()
            self._tasks = [
                asyncio.create_task(self._for_ever(self.look, LOOK_S), name="koo live"),
                asyncio.create_task(self._for_ever(self.read, READ_S), name="koo live store"),
            ]

    def _sleep(self) -> list[asyncio.Task[None]]:
        # The list is cleared before cancelling: a listener that joins while the tasks are still ending must find no
        # tasks and start new ones, with a new source.
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if isinstance(self._source, PlatformSource):
            self._source.forget()
        return tasks

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _for_ever(self, step: Callable[[], Coroutine[Any, Any, None]], pause_s: float) -> None:
        is_failing = False
        while True:
            try:
                await step()
            except Exception:
                if not is_failing:  # one log line for a series of failures
                    log.exception("the live stream could not read the state and will try again")
                is_failing = True
            else:
                is_failing = False
            await self._clock_of().sleep(pause_s)

    async def look(self) -> None:
        """Read what this process has in memory and offer what has changed."""
        if self._readiness.closing or is_server_ending():
            self.end()
            return
        assert self._source is not None
        clock, found = self._clock_of(), await self._source.parts()
        # The first whole state should include the fleet, but a slow store must not delay it for long. What arrives
        # later is sent as a part.
        if not self._looked.is_set():
            await _wait(self._read, FIRST_READ_S)
        events = self._parts.take({**found, **self._stored}, now_iso(clock), clock.monotonic())
        self._looked.set()
        for key, event in events.items():
            self._offer(f"part {key}", event)
        point = self._source.point()
        if point is not None:
            self._offer("point", event_of("point", as_json(point)))

    async def read(self) -> None:
        """Read what is in the state store."""
        if self._readiness.closing:
            return
        try:
            await self._read_all()
        finally:
            # This is set only when everything has been read, or the read has failed. The first read counts all marks
            # and requests that it finds as known. If the first whole state were sent before that, a mark made in
            # between would count as known too, and no listener would ever receive it.
            self._read.set()

    async def _read_all(self) -> None:
        assert self._source is not None
        self._stored = await self._source.stored_parts()
        for mark in await self._source.marks():
            self._offer_in_turn("mark", as_json(mark))
        requests, more = await self._source.requests()
        for request in requests:
            self._offer_in_turn("request", as_json(request))
        if more:
            self._offer("requests", event_of("requests", as_json({"more": more})))

    def _offer(self, key: str, event: bytes) -> None:
        # No task, no `await`: offering to a hundred listeners is a hundred dictionary updates. A slow reader delays
        # only its own `send`, never this loop.
        for listener, is_greeted in self._listeners.items():
            if is_greeted:
                listener.offer(key, event)

    def _offer_in_turn(self, name: str, data: bytes) -> None:
        # Keys "mark 0" to "mark 19" in turn: the twenty-first event replaces the first if a reader has not taken it
        # yet.
        turn = self._turns[name] = (self._turns.get(name, -1) + 1) % TURNS
        self._offer(f"{name} {turn}", event_of(name, data))


async def _wait(event: asyncio.Event, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        pass


def is_server_ending() -> bool:
    """Return whether the server in which koo is mounted is about to end.

    uvicorn ends the lifespan only when all requests are answered, so an open stream would keep it waiting, forever
    unless a timeout is set. Nothing notifies the application, but uvicorn's signal handler is a method of the server,
    so the server can be found through it.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True


_of: WeakKeyDictionary[Platform, Live] = WeakKeyDictionary()


def live_of(platform: Platform) -> Live:
    """Return the platform's only instance, whichever routers serve it."""
    found = _of.get(platform)
    if found is None:
        found = _of[platform] = Live(
            lambda: PlatformSource(platform), lambda: platform.parts.clock, readiness_of(platform)
        )
    return found
