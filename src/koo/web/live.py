"""The live stream: one look a second for all listeners, and no work at all without one.

Each second the producer looks once, encodes each part that has changed once, and offers it to all listeners. A listener
is a dictionary from a key to the newest event of that key, and a wake-up; it is never a queue. So a reader that is
slower than the news gets the newest and skips what was in between, and its memory is bounded by the number of keys.
Events that do not replace one another (marks, requests) take turns in a few keys each: of those the last ones stay.

The state store is read in a separate task, so that a store that hangs does not stop the looks.
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

LISTENERS_MAX = 100
LOOK_S = 1.0
READ_S = 3.0
"""Between two looks into the state store."""
FIRST_S = 10.0
"""How long the first look is awaited."""
FIRST_READ_S = 1.0
"""How long the first look into the state store is awaited; what it finds later comes as parts."""
TURNS = 20
"""Of events that do not replace one another, how many wait for a slow reader."""
AGAIN_S = 30.0
COMMENT = b": still here\n\n"
Reason = Literal["", "draining", "session"]


class Listener:
    """One open stream: the newest event of each key, until it is taken."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._news = asyncio.Event()
        self.reason: Reason = ""

    def offer(self, key: str, event: bytes) -> None:
        """Take the place of the event of this key that was not taken yet, behind the others."""
        self._waiting.pop(key, None)
        self._waiting[key] = event
        self._news.set()

    def end(self, reason: Reason) -> None:
        """Nothing comes after what waits."""
        self.reason = self.reason or reason
        self._news.set()

    def wake(self) -> None:
        """Let `take` return, also with nothing."""
        self._news.set()

    async def take(self, within_s: float) -> bytes:
        """What waits, when something does; empty: nothing came."""
        try:
            async with asyncio.timeout(within_s):
                await self._news.wait()
        except TimeoutError:
            return b""
        self._news.clear()
        taken = b"".join(self._waiting.values())
        self._waiting.clear()
        return taken


class Live:
    """The stream of one process. `make`: makes a new source when the first listener comes."""

    def __init__(self, make: Callable[[], Source], clock: Callable[[], Clock], readiness: Readiness) -> None:
        self._make, self._clock_of, self._readiness = make, clock, readiness
        self._listeners: dict[Listener, bool] = {}  # whether it has the whole already
        self._tasks: list[asyncio.Task[None]] = []
        self._turns: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._source: Source | None = None
        self._parts, self._stored = Parts(), dict[str, Any]()
        self._looked, self._read = asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        return len(self._listeners)

    # ── coming and going ──────────────────────────────────────────────────────────────────────────────────────

    async def join(self, listener: Listener, head: Mapping[str, Any]) -> None:
        """Listen, beginning with the whole. Raises `ServiceRefused` where there is no place, or this process ends."""
        if self._readiness.closing:
            raise ServiceRefused("koo", "this process is ending", kind=Kind.DRAINING)
        if len(self._listeners) >= LISTENERS_MAX:
            reason = f"{LISTENERS_MAX} live streams are open, which is the limit; ask the API instead"
            raise ServiceRefused("koo", reason, AGAIN_S, kind=Kind.SATURATED)
        self._listeners[listener] = False
        try:
            self._wake()
            async with asyncio.timeout(FIRST_S):
                await self._looked.wait()
        except TimeoutError as error:
            reason = f"the state could not be read within {FIRST_S:.0f} s"
            raise ServiceRefused("koo", reason, AGAIN_S, kind=Kind.SATURATED) from error
        finally:
            if not self._looked.is_set():
                self.leave(listener)
        listener.offer("whole", self._parts.whole({"at": now_iso(self._clock_of()), **head}))
        self._listeners[listener] = True

    def leave(self, listener: Listener) -> None:
        """Listen no longer. The last one puts the producer to sleep."""
        self._listeners.pop(listener, None)
        if not self._listeners:
            self._sleep()

    def end(self, reason: Reason = "draining") -> None:
        """End all streams: each says so, and is answered."""
        for listener in tuple(self._listeners):
            listener.end(reason)

    async def close(self) -> None:
        """End all, and look no longer."""
        self.end()
        tasks = self._sleep()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
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
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if isinstance(self._source, PlatformSource):
            self._source.forget()
        return tasks

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _for_ever(self, step: Callable[[], Coroutine[Any, Any, None]], pause_s: float) -> None:
        is_failing = False
        while True:
            try:
                await step()
            except Exception:
                if not is_failing:
                    log.exception("the live stream could not read the state, and continues")
                is_failing = True
            else:
                is_failing = False
            await self._clock_of().sleep(pause_s)

    async def look(self) -> None:
        """What this process knows: offer what has changed."""
        if self._readiness.closing or is_server_ending():
            self.end()
            return
        assert self._source is not None
        clock, found = self._clock_of(), await self._source.parts()
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
        """What is in the state store."""
        if self._readiness.closing:
            return
        try:
            await self._read_all()
        finally:
            self._read.set()  # not before: what happens after the first whole has to be new to the first look

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
        for listener, is_greeted in self._listeners.items():
            if is_greeted:
                listener.offer(key, event)

    def _offer_in_turn(self, name: str, data: bytes) -> None:
        turn = self._turns[name] = (self._turns.get(name, -1) + 1) % TURNS
        self._offer(f"{name} {turn}", event_of(name, data))


async def _wait(event: asyncio.Event, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        pass


def is_server_ending() -> bool:
    """Is the server that we are mounted in about to end?

    uvicorn ends the lifespan only when all requests are answered, so a stream would keep it waiting, without a bound
    unless one is set. But its signal handler is a method of the server, which leads to the server.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True


_of: WeakKeyDictionary[Platform, Live] = WeakKeyDictionary()


def live_of(platform: Platform) -> Live:
    """The one of this platform, whichever routers serve it."""
    found = _of.get(platform)
    if found is None:
        found = _of[platform] = Live(
            lambda: PlatformSource(platform), lambda: platform.parts.clock, readiness_of(platform)
        )
    return found
