"""The server's listening socket copes when the process has no descriptor for a new connection."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from koo.shortages import SHORTAGES
from koo.testing.polling import until
from koo.web import create_app
from koo.web.crowd import Crowd
from koo.web.listener import BACKLOG, RESERVE, Listener, bind, quiet_about_accepts
from koo.web.server import make_server
from tests.scarce import no_descriptors
from tests.web.serving import platform
from tests.web.test_crowd import One


class Door(asyncio.Protocol):
    """A protocol that sends a greeting."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"welcome")


@pytest.fixture
def listener() -> Iterator[Listener]:
    with closing(bind("127.0.0.1", 0)) as one:
        assert isinstance(one, Listener)
        yield one


def test_clients_are_accepted_without_a_free_descriptor_and_asyncio_complains_once_a_second(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without koo, asyncio complains each second, once for each connection that the backlog can hold."""
    monkeypatch.setattr("asyncio.selector_events.constants.ACCEPT_RETRY_DELAY", 0.2)
    said: list[dict[str, Any]] = []
    room: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))
        listener.make_room = lambda: room.append(1)
        listener.refill()
        with ExitStack() as stack:
            callers = [stack.enter_context(socket.socket()) for _ in range(RESERVE + 1)]
            server = await loop.create_server(Door, sock=listener, backlog=BACKLOG)
            before = SHORTAGES.count
            await asyncio.to_thread(bool)  # a thread needs files for its imports
            with no_descriptors():
                for caller in callers:
                    caller.connect(listener.getsockname())
                for caller in callers[:RESERVE]:
                    assert await asyncio.to_thread(caller.recv, 100) == b"welcome"
                await until(lambda: len(said) == 2)
                assert len(room) == RESERVE + 2 == SHORTAGES.count - before
            assert await asyncio.to_thread(callers[-1].recv, 100) == b"welcome"
            assert len(said) <= 3
            server.close()

    asyncio.run(main())


def test_the_reserve_is_refilled_as_far_as_descriptors_are_available(listener: Listener) -> None:
    listener.refill()
    with socket.socket() as caller:
        with no_descriptors():
            caller.connect(listener.getsockname())
            came, _ = listener.accept()
            listener.refill()  # takes nothing, and does not fail
            with pytest.raises(OSError, match="Too many open files"):
                os.open(os.devnull, os.O_RDONLY)
        came.close()
    listener.refill()
    assert len(listener._reserve) == RESERVE


def test_other_errors_are_raised_unchanged(listener: Listener) -> None:
    listener.refill()
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert len(listener._reserve) == RESERVE


def test_a_closed_listener_releases_its_reserve(listener: Listener) -> None:
    listener.refill()
    reserve = list(listener._reserve)
    listener.close()
    for one in reserve:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(one)


def test_without_a_free_descriptor_an_idle_connection_is_closed() -> None:
    crowd = Crowd(10)
    waiting, working = One(), One()
    for one in (waiting, working):
        crowd.enter(one)
    crowd.works(working)
    crowd.make_room()
    assert waiting.is_over and not working.is_over
    crowd.make_room()
    assert not working.is_over


def test_a_server_without_descriptors_answers_probes_and_closes_idle_connections(tmp_path: Path) -> None:
    """The server runs on asyncio's own loop and refills its reserve."""

    async def main() -> None:
        made = platform(tmp_path)
        server = make_server(made, create_app(made))
        server.config.loop = "asyncio"
        with closing(bind("127.0.0.1", 0)) as listener, ExitStack() as stack:
            assert isinstance(listener, Listener)
            running = asyncio.create_task(asyncio.to_thread(server.run, [listener]))
            await until(lambda: server.started or running.done())
            try:
                await until(lambda: len(listener._reserve) == RESERVE)
                silent = stack.enter_context(socket.create_connection(listener.getsockname()))
                callers = [stack.enter_context(socket.socket()) for _ in range(2 * RESERVE)]
                with no_descriptors():
                    for caller in callers:
                        caller.connect(listener.getsockname())
                        caller.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                        answer = await asyncio.to_thread(caller.recv, 100)
                        assert answer.startswith(b"HTTP/1.1 200 ")
                    with suppress(ConnectionError):
                        assert await asyncio.to_thread(silent.recv, 100) == b""
                await until(lambda: len(listener._reserve) == RESERVE)
            finally:
                server.should_exit = True
                await running

    asyncio.run(main())


def test_only_asyncios_complaint_about_descriptors_is_not_logged() -> None:
    told: list[dict[str, Any]] = []
    loop: Any = type("Loop", (), {"default_exception_handler": staticmethod(told.append)})()
    quiet_about_accepts(loop, {"message": "socket.accept() out of system resource"})
    quiet_about_accepts(loop, other := {"message": "Task exception was never retrieved"})
    assert told == [other]
