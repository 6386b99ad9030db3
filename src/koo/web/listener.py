"""The server's listening socket, and what it does when the process has no file descriptor for a new connection.

When the listening socket is readable, asyncio calls `accept` up to `backlog` times. It does not stop at the first
EMFILE: with a backlog of 2048 it logs about two thousand tracebacks, which blocks the loop for seconds, and does so
again each second. Therefore this socket keeps a few descriptors in reserve. When all others are used, a new connection
gets one of the reserve, and a connection that is only waiting is closed, as at the limit in `crowd.py`. So probes are
answered even then. When the reserve is used up too, asyncio sees a single error and tries again a second later.

uvloop has its own accept. It immediately closes any connection for which it has no descriptor.
"""

from __future__ import annotations

import errno
import os
import socket
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from koo.errors import ConfigurationError
from koo.shortages import SENTENCES, shortage_in

# The length of the kernel's queue of connections that are not yet accepted, and the number that asyncio accepts in one
# go. 2048 is uvicorn's default.
BACKLOG = 2048
# One descriptor for each connection that may arrive before `make_room` has taken effect, which is the next turn of the
# loop. `refill` runs once a second, so more than eight such connections in a second are made to wait.
RESERVE = 8
# asyncio's message to the loop's exception handler. Nothing else in the context identifies this error.
ASYNCIO_SAYS = "socket.accept() out of system resource"


class Listener(socket.socket):
    """A listening socket with a reserve of descriptors. It calls `make_room` when no others are left."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.make_room: Callable[[], object] = bool
        self._reserve: list[int] = []
        self._was_told = False

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in SENTENCES:
                raise
            return self._accept_with_reserve(error)

    def _accept_with_reserve(self, error: OSError) -> tuple[socket.socket, Any]:
        # After a shortage asyncio goes on calling `accept` and schedules a retry for each failed call; BlockingIOError
        # ends its loop. So the first call raises the real error, which makes asyncio pause this socket for a second,
        # and the next call raises BlockingIOError, which ends the loop with exactly one retry scheduled.
        if self._was_told:
            self._was_told = False
            raise BlockingIOError(errno.EAGAIN, "called again immediately after an error") from None
        shortage_in(error)
        # `make_room` closes an idle connection, but its descriptor is released only in the loop's next turn: asyncio
        # and uvloop close a socket in a callback. For this connection, close a descriptor of the reserve; `accept`
        # then gets the number that this frees. No other code of this thread runs in between, but a thread can take it;
        # then accept raises as before.
        self.make_room()
        if self._reserve:
            os.close(self._reserve.pop())
            return super().accept()
        self._was_told = True
        raise error

    def refill(self) -> None:
        """Fill the reserve, as far as descriptors are available."""
        try:
            while len(self._reserve) < RESERVE:
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass

    def close(self) -> None:
        while self._reserve:
            os.close(self._reserve.pop())
        super().close()


def bind(host: str, port: int) -> Listener:
    """Return a listening socket. Raises `ConfigurationError` with a sentence that tells the operator what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(
            "", f"KOO_HOST {host!r} is not an address of this machine: {error.strerror}"
        ) from None
    listener = Listener(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        why = {
            errno.EADDRINUSE: "; another server may be running there",
            errno.EACCES: "; this user may not use ports below 1024",
        }.get(error.errno or 0, "")
        raise ConfigurationError(
            "",
            f"cannot listen on {host} port {port}: {error.strerror}{why}; set KOO_PORT to use another port",
        ) from None
    return listener


def quiet_about_accepts(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler for the loop: a missing descriptor raises an alert and needs no traceback each second."""
    if context.get("message") != ASYNCIO_SAYS:
        loop.default_exception_handler(context)
