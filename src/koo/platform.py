"""Platform: owns every part of koo in one process, opens and closes it in order.

Nothing has to be started. The first call that needs the running loop opens the platform on it, and one keeper task
closes it when that loop ends: `asyncio.run` cancels all tasks at its end, and the keeper's `finally` does the rest. A
second `asyncio.run` opens it anew; what is known in memory (breakers, counts, limits) goes on. `async with platform` or
`await platform.close()` do the same at a time of one's own choosing. Use from a second loop while the first still runs
is an error: connections belong to the loop of their birth.

Only here do the parts know one another: services, database, ledger, health, events.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from koo.ai.assembly import assemble, describe
from koo.ai.gateway import Backend, Gateway
from koo.ai.models import not_configured
from koo.ai.operations import Money, compose, execute, read_options
from koo.ai.pricing import Prices
from koo.ai.service import Service
from koo.ai.stream import AnswerStream
from koo.ai.types import Answer, Query
from koo.alerts.rules import STORE, find
from koo.clock import SYSTEM_CLOCK, Clock
from koo.deadlines import Deadlines
from koo.errors import ConfigurationError, ExternalServiceError, Kind
from koo.events import EventBus, HoldsSwept
from koo.http import HttpClient
from koo.lookout import Lookout
from koo.monitoring.health import CheckServices, KeepTime, Work
from koo.monitoring.snapshot import service_view, services_view, system_view, unknown_service
from koo.options import PlatformOptions, check_service_name
from koo.policies.breaker import Override
from koo.sharing import DATABASE, Sharing
from koo.storage.base import BudgetView, StoreUnavailable
from koo.storage.fallback import GuardedLedger
from koo.storage.store import SqlStore

if TYPE_CHECKING:
    from koo.database.database import Database

T = TypeVar("T")
LOOK_AGE_MAX_S = 2.0
"""As often as an open page asks: however many pages there are, they are one probe to the database."""
log = logging.getLogger("koo")


class Platform:
    """One process of koo. `options` None: read from the environment when first needed.

    `clock` and `draw` (numbers in [0, 1)) are for tests.
    """

    def __init__(
        self,
        options: PlatformOptions | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._given_options = options
        self._clock = clock
        self._draw = draw
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._opening: asyncio.Lock | None = None
        self._assembled = self._restored = self._priced = False
        self.events = EventBus()
        self.deadlines = Deadlines()

    # ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _assemble(self) -> None:
        """Make the parts, without any I/O. Raises `ConfigurationError`."""
        if self._assembled:
            return
        self.options = self._given_options or _read_settings()
        self.http = HttpClient()
        self.prices = Prices()
        self.store = SqlStore(self.options.state_url, clock=self._clock, home=self.options.home)
        self.ledger = GuardedLedger(self.store.ledger, self._clock, self.events.publish)
        self.store.watch(self.ledger.store_changed)
        self.sharing = Sharing(
            self.store, self._clock, lambda: self.services, self._reset_database, self._key_of
        )
        self.events.listen(self.sharing.hear)
        self.lookout = Lookout(self.store, self._clock, self._sees)
        self.backends: dict[str, Backend] = assemble(
            self.options,
            http=self.http,
            clock=self._clock,
            deadlines=self.deadlines,
            publish=self.events.publish,
        )
        self.operations: dict[str, tuple[Service, Money]] = {}
        self.gateway = Gateway(
            self.backends,
            ledger=lambda: self.ledger,
            prices=self.prices,
            deadlines=self.deadlines,
            clock=self._clock,
        )
        self._database: Database | None = None
        self._assembled = True

    @property
    def database(self) -> Database:
        """The guarded database; made when first asked for, opened at its first use."""
        self._assemble()
        if self._database is None:
            from koo.database.database import Database  # SQLAlchemy is loaded by those who use a database

            self._database = Database(
                self.options.database,
                deadlines=self.deadlines,
                clock=self._clock,
                publish=self.events.publish,
            )
        return self._database

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> Platform:
        """Open on the running loop; opening what is open does nothing. Raises RuntimeError on a second running loop."""
        loop = asyncio.get_running_loop()
        if loop is self._loop and self._keeper is not None and not self._keeper.done():
            return self
        if self._loop is not None and self._loop is not loop and self._loop.is_running():
            raise RuntimeError(
                "koo is open on another event loop that is still running; use one loop for one platform"
            )
        if self._loop is not loop:
            self._loop, self._opening, self._keeper = loop, asyncio.Lock(), None
        assert self._opening is not None
        async with self._opening:
            if self._keeper is None or self._keeper.done():
                await self._open()
        return self

    async def _open(self) -> None:
        self._assemble()
        await self._open_store()
        ready = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(ready), name="koo keeper")
        await ready

    async def _keep(self, ready: asyncio.Future[None]) -> None:
        """Hold everything open until the loop or somebody ends it."""
        tasks = [
            asyncio.create_task(work.run(), name=f"koo {type(work).__name__}") for work in self._background()
        ]
        ready.set_result(None)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close_parts()

    def _background(self) -> list[Work | Sharing]:
        return [
            KeepTime(self, self._clock),
            CheckServices(self, self._clock, self.options.health_check_interval_s),
            self.sharing,
        ]

    def tick(self) -> None:
        """What a second brings about in every guard; reads no network."""
        for service in self.services.values():
            service.tick()
            day, count = service.take_uncounted()
            if count:
                self.store.quotas.add(service.name, day, count)
        if self._database is not None:
            self._database.tick()

    async def sweep(self) -> None:
        """Book what dead processes left held, and read the shared numbers anew."""
        swept = await self.ledger.sweep()
        if swept:
            booked = sum((hold.amount_usd for hold in swept), Decimal(0))
            self.events.publish(HoldsSwept("ledger", len(swept), str(booked)))
        with suppress(StoreUnavailable):
            await self.ledger.refresh()
            await self.lookout.sweep()

    async def watch(self) -> None:
        """Look at everything once, and let alerts begin and end."""
        # Who does not use a database need not load one to be watched.
        database = self._database.get_health() if self._database is not None else None
        await self.lookout.look(find(database, self.services_status()))

    def _sees(self, component: str) -> bool:
        """Can this process tell how an alert's component is? Not of a database that it does not use, for one."""
        if component == DATABASE:
            return self._database is not None
        name = component.removeprefix("ai:").partition("/")[0]
        service = self.services.get(name)
        return component == STORE or (service is not None and service.configured)

    async def _close_parts(self) -> None:
        """In the reverse order of use; one part that fails to close does not keep the others open."""
        closers: list[Callable[[], Awaitable[None]]] = [
            backend.provider.close for backend in self.backends.values()
        ]
        closers.append(self.http.close)
        if self._database is not None:
            closers.append(self._database.close)
        closers.extend((self._let_go, self.sharing.finish, self.store.close))
        for close in closers:
            try:
                await close()
            except Exception:
                log.exception("a part of koo did not close")

    async def _let_go(self) -> None:
        with suppress(StoreUnavailable):
            await self.lookout.finish()

    async def close(self) -> None:
        """Close what is open: pending bookings are written, connections given back. It may be opened again."""
        keeper, self._keeper = self._keeper, None
        if keeper is None or keeper.done() or self._loop is not asyncio.get_running_loop():
            return
        # The end of `asyncio.run` has cancelled it already, perhaps: a second cancellation would cut into its closing.
        if not keeper.cancelling():
            await asyncio.sleep(0)
            keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    async def __aenter__(self) -> Platform:
        return await self.open()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    async def _open_store(self) -> None:
        """Today's money and requests, and alerts that last, go on where the last process stopped.

        A store that cannot be reached keeps nobody from working: what that means for budgets is the ledger's to say.
        """
        try:
            await self.store.open()
            if not self._restored:
                for service in self.services.values():
                    service.restore_day(await self.store.quotas.used_today(service.name))
                self._restored = True
            await self.lookout.begin()
        except StoreUnavailable:
            log.warning("koo begins without its state store, which is tried again by itself")

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────

    async def query(self, query: Query) -> Answer:
        """Ask an AI service; see `Gateway.query`."""
        await self._ready()
        return await self.gateway.query(query)

    def stream(self, query: Query) -> AnswerStream:
        """Ask an AI service and stream its answer; nothing is sent before the first `anext`."""
        self._assemble()
        return self.gateway.stream(query, before=self._ready)

    async def query_many(self, queries: list[Query]) -> list[Answer | ExternalServiceError]:
        """Ask all at once; an answer or an error for each, in the same order."""
        await self._ready()
        return await self.gateway.query_many(queries)

    async def _ready(self) -> None:
        await self.open()
        # The price table takes some tenths of a second and some MiB: who has only a local model never needs it.
        if not self._priced:
            if any(b.options.configured and b.options.kind != "local" for b in self.backends.values()):
                await self.prices.load()
            self._priced = True

    # ── operations of the user's own ──────────────────────────────────────────────────────────────────────────

    def register_service(self, name: str, **options: Any) -> None:
        """Guard an operation of your own under `name`; registering it again with other options replaces it.

        Options: see `koo.ai.operations.NAMES`, and `classify` (an exception → a `Fault`), `max_retries`,
        `daily_budget` with `max_cost_usd` and `cost_usd`. Raises `ConfigurationError`.
        """
        self._assemble()
        check_service_name(name)
        if name in self.backends:
            raise ConfigurationError(
                "register_service", f"{name!r} is a built-in service; choose another name"
            )
        read, money = read_options(options), Money(options)
        service = Service(
            name,
            read,
            default_model=None,
            clock=self._clock,
            deadlines=self.deadlines,
            classify=compose(options.get("classify"), name),
            publish=self.events.publish,
            allowance=money.allowance,
        )
        self.operations[name] = (service, money)

    async def execute(
        self, name: str, operation: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> T:
        """Run `operation(*args, **kwargs)` under the guard of `name`: a registered one, or a built-in service's."""
        await self.open()
        service, money = self._find_operation(name)
        return await execute(service, money, self.ledger, operation, args, kwargs)

    def _find_operation(self, name: str) -> tuple[Service, Money | None]:
        registered = self.operations.get(name)
        if registered is not None:
            return registered
        backend = self.backends.get(name)
        if backend is None:
            raise unknown_service(name, list(self.services))
        return backend.service, None

    # ── looking: synchronous, no I/O, changes nothing ─────────────────────────────────────────────────────────

    @property
    def services(self) -> dict[str, Service]:
        """All services by name: built-in, declared, and registered by the user."""
        self._assemble()
        services = {name: backend.service for name, backend in self.backends.items()}
        services.update({name: service for name, (service, _) in self.operations.items()})
        return services

    def service_health(self, name: str) -> dict[str, Any]:
        """One service, in the promised shape. Raises `UnknownService`, which lists the known ones."""
        service = self.services.get(name) if isinstance(name, str) else None
        if service is None:
            raise unknown_service(name, list(self.services))
        backend = self.backends.get(name)
        configuration = describe(backend.options) if backend is not None else None
        return service_view(service, self.budget(name), self._clock, configuration)

    def budget(self, name: str) -> BudgetView | None:
        """The last view of a service's money of today."""
        return self.ledger.view(name)

    def services_status(self) -> dict[str, dict[str, Any]]:
        """Every service by name."""
        return {name: self.service_health(name) for name in self.services}

    def services_health(self) -> dict[str, Any]:
        """All services with their overall health."""
        return services_view(self.services_status(), self._clock)

    async def system_health(self) -> dict[str, Any]:
        """Database and services; the database is probed, unless somebody looked within the last two seconds."""
        await self.open()
        return system_view(
            await self.database.health_check(max_age_s=LOOK_AGE_MAX_S), self.services_health(), self._clock
        )

    def system_status(self) -> dict[str, Any]:
        """As `system_health`, from what is known already."""
        return system_view(self.database.get_health(), self.services_health(), self._clock)

    def active_alerts(self) -> list[dict[str, Any]]:
        """Alerts that hold, the worst first, then what ended within fifteen minutes."""
        self._assemble()
        return self.lookout.views()

    async def check_services(self, name: str | None = None) -> dict[str, Any]:
        """Ask services whether they are there and take the key: never billed. None asks all that are configured."""
        await self.open()
        if name is not None and name not in self.backends:
            raise unknown_service(name, list(self.backends))
        names = [name] if name is not None else [n for n, b in self.backends.items() if b.options.configured]
        results = await asyncio.gather(*(self.check_service(one) for one in names))
        return dict(zip(names, results, strict=True))

    async def check_service(self, name: str) -> dict[str, Any]:
        """One unbilled check: `healthy`, `error`, `response_time_ms`, and the state that follows."""
        backend = self.backends[name]
        began = self._clock.monotonic()
        error = await self._check(backend)
        backend.service.default_guard.note_check(error is None)
        if error is None and backend.service.gates.latches:
            backend.service.unlatch()
        view = self.service_health(name)
        return {
            "service_name": name,
            "healthy": error is None and view["state"] not in ("circuit_open", "unhealthy"),
            "state": view["state"],
            "error": None if error is None else str(error),
            "response_time_ms": (self._clock.monotonic() - began) * 1000,
            "last_updated": view["last_updated"],
        }

    async def _check(self, backend: Backend) -> ExternalServiceError | None:
        if not backend.options.configured:
            name = backend.options.name
            return ExternalServiceError(name, not_configured(backend.options), kind=Kind.NOT_CONFIGURED)
        try:
            async with asyncio.timeout(self.options.health_check_timeout_s):
                await backend.provider.check()
        except TimeoutError:
            return ExternalServiceError(
                backend.options.name, "the check got no answer in time", kind=Kind.TIMEOUT
            )
        except ExternalServiceError as error:
            return error
        return None

    # ── acting ────────────────────────────────────────────────────────────────────────────────────────────────

    def reset_service(self, name: str) -> bool:
        """Clear phases, streaks, cooldowns and latches of all its models; False for an unknown service."""
        service = self.services.get(name) if isinstance(name, str) else None
        if service is None:
            return False
        self.act(service.reset)
        self.act(lambda: self.sharing.tell("reset", name))
        return True

    def reset_services(self) -> dict[str, bool]:
        """Reset every service."""
        return {name: self.reset_service(name) for name in self.services}

    def reset_limits(self, name: str) -> bool:
        """Forget what was used of a service's limits; False for an unknown service. Money is never forgotten."""
        service = self.services.get(name) if isinstance(name, str) else None
        if service is None:
            return False
        self.act(service.forget_used)
        return True

    def override_service(self, name: str, override: Override) -> None:
        """Set an operator's override on all models of a service. Raises `UnknownService`."""
        service = self.services.get(name)
        if service is None:
            raise unknown_service(name, list(self.services))
        self.act(lambda: service.set_override(override))
        self.act(lambda: self.sharing.tell("override", name, {"override": override.value}))

    def reset_database(self) -> bool:
        """Close the database's breaker, here and in every process on the same state store."""
        self._reset_database()
        self.act(lambda: self.sharing.tell("reset", DATABASE))
        return True

    def _reset_database(self) -> None:
        self.act(self.database.reset_circuit_breaker)

    def _key_of(self, name: str) -> str | None:
        backend = self.backends.get(name)
        return backend.options.api_key if backend is not None else None

    def act(self, step: Callable[[], object]) -> None:
        """Run a step of the policies on the loop they belong to, and wait: another thread must not cut into one."""
        loop = self._loop
        if loop is None or not loop.is_running() or _is_running_here(loop):
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


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _read_settings() -> PlatformOptions:
    from koo.settings import Settings  # pydantic is loaded by those who read the environment

    return Settings().platform_options()
