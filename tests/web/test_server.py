"""When a server shuts down, requests finish or are cancelled, each hold is settled, and nothing waits forever."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError

import pytest

from koo.errors import ConfigurationError
from koo.host import Descriptors
from koo.options import DatabaseOptions
from koo.platform import Platform
from koo.shortages import NO_DESCRIPTOR, SHORTAGES
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, hang
from koo.web import create_app
from koo.web.ending import GRACE_S
from koo.web.listener import Listener, bind
from koo.web.server import make_server
from tests.cli.running import serving, settings_of
from tests.cli.test_serve import ask, question
from tests.scarce import no_descriptors
from tests.web.serving import claude, options, platform, served


def test_a_query_that_does_not_finish_in_time_is_cancelled_and_settled(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            fake.script(hang())
            koo = platform(tmp_path, claude(fake))
            async with served(create_app(koo), grace_s=0.2) as client:
                asked = {"service": "claude", "prompt": "Capital of France?"}
                asking = asyncio.create_task(client.post("/api/v1/ai/query", json=asked))
                await until(lambda: fake.queries)
            await asyncio.gather(asking, return_exceptions=True)
            service = koo.services["claude"]
            assert service.gates.bulkhead.used == 0
            assert service.default_guard.breaker.consecutive == 0  # it counts as a failure of neither side
            async with Platform(options(tmp_path, claude(fake))) as later:
                budget = later.service_health("claude")["rate_limits"]["daily_budget"]
                assert budget["reserved"] == "0"
                assert budget["spent"] != "0"  # it was sent and may be billed: the worst case

    asyncio.run(main())


def test_a_variable_of_other_servers_does_not_keep_koo_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    made = platform(tmp_path)
    make_server(made, create_app(made))


def test_a_request_cancelled_at_shutdown_gets_a_503_and_logs_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            fake.script(hang())
            made = platform(tmp_path, claude(fake))
            server = make_server(made, create_app(made))
            server.config.timeout_graceful_shutdown = 0.2  # type: ignore[assignment]
            with closing(bind("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
                running = asyncio.create_task(asyncio.to_thread(server.run, [listener]))
                await until(lambda: server.started or running.done())
                asking = asyncio.create_task(asyncio.to_thread(question, f"http://127.0.0.1:{port}"))
                await until(lambda: fake.queries or asking.done())
                server.should_exit = True
                with pytest.raises(HTTPError) as refused:
                    await asking
                await running
            with refused.value as reply:
                assert reply.code == 503 and reply.headers["Content-Type"] == "application/problem+json"
                assert "is shutting down" in json.load(reply)["detail"]
        assert not [record for record in caplog.records if record.exc_info]

    asyncio.run(main())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_after_a_second_signal_nothing_waits_and_everything_is_settled(
    tmp_path: Path, how: signal.Signals
) -> None:
    with FakeAnthropic() as fake:
        settings = settings_of(fake)
        with serving(tmp_path, **settings) as (url, process):
            fake.script(hang())
            with ThreadPoolExecutor(1) as elsewhere:
                asked = elsewhere.submit(question, url)
                while not fake.queries:
                    time.sleep(0.01)
                    assert not asked.done()
                process.send_signal(how)
                _until_it_ends(url)
                began = time.monotonic()
                process.send_signal(how)
                assert process.wait(20) == 0
                assert time.monotonic() - began < GRACE_S - 1
                with pytest.raises(HTTPError) as refused:
                    asked.result(20)
                with refused.value as reply:
                    assert (reply.code, json.load(reply)["kind"]) == (503, "draining")
        assert "Traceback" not in (tmp_path / "serve.log").read_text()
        with serving(tmp_path, **settings) as (url, _):
            health = ask(f"{url}/api/v1/ai/services/claude/health")
            assert health["rate_limits"]["daily_budget"]["reserved"] == "0"


def _until_it_ends(url: str) -> None:
    """When it accepts no new connections, it has received the first signal."""
    deadline = time.monotonic() + 20
    while True:
        try:
            ask(f"{url}/livez")
        except OSError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_invalid_setting_is_reported_before_anything_is_opened(tmp_path: Path) -> None:
    wrong = options(tmp_path, database=DatabaseOptions(url="mysql://user:hunter2@host/name"))
    with pytest.raises(ConfigurationError) as refused:
        make_server(Platform(wrong), create_app(Platform(wrong)))
    assert "hunter2" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_too_few_descriptors_are_reported_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koo.web.server.count_descriptors", lambda: Descriptors(used=6, limit=24))
    built = platform(tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        make_server(built, create_app(built))
    assert str(refused.value) == "the limit on open files (ulimit -n) is 24; the server needs at least 34"
    assert not any(tmp_path.iterdir())


def test_an_address_of_another_machine_is_reported_in_one_sentence() -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(ConfigurationError):
            bind(host, 0)


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EADDRINUSE, "another server"), (errno.EACCES, "ports below 1024")]
)
def test_a_port_that_is_refused_has_its_own_reason(
    number: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(listener: Listener, address: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Listener, "bind", refuse)
    with pytest.raises(ConfigurationError, match=f"{os.strerror(number)}; .*{hint}.*; set KOO_PORT"):
        bind("127.0.0.1", 80)


def test_a_server_needs_no_main_thread(tmp_path: Path) -> None:
    """A notebook serves from another thread, where no signal handlers can be installed."""
    made = platform(tmp_path)
    server = make_server(made, create_app(made))
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    server.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


def test_a_server_without_descriptors_notices_within_a_second(tmp_path: Path) -> None:
    """uvloop accepts connections and closes those for which it has no descriptor, without raising an error."""

    async def main() -> None:
        made = platform(tmp_path)
        server = make_server(made, create_app(made))
        with closing(bind("127.0.0.1", 0)) as listener:
            running = asyncio.create_task(asyncio.to_thread(server.run, [listener]))
            await until(lambda: server.started or running.done())
            try:
                before = SHORTAGES.count
                with no_descriptors():
                    await until(lambda: SHORTAGES.count > before)
                assert SHORTAGES.last == NO_DESCRIPTOR
                with closing(socket.create_connection(listener.getsockname())) as caller:
                    caller.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    assert (await asyncio.to_thread(caller.recv, 100)).startswith(b"HTTP/1.1 200 ")
            finally:
                server.should_exit = True
                await running

    asyncio.run(main())
