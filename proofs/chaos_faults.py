"""The faults of the chaos proof: how each begins and ends, which alert reports it, and how soon.

They come in two parallel lanes: faults of a provider, and faults of koo's surroundings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from koo.testing.providers import Cut, Failure, Hang, Nothing, Raw, Stream
from proofs.chaos_world import Alpha, Beta, World

Act = Callable[[World], Awaitable[None]]
SERVICE = frozenset({"service_down", "circuit_open"})
DATABASE = frozenset({"database_unavailable"})
STORE = frozenset({"store_unavailable", "budget_local"})
FEW = 3
"""This many more descriptors than are open: enough for a handful of connections."""
STRANGERS = 150


@dataclass(frozen=True)
class Fault:
    """One fault.

    `alerts`: kinds, one of which must fire at `component` while it lasts; empty: no alert is required. `lasts_s`: long
    enough that the alert can fire. `ends_s`: how long its alert may continue after its end.
    """

    name: str
    begin: Act
    end: Act
    lasts_s: float
    alerts: frozenset[str] = frozenset()
    component: str = ""
    ends_s: float = 60.0
    needs_root: bool = False


# ── a provider ────────────────────────────────────────────────────────────────────────────────────────────────────────

STEPS = {
    "returns 500": Failure(500),
    "is overloaded": Failure(503),
    "returns garbage": Raw(body=b"\x00<html>{"),
    "returns JSON of another shape": Raw(body=b'{"unexpected": [1, 2, 3]}'),
    "hangs": Hang(),
    "closes connections": Nothing(),
    "cuts off responses": Cut(60),
    "refuses the key": Failure(401, "authentication_error", "invalid x-api-key"),
}

PAUSE = Failure(429, headers={"retry-after": "2"})
STALL = Stream(pieces=["a", "b"], stall_after=1)


def of_provider(name: str) -> list[Fault]:
    """The faults of this provider."""
    # An alert of a pause fires only after a minute, and a stall in streams lets whole answers pass: so neither needs
    # an alert here.
    quiet = {"requests a pause": PAUSE, "stalls in the middle of streams": STALL}
    return [
        *(_told(name, what, step, SERVICE) for what, step in STEPS.items()),
        *(_told(name, what, step, frozenset()) for what, step in quiet.items()),
        _gone(name),
    ]


def _told(name: str, what: str, step: object, alerts: frozenset[str]) -> Fault:
    async def begin(world: World) -> None:
        world.fakes[name].do(step)  # type: ignore[arg-type]

    async def end(world: World) -> None:
        heal_provider(world.fakes[name])

    return Fault(f"{name} {what}", begin, end, 14.0, alerts, f"ai:{name}" if alerts else "")


def heal_provider(fake: Alpha | Beta) -> None:
    fake.told = None
    fake._checks_fail = False


def _gone(name: str) -> Fault:
    async def begin(world: World) -> None:
        world.ways[name].refuses()
        world.ways[name].reset_all()

    async def end(world: World) -> None:
        world.ways[name].accepts()

    return Fault(f"{name} refuses connections", begin, end, 12.0, SERVICE, f"ai:{name}")


# ── the ground ────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_server(which: str, alerts: frozenset[str], component: str) -> list[Fault]:
    """The faults of a PostgreSQL, or of the connection to it."""

    async def kill(world: World) -> None:
        await asyncio.to_thread(getattr(world, which).kill)

    async def start(world: World) -> None:
        await asyncio.to_thread(getattr(world, which).start)

    async def stop(world: World) -> None:
        await asyncio.to_thread(getattr(world, which).stop)

    async def freeze(world: World) -> None:
        getattr(world, which).pause()

    async def thaw(world: World) -> None:
        getattr(world, which).resume()

    async def swallow(world: World) -> None:
        world.ways[which].black_hole()

    async def heal(world: World) -> None:
        world.ways[which].heal()

    async def cut(world: World) -> None:
        world.ways[which].reset_all()
        world.ways[which].cut_after_bytes = 3000

    async def whole(world: World) -> None:
        world.ways[which].cut_after_bytes = None

    async def cut_commits(world: World) -> None:
        world.ways[which].cut_commit("after", 5)

    async def nothing(world: World) -> None:
        world.ways[which].cut_commit("after", 0)

    return [
        Fault(f"the {which} is killed", kill, start, 14.0, alerts, component),
        Fault(f"the {which} restarts", stop, start, 8.0, alerts, component),
        Fault(f"the {which} hangs", freeze, thaw, 14.0, alerts, component),
        Fault(f"traffic to the {which} is dropped", swallow, heal, 14.0, alerts, component),
        Fault(f"connections to the {which} are cut", cut, whole, 10.0),
        Fault(f"COMMITs to the {which} are cut", cut_commits, nothing, 5.0),
    ]


async def fill(world: World) -> None:
    """Use all the space that is left on the application's disk."""
    await asyncio.to_thread(fill_up, world.disk)


def fill_up(folder: Path) -> None:
    """Allocate space in large pieces, then in small ones, until none is left."""
    # A single allocation would fail as a whole if the application wrote a page in between, and nothing would be filled.
    with (folder / "filler").open("wb", buffering=0) as file:
        size = 0
        for piece in (2**20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), size, piece)
                    size += piece


async def empty(world: World) -> None:
    (world.disk / "filler").unlink(missing_ok=True)


@dataclass
class Scarcity:
    """A limit of the descriptors that `koo serve` has open plus a few, adjusted when it has closed some."""

    before: int = 0
    keeping: asyncio.Task[None] | None = None

    async def begin(self, world: World) -> None:
        self.before, _ = resource.prlimit(world.served.process.pid, resource.RLIMIT_NOFILE)
        self.keeping = asyncio.create_task(self._keep(world.served.process.pid))

    async def _keep(self, pid: int) -> None:
        while True:
            allow(pid, len(os.listdir(f"/proc/{pid}/fd")) + FEW)  # noqa: PTH208
            await asyncio.sleep(0.25)

    async def end(self, world: World) -> None:
        assert self.keeping is not None
        self.keeping.cancel()
        allow(world.served.process.pid, self.before)


def allow(pid: int, files: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, hard))


def lever(down: str, up: str) -> tuple[Act, Act]:
    """Send `down` to both processes when the fault begins, and `up` when it ends."""

    async def begin(world: World) -> None:
        for child in world.children:
            child.lever(down)

    async def end(world: World) -> None:
        for child in world.children:
            child.lever(up)

    return begin, end


async def unread(world: World) -> None:
    world.served.reads.clear()


async def read(world: World) -> None:
    world.served.reads.set()


async def freeze_served(world: World) -> None:
    world.served.process.send_signal(signal.SIGSTOP)


async def thaw_served(world: World) -> None:
    world.served.process.send_signal(signal.SIGCONT)


@dataclass
class Strangers:
    """Silent connections, and connections with half a request head, at the server."""

    open: list[socket.socket] = field(default_factory=list)

    async def come(self, world: World) -> None:
        host, port = world.url.removeprefix("http://").split(":")
        for number in range(STRANGERS):
            with contextlib.suppress(OSError):
                one = socket.create_connection((host, int(port)), timeout=1)
                self.open.append(one)
                if number % 2:
                    one.send(b"GET /livez HTTP/1.1\r\nHost: local")
            await asyncio.sleep(0)

    async def go(self, world: World) -> None:
        for one in self.open:
            one.close()
        self.open.clear()


def of_ground() -> list[Fault]:
    """All faults of the surroundings."""
    strangers, scarcity = Strangers(), Scarcity()
    full = frozenset({"disk_full", "disk_nearly_full"})
    scarce = frozenset({"descriptors_used_up", "descriptors_nearly_used_up"})
    return [
        *of_server("database", DATABASE, "database"),
        *of_server("store", STORE, "state_store"),
        Fault("the disk is full", fill, empty, 40.0, full, "disk:", 120.0, needs_root=True),
        Fault("descriptors are scarce", scarcity.begin, scarcity.end, 40.0, scarce, "process", 120.0),
        Fault("name lookups hang", *lever("names hang", "names answer"), 12.0),
        Fault("the clock goes ten minutes ahead", *lever("clock 600", "clock 0"), 8.0),
        Fault("the clock goes ten minutes back", *lever("clock -600", "clock 0"), 8.0),
        Fault("the log is not read", unread, read, 12.0),
        Fault("the server is stopped for three seconds", freeze_served, thaw_served, 3.0),
        Fault("silent clients occupy the listener", strangers.come, strangers.go, 15.0),
    ]
