"""The live stream: one read of the state for all listeners, each part when it changes, no listener that costs more."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from koo import run
from koo.errors import ServiceRefused
from koo.monitoring import fleet_shapes, history_shapes, live_shapes, shapes, spend_shapes
from koo.platform import Platform
from koo.testing.clock import VirtualClock, run_virtual
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic
from koo.web import create_app, live, live_routes, monitoring_router, mount
from koo.web.listener import bind
from koo.web.live import Listener, Live, live_of
from koo.web.live_parts import Parts, is_alike
from koo.web.live_source import LINES_MAX, PlatformSource, Seen
from koo.web.readiness import Readiness
from koo.web.server import make_server
from tests.web.exact import check_exactly
from tests.web.serving import Client, claude, platform, served
from tests.web.streams import LIVE, listening

AT = "2026-11-29T03:00:00+00:00"
ASKED = {"service": "claude", "prompt": "Say hello."}


# ── which changes are sent ────────────────────────────────────────────────────────────────────────────────────────


def test_a_part_is_sent_when_something_in_it_changes() -> None:
    parts = Parts()
    one = {"state": "healthy", "timestamp": AT, "models": [{"opened_at": "2026-11-29T03:00:00.001000+00:00"}]}
    assert list(parts.take({"service/claude": one}, AT, 0)) == ["service/claude"]
    later = {**one, "timestamp": "2026-11-29T03:00:01+00:00"}
    assert parts.take({"service/claude": later}, AT, 1) == {}
    rounded = {**later, "models": [{"opened_at": "2026-11-29T03:00:00.002000+00:00"}]}
    assert parts.take({"service/claude": rounded}, AT, 2) == {}
    event = parts.take({"service/claude": {**later, "state": "degraded"}}, AT, 3)["service/claude"]
    name, data = event.decode().rstrip("\n").split("\n")
    assert name == "event: part"
    assert json.loads(data.removeprefix("data: ")) == {
        "key": "service/claude",
        "at": AT,
        "value": {**later, "state": "degraded"},
    }
    assert parts.take({}, AT, 4)["service/claude"].endswith(b'"value":null}\n\n')


def test_values_that_change_with_each_read_are_sent_only_occasionally() -> None:
    parts = Parts()
    parts.take({"database": {"response_time_ms": 1.0}}, AT, 0)
    assert parts.take({"database": {"response_time_ms": 2.0}}, AT, 14.9) == {}
    assert list(parts.take({"database": {"response_time_ms": 2.0}}, AT, 15)) == ["database"]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": None}, {"a": AT}, False),
        ([1, 2], [1, 2, 3], False),
        ({"opened_at": AT}, {"opened_at": "2026-11-29T03:00:00.500000+00:00"}, False),
        ({"seen_at": AT, "n": 1}, {"seen_at": "", "n": 1}, True),
    ],
    ids=["a key more", "a time instead of null", "a longer list", "half a second", "an age"],
)
def test_only_real_differences_count(one: Any, other: Any, alike: bool) -> None:
    assert is_alike(one, other, frozenset({"seen_at"})) is alike


def test_events_before_the_first_read_are_not_sent() -> None:
    seen: Seen = Seen()
    assert seen.new_of([1, 2], lambda one: one) == []
    assert seen.new_of([2, 3], lambda one: one) == [3]


# ── listeners and the producer, without a server ──────────────────────────────────────────────────────────────────


class Told:
    """A source that returns what a test put into it."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"status": {"n": 0}}
        self.lines: list[Any] = []
        self.looks = 0

    async def parts(self) -> dict[str, Any]:
        self.looks += 1
        return dict(self.found)

    async def stored_parts(self) -> dict[str, Any]:
        return {"fleet": {}}

    def point(self) -> None:
        return None

    async def marks(self) -> list[Any]:
        return []

    async def requests(self) -> tuple[list[Any], int]:
        lines, self.lines = self.lines, []
        return lines, 7 if lines else 0


def on_virtual_time(work: Callable[[Live, Told], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        clock, told = VirtualClock(), Told()
        made = Live(lambda: told, lambda: clock, Readiness(Platform(), clock.monotonic))
        await work(made, told)
        await made.close()

    run_virtual(main)


def test_nothing_is_read_without_a_listener() -> None:
    async def work(made: Live, told: Told) -> None:
        await asyncio.sleep(10)
        assert told.looks == 0
        several = [Listener() for _ in range(3)]
        for one in several:
            await made.join(one, {})
        await asyncio.sleep(9.5)
        assert told.looks == 10  # one a second for all
        for one in several:
            made.leave(one)
        await asyncio.sleep(10)
        assert told.looks == 10

    on_virtual_time(work)


def test_a_slow_reader_gets_the_newest_and_costs_no_more_than_its_keys() -> None:
    async def work(made: Live, told: Told) -> None:
        slow = Listener()
        await made.join(slow, {"at": AT})
        assert (await slow.take(1)).startswith(
            b'event: whole\ndata: {"at":"2026-11-29T03:00:00+00:00","parts":{"status"'
        )
        for second in range(1, 1001):
            told.found["status"] = {"n": second}
            told.lines = [{"id": second}]
            await asyncio.sleep(1)
        taken = (await slow.take(1)).decode().split("\n\n")[:-1]
        assert [one for one in taken if "event: part" in one] == [
            one for one in taken if '"value":{"n":1000}' in one or '"value":{"n":999}' in one
        ]
        assert len(taken) == 1 + live.TURNS + 1  # the part, the last requests, and how many more there were
        assert await slow.take(0.1) == b""

    on_virtual_time(work)


def test_the_number_of_listeners_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LISTENERS_MAX", 2)

    async def work(made: Live, told: Told) -> None:
        first, second = Listener(), Listener()
        await made.join(first, {})
        await made.join(second, {})
        with pytest.raises(ServiceRefused, match="2 live streams are open") as refused:
            await made.join(Listener(), {})
        assert refused.value.retry_after_s == live.AGAIN_S
        made.leave(first)
        await made.join(Listener(), {})

    on_virtual_time(work)


def test_a_failed_read_is_logged_once_and_the_next_one_continues(caplog: pytest.LogCaptureFixture) -> None:
    async def work(made: Live, told: Told) -> None:
        listener = Listener()
        await made.join(listener, {})
        await listener.take(1)
        told.found = None  # type: ignore[assignment]
        await asyncio.sleep(5)
        told.found = {"status": {"n": 1}}
        await asyncio.sleep(2)
        assert b'"n":1' in await listener.take(1)

    on_virtual_time(work)
    assert len([one for one in caplog.records if "could not read the state" in one.message]) == 1


# ── over sockets ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read so often that a test need not wait a second."""
    monkeypatch.setattr(live, "LOOK_S", 0.02)
    monkeypatch.setattr(live, "READ_S", 0.02)


sockets = pytest.mark.usefixtures("quick")


@sockets
def test_a_stream_begins_with_everything_and_continues_with_changes(tmp_path: Path) -> None:
    """The parts equal the API's responses, so a page needs no other request for its first screen."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(tmp_path, claude(fake))
            async with served(create_app(koo)) as client, listening(client) as stream:
                assert (stream.status, stream.headers["Content-Type"]) == (
                    200,
                    "text/event-stream; charset=utf-8",
                )
                assert stream.headers["X-Accel-Buffering"] == "no"
                assert stream.headers["Cache-Control"] == "no-store"
                name, whole = await stream.next()
                assert name == "whole" and whole["application"] == ""
                for key, shape in SHAPES.items():
                    check_exactly(whole["parts"].pop(key), shape)
                assert whole["parts"] == {}
                await client.post("/api/v1/ai/query", json=ASKED)
                await stream.until_all(
                    lambda event, data: (
                        event == "part"
                        and data["key"] == "service/claude"
                        and data["value"]["metrics"]["total_requests"] == 1
                    )
                )
                koo.pause_database()
                part = await stream.until("part", "alerts")
                assert part["value"][0]["runbook"] == "/api/v1/runbook/database_paused"

    asyncio.run(main())


EVENTS: dict[str, Any] = {
    "point": live_shapes.Point,
    "mark": history_shapes.HistoryMark,
    "request": spend_shapes.BookedCall,
}
SHAPES: dict[str, Any] = {
    "status": live_shapes.LiveStatus,
    "database": shapes.DatabaseHealth,
    "pool": shapes.DatabaseMetrics,
    "service/claude": shapes.ServiceHealth,
    "budgets": list[shapes.Budget],
    "alerts": list[shapes.Alert],
    "fleet": fleet_shapes.FleetStatus,
    "saved": live_shapes.Saved,
}


@sockets
def test_a_booked_call_a_sample_and_a_mark_are_events(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(tmp_path, claude(fake))
            async with served(create_app(koo)) as client, listening(client) as stream:
                await stream.until("whole")
                await client.post("/api/v1/ai/query", json=ASKED)
                koo.parts.history.take(koo.parts.counted(koo.parts.what_holds()[1]))
                listed = (await client.get("/api/v1/ai/requests")).body["requests"]
                koo.pause_database()
                heard = await stream.until_all(
                    lambda event, data: event == "request" and listed == [data],
                    lambda event, data: (
                        event == "mark" and data["kind"] == "act" and data["text"] == "paused"
                    ),
                    lambda event, data: event == "point" and data["series"]["ai:claude"]["calls"] == 1,
                )
                for event, data in heard:
                    if event in EVENTS:
                        check_exactly(data, EVENTS[event])

    asyncio.run(main())


@sockets
def test_a_client_that_leaves_is_forgotten_and_the_last_one_stops_the_producer(tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path)
        async with served(create_app(koo)) as client:
            async with listening(client) as stream:
                await stream.until("whole")
                assert len(live_of(koo)) == 1
            await until(lambda: not len(live_of(koo)))
            assert [task for task in asyncio.all_tasks() if task.get_name().startswith("koo live")] == []
            head = await client.ask("HEAD", LIVE)
            assert (head.status, len(live_of(koo))) == (200, 0)

    asyncio.run(main())


@sockets
def test_a_stream_above_the_limit_is_refused_with_retry_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LISTENERS_MAX", 1)

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client, listening(client) as stream:
            await stream.until("whole")
            refused = await client.get(LIVE)
            assert (refused.status, refused.headers["Retry-After"], refused.body["kind"]) == (
                503,
                "30",
                "saturated",
            )

    asyncio.run(main())


@sockets
def test_a_client_that_does_not_read_costs_no_memory_and_receives_the_newest_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client receives old events until the socket buffers are empty, and nothing is missing after them."""
    looks, size, many = 0, 300_000, 50

    async def parts(source: PlatformSource) -> dict[str, Any]:
        nonlocal looks
        looks = min(looks + 1, many)
        return {"status": {"n": looks, "pad": "x" * size}}

    monkeypatch.setattr(PlatformSource, "parts", parts)

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            host, port = client.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=2**12)
            writer.write(f"GET {LIVE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await until(lambda: looks == many)
            heard, newest = 0, f'"n":{many},'.encode()
            tail = b""
            while newest not in tail:
                piece = await reader.read(2**16)
                heard, tail = heard + len(piece), tail[-100:] + piece
            assert heard < size * many / 2
            writer.close()

    asyncio.run(main())


@sockets
def test_a_quiet_stream_sends_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_routes, "COMMENT_S", 0.05)

    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client, listening(client) as stream:
            await stream.until("whole")
            while (heard := await stream.next()) != ("", None):
                assert heard[0] in ("part", "point")

    asyncio.run(main())


@sockets
def test_a_mounted_application_has_the_stream_with_its_own_links(tmp_path: Path) -> None:
    async def main() -> None:
        app, koo = FastAPI(title="Shop"), platform(tmp_path)
        mount(app, koo, prefix="/ops/koo")
        async with served(app) as client:
            koo.pause_database()
            async with listening(client, "/ops/koo/monitoring/live") as stream:
                whole = await stream.until("whole")
                assert whole["application"] == "Shop"
                assert whole["parts"]["alerts"][0]["runbook"] == "/ops/koo/runbook/database_paused"

    asyncio.run(main())


@sockets
def test_a_platform_on_another_loop_is_read_on_that_loop(tmp_path: Path) -> None:
    """`serve_beside` needs this, because its platform may also be served elsewhere."""
    koo = platform(tmp_path)
    run(koo.open())

    async def main() -> None:
        app = FastAPI()
        app.include_router(monitoring_router(koo), prefix="/api/v1")
        async with served(app) as client, listening(client) as stream:
            whole = await stream.until("whole")
            assert whole["parts"]["status"]["overall_health"] == "healthy"
            assert whole["parts"]["fleet"]["processes"][0]["answers"]

    try:
        asyncio.run(main())
    finally:
        run(koo.close())


@sockets
@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT], ids=lambda one: signal.Signals(one).name)
def test_a_server_that_shuts_down_ends_its_streams_first(tmp_path: Path, signal_: signal.Signals) -> None:
    """An open page would use up the whole grace period."""

    async def main() -> None:
        made = platform(tmp_path)
        server = make_server(made, create_app(made))
        with closing(bind("127.0.0.1", 0)) as listener:
            running = asyncio.create_task(asyncio.to_thread(server.run, [listener]))
            await until(lambda: server.started or running.done())
            client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", None)  # type: ignore[arg-type]
            async with listening(client) as stream:
                await stream.until("whole")
                server.handle_exit(signal_, None)
                assert await stream.until("end") == {"reason": "draining"}
                assert await stream.next() == ("", None)
                assert not server.force_exit
            await running

    asyncio.run(main())


@sockets
def test_a_plain_server_around_a_mounted_koo_shuts_down_without_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn does not notify the application before all its requests are answered."""

    class Plain:
        should_exit = False

        def handle_exit(self, sig: int, frame: object) -> None: ...

    plain = Plain()
    monkeypatch.setattr(signal, "getsignal", lambda _: plain.handle_exit)

    async def main() -> None:
        app = FastAPI()
        mount(app, platform(tmp_path))
        async with served(app) as client, listening(client) as stream:
            await stream.until("whole")
            plain.should_exit = True
            assert await stream.until("end") == {"reason": "draining"}

    asyncio.run(main())


@sockets
def test_a_client_without_a_token_receives_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        koo = platform(tmp_path, token="w" * 32, read_token="r" * 32)
        async with served(create_app(koo)) as client:
            assert (await client.get(LIVE)).status == 401
            guess = {"Authorization": f"Bearer {'x' * 32}"}
            assert (await client.get(LIVE, headers=guess)).status == 401
            assert len(live_of(koo)) == 0
            async with listening(client, headers={"Authorization": f"Bearer {'r' * 32}"}) as stream:
                assert (await stream.next())[0] == "whole"

    asyncio.run(main())


def test_of_many_new_requests_the_newest_are_sent_and_the_rest_is_counted() -> None:
    assert LINES_MAX <= live.TURNS  # otherwise a read would push its own events out
