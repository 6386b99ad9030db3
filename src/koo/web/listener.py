"""The listening socket of a server, and what it does where this process has no file descriptor for a new connection.

asyncio accepts as many connections at a time as the backlog is long, and does not stop when the first one fails for
want of a descriptor: two thousand tracebacks, seconds in which nothing else runs, and all of that again each second.
So this socket keeps some descriptors in reserve. When there are no others, a new connection takes one of them, and a
connection on which koo waits is closed, as at the bound of `crowd.py`: a probe is answered, whatever took the
descriptors. When the reserve is used up too, asyncio sees one error, and tries again a second later.

uvloop has its own accept: it closes at once any connection that it has no descriptor for.
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

BACKLOG = 2048
RESERVE = 8
ASYNCIO_SAYS = "socket.accept() out of system resource"


class Listener(socket.socket):
    """A listening socket with a reserve of descriptors; `make_room` is called when there are no others."""

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
        if self._was_told:
            self._was_told = False
            raise BlockingIOError(errno.EAGAIN, "asked again at once") from None
        shortage_in(error)
        self.make_room()  # which has its descriptor back in the loop's next turn
        if self._reserve:
            os.close(self._reserve.pop())
            return super().accept()
        self._was_told = True
        raise error

    def refill(self) -> None:
        """Reserve descriptors again, as far as there are some."""
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
    """A listening socket. Raises `ConfigurationError`, which says what to do."""
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
        raise ConfigurationError(
            "",
            f"cannot listen on {host} port {port}: {error.strerror}; another server may be running there; "
            f"set KOO_PORT to use another port",
        ) from None
    return listener


def quiet_about_accepts(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """A loop's exception handler: a missing descriptor raises an alert, and needs no traceback each second."""
    if context.get("message") != ASYNCIO_SAYS:
        loop.default_exception_handler(context)
