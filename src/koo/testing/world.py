"""World: koo in a test. A platform in a temporary home, a fake for each service of your settings, a clock to skip time.

    async with World() as koo:
        koo.claude.fails(529)
        answer = await query_ai("claude", "Hello", fallback=["local"])
        assert answer.service == "local" and koo.claude.attempts == 4

Inside the block, the process's one platform is the world's (`use`), so code under test calls `query_ai` or uses
`db_manager` as always. The fakes run in a separate thread, so they also serve a test that blocks its loop, a test
without a loop, and the vendors' own SDKs (`base_url=koo.claude.fake.base_url`).

The platform opens at its first use, on the loop of that use. So a fixture without an event loop can make a world. At
the end the platform is closed on the loop that it was opened on.

A world is strict: unused steps, and requests that a fake refused or failed on, fail the test at its end.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, Self, TypeVar

from koo.ai.stream import AnswerStream
from koo.ai.types import Answer, Query
from koo.bridge import run
from koo.events import Event
from koo.monitoring.shapes import Alert
from koo.options import PlatformOptions
from koo.platform import Platform
from koo.testing.backstage import Backstage, on_loop
from koo.testing.faked import FakedService
from koo.testing.misspelt import did_you_mean
from koo.testing.providers.diary import complain
from koo.testing.providers.server import FakeProvider
from koo.testing.proxy import FaultProxy
from koo.testing.skipping import SkippingClock
from koo.testing.staging import NO_PAUSE_S, STATE, empty_store, make_fake, staged, your_options
from koo.testing.taken import Settled, settled
from koo.testing.using import default_platform, use
from koo.upkeep import KeepTime

T = TypeVar("T")

MEMORY = "/dev/shm"
"""Linux keeps files here in memory: the commits of a test's state store need not reach a disk."""
WITHOUT_PAUSES = {"retry_base_delay": NO_PAUSE_S, "retry_max_delay": NO_PAUSE_S}
NO_PROXY = (
    "this world has no proxy, because its database is an SQLite file: use the fixture `koo_postgres_url` together with "
    "`koo`, or World(database_url=...) with the URL of a server"
)
INSIDE_A_LOOP = "an event loop is running here: use `async with World()`"


class World:
    """A platform that is surrounded by fakes, for one test.

    Args:
        options: the platform's options; None: those of `instead_of` if it is given, else those of your settings.
        settings: variables that take precedence over the environment and `.env`:
            `{"AI_SERVICES__CLAUDE__DAILY_BUDGET": "0.05"}`.
        instead_of: a platform of your application that the world replaces; None: the process's platform.
        database_url: a real database, reached through `proxy`; None: an SQLite file in the temporary home.
        fakes: your own fakes by service name, with other prices or of your own vendor.
        strict: whether unused steps and refused requests fail the test at its end.
        clock: another world's clock, if two worlds share an event loop.

    `platform`, `clock`, `home` and `events` (published so far) are public attributes. So is each service: `koo.claude`,
    or `koo["claude"]`.

    Raises `ConfigurationError` for invalid settings, and RuntimeError while the database of the replaced platform is
    open.
    """

    platform: Platform
    home: Path
    proxy: FaultProxy
    """The proxy before a real database: `koo.proxy.refuses()`. Only exists if the world has a `database_url`."""

    def __init__(
        self,
        options: PlatformOptions | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        instead_of: Platform | None = None,
        database_url: str | None = None,
        fakes: Mapping[str, FakeProvider] | None = None,
        strict: bool = True,
        clock: SkippingClock | None = None,
    ) -> None:
        if options is not None and not isinstance(options, PlatformOptions):
            raise TypeError(f"options is {options!r}; expected PlatformOptions (settings= takes variables)")
        self.strict = strict
        self.clock = SkippingClock() if clock is None else clock
        self.events: list[Event] = []
        self.services: dict[str, FakedService] = {}
        self._owns_clock = clock is None
        self._given_options, self._settings = options, settings
        self._instead_of = instead_of
        self._database_url = database_url
        self._own_fakes = fakes or {}
        self._ends = ExitStack()
        self._checked = False

    def __repr__(self) -> str:
        return f"<World {', '.join(map(repr, self.services.values()))}>"

    def __getitem__(self, name: str) -> FakedService:
        if name not in self.services:
            raise KeyError(self._no_service(name))
        return self.services[name]

    def __getattr__(self, name: str) -> FakedService:
        services = vars(self).get("services", {})
        if name not in services:
            raise AttributeError(NO_PROXY if name == "proxy" else self._no_service(name))
        found: FakedService = services[name]
        return found

    def _no_service(self, name: str) -> str:
        services = vars(self).get("services", {})
        if "platform" in vars(self) and name in self.platform.own_operations:
            return f"{name!r} is an operation of your own, which has no server: let its function fail instead"
        meant = did_you_mean(name, [*services, *(one for one in dir(type(self)) if not one.startswith("_"))])
        return f"this world has no service {name!r}; it has {', '.join(services) or 'none'}{meant}"

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(INSIDE_A_LOOP)
        self.begin()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end()
        self.check(error)

    async def open(self) -> None:
        """Open the platform now. Without this, it opens at its first use."""
        await self.platform.open()

    async def __aenter__(self) -> Self:
        self.begin()
        try:
            await self.open()
        except BaseException:
            self.end()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await _shut(self.platform)
        self.end()
        self.check(error)

    def begin(self) -> None:
        """Create the platform and the fakes. The platform opens at its first use."""
        # If a step fails, the `with` ends everything that was started before it. If all succeed, `pop_all` hands the
        # stack over to `end`. The callbacks run in reverse order, so the platform is closed while its fakes and its
        # database proxy are still there.
        with ExitStack() as ends:
            self.home = _folder(ends)
            state = _folder(ends, MEMORY if os.access(MEMORY, os.W_OK) else None)
            if self._owns_clock:
                ends.callback(self.clock.release)
            options = self._options()
            backstage = Backstage()
            backstage.start()
            ends.callback(backstage.stop)
            (state / STATE).write_bytes(backstage.run(empty_store(state)))
            fakes = self._start_fakes(options, backstage, ends)
            url = self._reach_database(ends)
            self.platform = Platform(staged(options, fakes, self.home, state, url), clock=self.clock)
            self.platform.events.listen(self.events.append)
            self.clock.listen(self._tick)
            self.services = {name: FakedService(name, fake, self.platform) for name, fake in fakes.items()}
            self._stand_in(ends)
            ends.callback(self._close)
            self._ends = ends.pop_all()

    def _options(self) -> PlatformOptions:
        if self._given_options is not None:
            return self._given_options
        if self._instead_of is not None and self._settings is None:
            return self._instead_of.options
        return your_options(self._settings or {})

    def _start_fakes(
        self, options: PlatformOptions, backstage: Backstage, ends: ExitStack
    ) -> dict[str, FakeProvider]:
        services = [one for one in options.services if not one.disabled_by]
        fakes = {one.name: self._own_fakes.get(one.name) or make_fake(one) for one in services}
        for fake in fakes.values():
            fake.wall = self.clock.wall
            backstage.run(fake.start())
            ends.callback(_stop, backstage, fake)
        return fakes

    def _reach_database(self, ends: ExitStack) -> str | None:
        """The URL of the test's own database, through a proxy if it is on a server."""
        url = self._database_url
        if url is None or url.startswith("sqlite"):
            return url
        self.proxy = ends.enter_context(FaultProxy.before(url))
        return self.proxy.through(url)

    def _stand_in(self, ends: ExitStack) -> None:
        replaced = default_platform() if self._instead_of is None else self._instead_of
        for name, given in replaced.own_operations.items():
            if name not in self.services:
                self.platform.register_service(name, **{**given, **WITHOUT_PAUSES})
        ends.enter_context(use(self.platform, instead_of=replaced))

    def end(self) -> None:
        """Close everything, the platform on the loop that it was opened on."""
        self._ends.close()

    def _close(self) -> None:
        # A platform must be closed on the loop that it was opened on, because its connections belong to that loop. The
        # loop may be closed (`asyncio.run` in the test), running in another thread, or idle between the steps of an
        # asynchronous plugin.
        loop = _home_of(self.platform)
        if loop is None or loop.is_closed():
            return
        if asyncio._get_running_loop() is loop:
            raise RuntimeError(INSIDE_A_LOOP)
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(_shut(self.platform), loop).result()
        else:
            loop.run_until_complete(_shut(self.platform))

    def check(self, error: BaseException | None = None) -> None:
        """Check for unused steps and unexpected requests, once. Raises `FakeMisused`, or adds notes to the test's
        `error`."""
        __tracebackhide__ = True
        if self._checked or not self.strict:
            return
        self._checked = True
        services = self.services.values()
        complain([f"koo.{one.name}: {said}" for one in services for said in one.complaints()], error)

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, service: str, prompt: str = "Hello", **options: Any) -> Answer:
        """Like `query_ai`, on the world's own platform."""
        return await self.platform.query(Query(service=service, prompt=prompt, **options))

    def stream(self, service: str, prompt: str = "Hello", **options: Any) -> AnswerStream:
        """Like `stream_ai`, on the world's own platform."""
        return self.platform.stream(Query(service=service, prompt=prompt, **options))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine from a test without an event loop: `koo_sync.run(koo_sync.ask("claude"))`; see `koo.run`."""
        return run(work)

    # ── state ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def spent_usd(self) -> Decimal:
        """The amount that koo has booked today for all services."""
        return sum((one.spent_usd for one in self.services.values()), Decimal(0))

    @property
    def alerts(self) -> list[Alert]:
        """The active alerts, as of the last tick."""
        return self.platform.active_alerts()

    def settled(self) -> Settled:
        """Whether nothing is held, no permit runs and no slot is taken; its `repr` lists what is."""
        return settled(self.platform)

    async def tick(self) -> None:
        """Do now what koo does every second: tick the breakers, roll the days, update the alerts."""
        await self.platform.open()
        await KeepTime(self.platform.parts).step()

    def _tick(self) -> None:
        """Tick after time was skipped, because the test checks the effects in its next line."""
        # The skipped time must not count as time in which the event loop was blocked, which would raise an alert.
        self.platform.parts.own_watch.beats.stop()
        loop = _home_of(self.platform)
        if loop is not None and not loop.is_closed():
            on_loop(loop, KeepTime(self.platform.parts).tick)


def _folder(ends: ExitStack, where: str | None = None) -> Path:
    return Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="koo-world-", dir=where)))


def _home_of(platform: Platform) -> asyncio.AbstractEventLoop | None:
    """The loop that the platform, or only its database, is open on."""
    if platform.deadlines.loop is not None:
        return platform.deadlines.loop
    database = platform.parts.database_in_use
    return database.connections.loop if database is not None and database.connections is not None else None


def _stop(backstage: Backstage, fake: FakeProvider) -> None:
    backstage.run(fake.stop())


async def _shut(platform: Platform) -> None:
    await platform.close()
    database = platform.parts.database_in_use
    if database is not None:
        await database.close()
