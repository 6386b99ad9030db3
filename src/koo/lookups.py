"""Name lookups in koo's own threads, at most one per name; later callers join the running lookup.

The system's lookup blocks and has no timeout, so it needs a thread. `loop.getaddrinfo` uses a thread of the event
loop's default executor, which has only a few for the whole application. A handful of hanging lookups would block
everything else that needs a thread, including the application's `asyncio.to_thread` and lookups of other services.
Here a hanging name occupies one thread. All its callers wait for that thread, each until its own deadline.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import NamedTuple

from koo.forks import forget_in_child
from koo.shortages import no_descriptor, start

NAMES_MAX = 256
"""The maximum number of threads. More name lookups than this can hang at the same time only because of a runaway
loop."""

Address = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]
"""As `socket.getaddrinfo` returns them."""


class Name(NamedTuple):
    """What is looked up. The port is left out because it does not affect the result."""

    host: str
    family: int
    flags: int


Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[Address]]"]


class Lookups:
    """The running lookups of a process, from any thread and loop."""

    def __init__(self) -> None:
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: start afresh, because the parent's threads do not exist there."""
        self._lock = threading.Lock()
        self._running: dict[Name, list[Waiter]] = {}

    async def find(self, host: str, port: int, *, family: int = 0, flags: int = 0) -> list[Address]:
        """The TCP addresses of a name. Raises OSError: `socket.gaierror`, or a shortage of this process."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Address]] = loop.create_future()
        self._join(Name(host, family, flags), (loop, found))
        return [_with_port(address, port) for address in await found]

    def _join(self, name: Name, waiter: Waiter) -> None:
        with self._lock:
            waiting = self._running.get(name)
            if waiting is not None:
                waiting.append(waiter)
                return
            if len(self._running) >= NAMES_MAX:
                raise OSError(None, f"{NAMES_MAX} name lookups are already running without a result")
            # The lookup is registered before the thread starts: one that ends first would find no waiter, and its
            # caller would wait forever. It is removed again if no thread could be started, or all later callers would
            # join a lookup that never runs.
            self._running[name] = [waiter]
            try:
                start(threading.Thread(target=self._look_up, args=(name,), name="koo lookup", daemon=True))
            except BaseException:
                del self._running[name]
                raise

    def _look_up(self, name: Name) -> None:
        """Look the name up; runs in the thread."""
        found: list[Address] | OSError
        running, lock = self._running, self._lock  # a fork replaces both; this thread must use the old pair
        try:
            found = socket.getaddrinfo(
                name.host, None, name.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, name.flags
            )  # type: ignore[assignment]
        except (OSError, UnicodeError) as error:
            found = _reason(error)
        # The lookup is removed in the same step in which the waiters are collected: a caller that comes later starts a
        # new lookup, instead of joining one that has already ended and would never wake it.
        with lock:
            waiting = running.pop(name, [])
        for loop, future in waiting:
            with suppress(RuntimeError):  # the waiter's loop is closed
                loop.call_soon_threadsafe(_tell, future, found)


def _tell(future: asyncio.Future[list[Address]], found: list[Address] | OSError) -> None:
    if future.done():
        return
    if isinstance(found, OSError):
        # Each waiter gets a copy: one error raised in two tasks would collect the frames of both in its traceback.
        future.set_exception(type(found)(*found.args))
    else:
        future.set_result(found)


def _reason(error: OSError | UnicodeError) -> OSError:
    """The true error. Without a free descriptor the resolver cannot read files or query servers, and reports that the
    name is unknown."""
    if isinstance(error, UnicodeError):  # a label that is empty or too long
        return socket.gaierror(socket.EAI_NONAME, "not a host name")
    return no_descriptor() or error


def _with_port(address: Address, port: int) -> Address:
    family, kind, protocol, name, place = address
    return family, kind, protocol, name, (place[0], port, *place[2:])


LOOKUPS = Lookups()
"""One for the process: two services on the same host share a lookup."""
