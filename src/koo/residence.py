"""Residence: the one event loop that koo is open on, and the keeper that keeps it open there.

    nowhere → opening → open → closing → nowhere

The first call that needs the running loop opens koo on it. The keeper is a task. It opens everything, waits, and closes
everything in its `finally`, whatever ended it: `close`, an opening that failed halfway, or `asyncio.run`, which cancels
all tasks at its end. Everything that was started is thus stopped in one place, and nothing is left behind.

Connections belong to the loop that opened them. While the first loop runs in another thread, calls from a second loop
cross to it (`elsewhere`). While the first loop is not running (a fixture's loop during a test, two loops that take
turns), no other loop can close its connections. Then koo is not opened a second time, and the error says what to do.
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
    "koo is open on another event loop, which is not running now and was not closed: call `await platform.close()` at "
    "the end of the work there (in a fixture, before the `yield`), and koo opens again where it is used; or run "
    'both on one loop (pytest-asyncio: loop_scope="session" for fixtures and tests)'
)
RUNS_ELSEWHERE = (
    "koo is open on another event loop that is still running, and calls cross to it automatically: open it here first, "
    "before anything else uses it, or close it there: koo.run(platform.close())"
)
SECOND = (
    "a second koo platform was opened in this process with the same settings: each has its own pool, breakers and "
    "counts, and the monitoring of one shows nothing of the other; use the process's own: `from koo import platform`"
)
FORKED = (
    "koo was open in the process that forked this one, and opens again here with its own connections, purses and name; "
    "work on a loop of the other process stays there, so open koo in each worker rather than before the fork "
    "(gunicorn --preload, multiprocessing)"
)
log = logging.getLogger("koo")
_all: WeakSet[Residence] = WeakSet()


class OpenElsewhere(RuntimeError):
    """koo is already open on another loop."""


class Keeper:
    """The task that opens koo on one loop, keeps it open and closes it. `error`: why opening failed."""

    def __init__(self, parts: Parts, residence: Residence, loop: Loop) -> None:
        self.opened = loop.create_future()
        self.closing = False
        self.error: Exception | None = None
        self._parts = parts
        self._residence = residence
        self.task = begin(loop, self._run(), "koo keeper")
        # The keeper leaves only when the task has ended: until then a new opening waits for the closing, so the two
        # never overlap.
        self.task.add_done_callback(lambda _: residence.leave(self))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        parts = self._parts
        try:
            # This comes first, because it raises `WrongLoop` while the platform's database is in use on another loop:
            # otherwise koo would be half open on two loops.
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
        except Exception as error:  # noqa: BLE001 - `Residence.open` raises it in the caller
            self.error = error
        finally:
            # The tasks end before the parts are closed: they would otherwise use a store and clients that are closing.
            self._begin_to_close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts.close()
            parts.deadlines.unbind(loop)

    def cancel(self) -> None:
        """Begin to close, unless that has begun: the end of `asyncio.run` cancels the task as well, and a second
        cancellation would interrupt the cleanup."""
        if not self.task.cancelling():
            self._begin_to_close()
            self.task.cancel()

    def _begin_to_close(self) -> None:
        self.closing = True  # from now on calls wait until it has closed, and then open koo again
        self._residence.begin_to_leave(self.task.get_loop())

    async def changes(self) -> None:
        """Wait until it has opened or ended. If it is closing, wait until it has ended."""
        # `opened` stays set while it is closing: a caller that waited for it would go on with parts that are being
        # closed.
        until = [self.task] if self.closing else [self.task, self.opened]
        await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)


class Residence:
    """Where one platform is open. `parts` creates what will be opened, without I/O, or raises `ConfigurationError`."""

    def __init__(self, parts: Callable[[], Parts]) -> None:
        self._parts = parts
        self._lock = threading.Lock()  # two loops in two threads may open it at the same time
        self.loop: Loop | None = None
        self._keeper: Keeper | None = None
        self._is_open = False
        self._was_forked = False
        _all.add(self)

    # ── where ─────────────────────────────────────────────────────────────────────────────────────────────────

    def is_here(self) -> bool:
        """Whether koo is open on the running loop. Raises RuntimeError if no asyncio loop is running."""
        try:
            return self._is_open and asyncio.get_running_loop() is self.loop
        except RuntimeError:
            raise RuntimeError(NO_LOOP) from None

    def elsewhere(self) -> Loop | None:
        """The loop that a call must cross to; None if koo opens on the running one. See `Bridge.elsewhere`."""
        return BRIDGE.elsewhere(self.loop)

    def act(self, step: Callable[[], object]) -> None:
        """Run a change of the policies on their own loop, and wait for it."""
        # The policies have no lock: between two awaits the loop's code relies on being alone. A reset from another
        # thread could clear a breaker's leases in the middle of a settlement that is about to remove one.
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
        """Open koo here if it belongs here; else return the loop that a call must cross to."""
        if self.is_here():
            return None
        home = self.elsewhere()
        if home is None:
            try:
                await self.open()
            except OpenElsewhere:  # another thread was faster
                home = self.loop
                if home is None or not home.is_running():
                    raise
        return home

    async def open(self) -> None:
        """Open on the running loop. Raises RuntimeError while koo is open on another loop, and whatever error the
        opening raised."""
        # This is a loop, because a caller may have waited for a close and must then open again. Only the caller that
        # created the keeper raises its error. The others try again, each with a keeper and an error of its own.
        while not self.is_here():
            keeper, is_ours = self._keeper_here()
            await keeper.changes()
            if is_ours and keeper.error is not None:
                raise keeper.error

    def _keeper_here(self) -> tuple[Keeper, bool]:
        """The running loop's keeper, and whether it is new. A caller that finds an existing one waits and tries
        again."""
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
        # This is not done in the fork handler: another thread of the parent may have held a log handler's lock at that
        # moment. In the child that thread does not exist, so the lock would never be released.
        if self._was_forked:
            self._was_forked = False
            log.warning(FORKED, extra={"what": "forked_while_open"})

    async def close(self) -> None:
        """Close koo. From another loop this works while the loop that koo is open on is running; else it raises
        RuntimeError."""
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
        """Called when everything is open on this loop."""
        if self.loop is loop:
            self._is_open = True
            BRIDGE.settle(self, loop, lasts=True)
            self._warn_of_second()

    def _warn_of_second(self) -> None:
        """Warn of a second platform. After `mount(app, Platform())`, `SessionDep` still uses the process's own
        platform, and the mounted pages would show a database that is never used."""
        options = self._parts().options
        others = [one for one in _all if one is not self and one._is_open]
        if any(one._parts().options == options for one in others):
            log.warning(SECOND)

    def begin_to_leave(self, loop: Loop) -> None:
        """Called when closing begins."""
        if self.loop is loop:
            self._is_open = False
            BRIDGE.leave(self)

    def leave(self, keeper: Keeper) -> None:
        """Called when it has closed."""
        if self._keeper is keeper:
            self._keeper = self.loop = None

    def forget_parent(self) -> None:
        """In a forked child: record that koo is open nowhere yet."""
        leave_behind(self.loop, self._keeper)
        self._was_forked = self._keeper is not None
        # The child gets a new lock: another thread of the parent may have held the old one at the fork, and no thread
        # here would release it.
        self._lock = threading.Lock()
        self._keeper = self.loop = None
        self._is_open = False
