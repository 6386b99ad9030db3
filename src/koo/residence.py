"""Residence: the one event loop that koo is open on, and the keeper that holds it open there.

    nowhere → opening → open → closing → nowhere

The first call that needs the running loop opens koo on it. The keeper is a task: opening happens in it, then it waits,
and its `finally` closes everything, whatever ended it: `close`, an opening that failed halfway, or `asyncio.run`, which
cancels all tasks at its end. So what was begun has one place that ends it, and nothing is left behind.

Connections belong to the loop that opened them. While the first loop runs, in another thread, calls of a second one
cross to it (`elsewhere`). While it stands still (a fixture's loop during a test, two loops that run by turns) no other
loop can close what it has; so koo is not opened a second time, and the error says what to write.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from weakref import WeakSet

from koo.bridge import BRIDGE
from koo.composition import Parts
from koo.crossing import NO_LOOP, Loop, begin, carry, running_loop
from koo.forks import leave_behind
from koo.upkeep import CheckServices, KeepTime, SendNotices

STANDS_STILL = (
    "koo is open on another event loop that was not closed and does not run now: write `await platform.close()` where "
    "its work there ends (in a fixture, before the `yield`), and it opens itself again where it is used; or let both "
    'share one loop (pytest-asyncio: loop_scope="session" at fixtures and tests)'
)
RUNS_ELSEWHERE = (
    "koo is open on another event loop that is still running, and calls cross to it automatically: open it here first, "
    "before anything else uses it, or close it there: koo.run(platform.close())"
)
SECOND = (
    "a second koo platform opens in this process on the same settings: each has its own pool, breakers and counts, "
    "and the monitoring of one shows nothing of the other; use the one of the process, `from koo import platform`"
)
FORKED = (
    "koo was open in the process that forked this one, and opens anew here, with its own connections, purses and name; "
    "what runs on a loop of the other process stays there, so open koo in each worker rather than before "
    "the fork (gunicorn --preload, multiprocessing)"
)
log = logging.getLogger("koo")
_all: WeakSet[Residence] = WeakSet()


class OpenElsewhere(RuntimeError):
    """It is open on another loop already."""


class Keeper:
    """The task that opens koo on one loop, holds it open and closes it. `error`: why opening failed."""

    def __init__(self, parts: Parts, residence: Residence, loop: Loop) -> None:
        self.opened = loop.create_future()
        self.closing = False
        self.error: Exception | None = None
        self._parts = parts
        self._residence = residence
        self.task = begin(loop, self._run(), "koo keeper")
        self.task.add_done_callback(lambda _: residence.leave(self))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        parts = self._parts
        try:
            # First: it refuses while the platform's database is in use on another loop, and koo would be on two.
            parts.deadlines.bind(loop)
            await parts.open()
            for one in (
                parts.store.ledger,
                parts.store.leasing,
                KeepTime(parts),
                CheckServices(parts),
                parts.fleet,
            ):
                tasks.append(begin(loop, one.run(), f"koo {type(one).__name__}"))  # noqa: PERF401
            for courier in parts.outbox.couriers:
                name = f"koo alerts by {courier.channel.name}"
                tasks.append(begin(loop, SendNotices(parts, courier).run(), name))
            self._residence.settle(loop)
            self.opened.set_result(None)
            await loop.create_future()
        except Exception as error:  # noqa: BLE001 - the caller that wanted it open raises it
            self.error = error
        finally:
            self._begin_to_close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts.close()
            parts.deadlines.unbind(loop)

    def cancel(self) -> None:
        """Close, once: the end of `asyncio.run` may have begun it, and a second cancellation would cut into it."""
        if not self.task.cancelling():
            self._begin_to_close()
            self.task.cancel()

    def _begin_to_close(self) -> None:
        self.closing = True  # from now on calls wait until it is closed, and then open anew
        self._residence.begin_to_leave(self.task.get_loop())

    async def changes(self) -> None:
        """Wait until it has opened, or has ended; what closes is waited for to its end."""
        until = [self.task] if self.closing else [self.task, self.opened]
        await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)


class Residence:
    """Where one platform lives. `parts` makes what is opened, without I/O, or raises `ConfigurationError`."""

    def __init__(self, parts: Callable[[], Parts]) -> None:
        self._parts = parts
        self._lock = threading.Lock()  # Two loops in two threads may open at once.
        self.loop: Loop | None = None
        self._keeper: Keeper | None = None
        self._is_open = False
        self._was_forked = False
        _all.add(self)

    # ── where ─────────────────────────────────────────────────────────────────────────────────────────────────

    def is_here(self) -> bool:
        """Is it open on the running loop? Raises RuntimeError where no asyncio loop runs."""
        try:
            return self._is_open and asyncio.get_running_loop() is self.loop
        except RuntimeError:
            raise RuntimeError(NO_LOOP) from None

    def elsewhere(self) -> Loop | None:
        """The loop that a call has to cross to; None: it is opened on the running one. See `Bridge.elsewhere`."""
        return BRIDGE.elsewhere(self.loop)

    def act(self, step: Callable[[], object]) -> None:
        """Run a step of the policies on the loop they belong to, and wait: another thread must not cut into one."""
        loop = self.loop
        if loop is None or not loop.is_running() or asyncio._get_running_loop() is loop:
            step()
            return
        done = threading.Event()

        def run() -> None:
            try:
                step()
            finally:
                done.set()

        loop.call_soon_threadsafe(run)
        done.wait(5.0)

    # ── opening and closing ───────────────────────────────────────────────────────────────────────────────────

    async def enter(self) -> Loop | None:
        """Open here, if koo is to live here; else the loop that a call has to cross to."""
        if self.is_here():
            return None
        home = self.elsewhere()
        if home is None:
            try:
                await self.open()
            except OpenElsewhere:  # another thread was a moment faster
                home = self.loop
                if home is None or not home.is_running():
                    raise
        return home

    async def open(self) -> None:
        """Open on the running loop. Raises RuntimeError while it is open on another one, and why opening failed."""
        while not self.is_here():
            keeper, is_ours = self._keeper_here()
            await keeper.changes()
            if is_ours and keeper.error is not None:
                raise keeper.error

    def _keeper_here(self) -> tuple[Keeper, bool]:
        """The running loop's keeper, and whether it was made now. Callers that find one wait, and then try again."""
        loop, parts = running_loop(), self._parts()
        with self._lock:
            if self._keeper is not None and self.loop is not None and not self.loop.is_closed():
                if self.loop is loop:
                    return self._keeper, False
                raise OpenElsewhere(RUNS_ELSEWHERE if self.loop.is_running() else STANDS_STILL)
            self.loop, self._is_open = loop, False
            keeper = self._keeper = Keeper(parts, self, loop)
        self._tell_of_fork()
        return keeper, True

    def _tell_of_fork(self) -> None:
        # Not in the fork itself: a handler may wait for a lock that a thread of the parent held in that moment.
        if self._was_forked:
            self._was_forked = False
            log.warning(FORKED, extra={"what": "forked_while_open"})

    async def close(self) -> None:
        """Close what is open; from another loop too, while the one it is open on runs. Else raises RuntimeError."""
        keeper, home = self._keeper, self.loop
        if keeper is None or home is None or home.is_closed():
            return
        if home is running_loop():
            keeper.cancel()
            await asyncio.wait([keeper.task])
        elif home.is_running():
            await carry(home, self.close())
        else:
            raise RuntimeError(STANDS_STILL)

    # ── for the keeper ────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, loop: Loop) -> None:
        """Everything is open on this loop."""
        if self.loop is loop:
            self._is_open = True
            BRIDGE.settle(self, loop, lasts=True)
            self._warn_of_second()

    def _warn_of_second(self) -> None:
        """`mount(app, Platform())` beside `SessionDep`: what is mounted would show a database that is never used."""
        options = self._parts().options
        others = [one for one in _all if one is not self and one._is_open]
        if any(one._parts().options == options for one in others):
            log.warning(SECOND)

    def begin_to_leave(self, loop: Loop) -> None:
        """It is being closed there."""
        if self.loop is loop:
            self._is_open = False
            BRIDGE.leave(self)

    def leave(self, keeper: Keeper) -> None:
        """It is closed."""
        if self._keeper is keeper:
            self._keeper = self.loop = None

    def forget_parent(self) -> None:
        """In a forked child: it lives nowhere yet."""
        leave_behind(self.loop, self._keeper)
        self._was_forked = self._keeper is not None
        self._lock = threading.Lock()
        self._keeper = self.loop = None
        self._is_open = False
