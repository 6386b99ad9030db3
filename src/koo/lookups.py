"""Name lookups in koo's own threads, at most one for each name; later callers join the one that runs.

The system's lookup blocks and has no timeout, so it needs a thread. `loop.getaddrinfo` takes one of the event loop's
default executor, which has a few for the whole application: a handful of lookups that hang would stop everything else
that needs a thread, the application's `asyncio.to_thread` and lookups of other services included. Here a name that
hangs has one thread. All callers that need it wait for that one, each until its own deadline.
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
"""Threads at once: only a runaway loop looks up more hanging names than this."""

Address = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]
"""As `socket.getaddrinfo` returns them."""


class Name(NamedTuple):
    """What is looked up; the port plays no part."""

    host: str
    family: int
    flags: int


Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[Address]]"]


class Lookups:
    """The lookups of a process that run now, from any thread and loop."""

    def __init__(self) -> None:
        self.forget_parent()
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child, where the parent's threads are not."""
        self._lock = threading.Lock()
        self._running: dict[Name, list[Waiter]] = {}

    async def find(self, host: str, port: int, *, family: int = 0, flags: int = 0) -> list[Address]:
        """The addresses of a name, for TCP. Raises OSError: `socket.gaierror`, or what this process lacks for it."""
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
                raise OSError(None, f"{NAMES_MAX} host names are being looked up, and none has been answered")
            # Entered before the thread can end, and removed if none could be started, or all later callers would wait.
            self._running[name] = [waiter]
            try:
                start(threading.Thread(target=self._look_up, args=(name,), name="koo lookup", daemon=True))
            except BaseException:
                del self._running[name]
                raise

    def _look_up(self, name: Name) -> None:
        """In the thread."""
        found: list[Address] | OSError
        running, lock = self._running, self._lock  # in a forked child these are others
        try:
            found = socket.getaddrinfo(
                name.host, None, name.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, name.flags
            )  # type: ignore[assignment]
        except (OSError, UnicodeError) as error:
            found = _reason(error)
        with lock:
            waiting = running.pop(name, [])
        for loop, future in waiting:
            with suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(_tell, future, found)


def _tell(future: asyncio.Future[list[Address]], found: list[Address] | OSError) -> None:
    if future.done():
        return
    if isinstance(found, OSError):
        # A fresh one for each: raised in two tasks, one error would gather the frames of both.
        future.set_exception(type(found)(*found.args))
    else:
        future.set_result(found)


def _reason(error: OSError | UnicodeError) -> OSError:
    """Without a descriptor the resolver reads no file and asks no server, and says that the name is not known."""
    if isinstance(error, UnicodeError):  # a label that is empty or too long
        return socket.gaierror(socket.EAI_NONAME, "not a host name")
    return no_descriptor() or error


def _with_port(address: Address, port: int) -> Address:
    family, kind, protocol, name, place = address
    return family, kind, protocol, name, (place[0], port, *place[2:])


LOOKUPS = Lookups()
"""Of this process: two services of one host share a lookup."""
