"""Platform: koo in one process, and its public interface.

Nothing has to be started. The first call that needs the running loop opens the platform on it, and the platform closes
when that loop ends. A second `asyncio.run` opens it again, with the state that is kept in memory (breakers, counts,
limits). `async with platform` or `await platform.close()` do the same at a time of your choice. See `residence.py` for
details, and for what a second loop may do.

A call on a loop other than koo's crosses to it, or starts one in the background (`crossing.py`, `bridge.py`). An
operation of the user's own then runs on the caller's loop, because its client belongs there; only its guard crosses.
What cannot cross (a database session) is refused with a sentence that says what to write instead.

`composition.py` connects a platform's parts, and `upkeep.py` has what it does each second.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from koo.ai.carried_stream import CarriedOperation, CarriedStream
from koo.ai.decorator import Declaration, Declarations, Guarding, GuardingInThread
from koo.ai.operation_money import Money, OperationMoney
from koo.ai.operation_stream import OperationStream, Terms
from koo.ai.operations import execute
from koo.ai.registration import compose, read_credential, read_options
from koo.ai.service import Service
from koo.ai.stream import AnswerStream
from koo.ai.types import Answer, Query
from koo.alert_acts import AlertActs
from koo.breaker_acts import BreakerActs, act_of
from koo.clock import SYSTEM_CLOCK, Clock, check_base
from koo.composition import Parts
from koo.crossing import Loop, carry, running_loop
from koo.deadlines import Deadlines
from koo.errors import ExternalServiceError
from koo.events import EventBus
from koo.forks import forget_in_child
from koo.hidden import UNSHOWN
from koo.history import HistoryReports
from koo.incidents import IncidentReports
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.notice_shapes import AlertDeliveries, AlertTests
from koo.monitoring.shapes import (
    Alert,
    DatabaseGate,
    ServiceCheck,
    ServiceHealth,
    ServicesHealth,
    SystemHealth,
)
from koo.monitoring.spend_shapes import Spend, WriteOffs
from koo.options import PlatformOptions
from koo.policies.breaker import Override
from koo.residence import Residence
from koo.service_names import check_service_name
from koo.storage.base import LedgerKeeper
from koo.upkeep import check_services

if TYPE_CHECKING:
    from koo.database.database import Database
    from koo.database.scope import S_co as S  # SQLAlchemy's `AsyncSession`, or a subclass of it
else:
    S = TypeVar("S")
T = TypeVar("T")
LOOK_AGE_MAX_S = 2.0
"""An open page refreshes this often, so any number of open pages share one probe of the database."""


class Platform:
    """koo in one process. `options` None: they are read from the environment when first needed.

    `clock` is for tests. Raises ValueError for one that does not count the event loop's seconds.
    """

    def __init__(self, options: PlatformOptions | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        if clock is not SYSTEM_CLOCK:
            check_base(clock)
        self._given_options = options
        self._clock = clock
        self._parts: Parts | None = None
        self._declarations = Declarations()
        self._registered: dict[str, Mapping[str, Any]] = {}
        self._making = threading.Lock()  # two threads may come first, but must share one set of budgets
        self._residence = Residence(lambda: self.parts)
        self.events = EventBus()
        self.deadlines = Deadlines()
        forget_in_child(self)

    @property
    def parts(self) -> Parts:
        """The platform's parts, created on first access, without I/O. Raises `ConfigurationError`."""
        if self._parts is None:
            with self._making:
                self._make_parts()
        assert self._parts is not None
        return self._parts

    def _make_parts(self) -> None:
        # This is checked again under the lock: a second thread that waited for it would otherwise create a second set
        # of parts, with budgets, breakers and a pool of its own.
        if self._parts is None:
            options = self._given_options or _read_settings()
            parts = Parts(options, clock=self._clock, deadlines=self.deadlines, events=self.events)
            for name in self._declarations:
                self._register_declared(parts, name)
            self._parts = parts

    def assemble(self) -> None:
        """Create every part now, including the database. Raises `ConfigurationError` for invalid settings."""
        _ = self.parts.database

    @property
    def ledger(self) -> LedgerKeeper:
        """This process's money. `await platform.ledger.refresh()` reads the current state of all budgets from the
        store."""
        return self.parts.store.ledger

    @property
    def options(self) -> PlatformOptions:
        """The options in force. Raises `ConfigurationError` for invalid settings."""
        return self.parts.options

    @property
    def database(self) -> Database:
        """The guarded database. It is created on first access and opened on first use."""
        return self.parts.database

    def set_up_database(
        self, *, session_class: type[S] | None = None, engine_args: Mapping[str, Any] | None = None
    ) -> Database[S]:
        """Create the guarded database with your own session class or engine arguments; see `Database`.

        Call it once, before the first use: raises RuntimeError if the database already exists.
        """
        if self.parts.database_in_use is not None:
            raise RuntimeError("the platform's database is already in use: set it up before its first use")
        self.parts.make_database(session_class=session_class, engine_args=engine_args)
        return cast("Database[S]", self.parts.database)

    @property
    def services(self) -> dict[str, Service]:
        """All services by name: built-in, declared, and registered by the user."""
        return self.parts.services

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> Platform:
        """Open on the running loop; does nothing if it is already open there.

        Raises RuntimeError while it is open on another loop that is running or was not closed.
        """
        await self._residence.open()
        return self

    async def close(self) -> None:
        """Close the platform: write pending bookings and close connections. It may be opened again.

        Raises RuntimeError if it is open on another loop that is not running now.
        """
        await self._residence.close()

    async def __aenter__(self) -> Platform:
        return await self.open()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    def forget_parent(self) -> None:
        """In a forked child: open again on the next use, and leave alone what the parent had open."""
        self._making = threading.Lock()
        self._residence.forget_parent()
        if self._parts is not None:
            self._parts.forget_parent()

    # ── querying ──────────────────────────────────────────────────────────────────────────────────────────────

    async def query(self, query: Query) -> Answer:
        """Query an AI service; see `Gateway.query`."""
        if not self._residence.is_here() and (home := await self._residence.enter()) is not None:
            return await carry(home, self.query(query))
        await self.parts.load_prices()
        return await self.parts.gateway.query(query)

    def stream(self, query: Query) -> AnswerStream:
        """Query an AI service and stream its response. Nothing is sent before the first `anext`."""
        stream = self.parts.gateway.stream(query, before=self._ready)
        home = self._residence.elsewhere() if asyncio._get_running_loop() is not None else None
        return stream if home is None else CarriedStream(stream, home)

    async def query_many(self, queries: list[Query]) -> list[Answer | ExternalServiceError]:
        """Send each query when its service has a free slot. Returns an answer or an error for each, in the same
        order."""
        if (home := await self._residence.enter()) is not None:
            return await carry(home, self.query_many(queries))
        await self.parts.load_prices()
        return await self.parts.gateway.query_many(queries)

    async def _ready(self) -> None:
        await self._residence.open()
        await self.parts.load_prices()

    # ── operations of the user's own ──────────────────────────────────────────────────────────────────────────

    def register_service(self, name: str, **options: Any) -> None:
        """Guard your own operation under `name`.

        Registering the name again with other options replaces the earlier ones, with a new breaker and new limits;
        with the same options it changes nothing. The guide lists the options with their defaults
        (docs/ENHANCED_ERROR_HANDLING.md, "Your own operations"). Raises `ConfigurationError` for an invalid option.
        """
        self._register(self.parts, name, options)
        self._registered[name] = options

    def _register(self, parts: Parts, name: str, options: Mapping[str, Any]) -> None:
        check_service_name(name, parts.ai_services)
        if parts.has_operation(name, options):
            return
        read, money = read_options(options), Money(options, parts.prices)
        service = Service(
            name,
            read,
            default_model=None,
            clock=self._clock,
            deadlines=self.deadlines,
            classify=compose(options.get("classify"), name),
            publish=self.events.publish,
            allowance=money.allowance,
            in_thread=options.get("in_thread", False),
            credential_of=read_credential(options.get("credential")),
        )
        parts.add_operation(service, money, options)

    @property
    def own_operations(self) -> dict[str, Mapping[str, Any]]:
        """The options of the operations registered and declared so far, by name. Creates no part."""
        declared = {name: self._declarations.options(name) for name in self._declarations}
        return {**declared, **self._registered}

    @overload
    def guarded(self, name: str, *, in_thread: Literal[True], **options: Any) -> GuardingInThread: ...
    @overload
    def guarded(self, name: str, **options: Any) -> Guarding: ...
    def guarded(self, name: str, **options: Any) -> Guarding | GuardingInThread:
        """A decorator: the function runs under the guard of `name`, which is registered with these options, if any.

        An `async def` is awaited as before, an asynchronous generator becomes an `OperationStream`, and a `def` blocks
        until one of koo's threads has run it; with `in_thread=True` it is awaited instead. Nothing is read or opened
        here. The options are those of `register_service`. Functions with the same name share a guard, and one of them
        sets the options. Raises `ConfigurationError`, and TypeError if it decorates something other than a function.
        """
        return Guarding(self, name, self._declare, **options)

    def _declare(self, name: str, declaration: Declaration) -> None:
        self._declarations.add(name, declaration)
        if self._parts is not None:
            self._register_declared(self._parts, name)

    def _register_declared(self, parts: Parts, name: str) -> None:
        options = self._declarations.options(name)
        if options or (name not in parts.ai_services and name not in parts.operations):
            self._register(parts, name, options)

    @overload
    async def execute(
        self, name: str, operation: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> T: ...
    @overload
    async def execute(self, name: str, operation: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...
    async def execute(self, name: str, operation: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `operation(*args, **kwargs)` under the guard of `name`: a registered one, or a built-in service's.

        A blocking operation needs a registration with `in_thread=True`; without it, TypeError is raised.
        """
        try:
            if not self._residence.is_here() and (home := await self._residence.enter()) is not None:
                return await carry(home, self._execute_for(running_loop(), name, operation, args, kwargs))
            service, money = self.parts.find_operation(name)
            if money.needs_prices:
                await self.parts.load_prices(surely=True)
            return await execute(service, money, self.parts.budgets, operation, args, kwargs)
        # The error's traceback keeps this frame, and error reporters record its variables. The arguments may contain a
        # prompt or a key, so they are replaced before the error leaves.
        except BaseException:
            operation = args = kwargs = UNSHOWN
            raise

    async def _execute_for(self, own: Loop, name: str, operation: Any, args: Any, kwargs: Any) -> Any:
        """Like `execute`, for a caller on another loop, where the operation runs."""
        try:
            await self._residence.open()
            service, money = await self._find_operation(name)
            return await execute(service, money, self.parts.budgets, operation, args, kwargs, own)
        except BaseException:
            operation = args = kwargs = UNSHOWN
            raise

    @overload
    def execute_stream(
        self,
        name: str,
        operation: Callable[..., AsyncIterable[T] | Awaitable[AsyncIterable[T]]],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> OperationStream[T]: ...
    @overload
    def execute_stream(
        self, name: str, operation: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> OperationStream[Any]: ...
    def execute_stream(
        self, name: str, operation: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> OperationStream[Any]:
        """Stream `operation(*args, **kwargs)` under the guard of `name`, until its end; see `OperationStream`.

        `operation` returns an asynchronous iterator or context manager, or an awaitable of one. Nothing is sent before
        `async for`, `async with` or `await`, which also raise `UnknownService`. Raises TypeError if `operation` cannot
        be called a second time.
        """

        async def find() -> Terms:
            await self._residence.open()
            return Terms(*await self._find_operation(name), self.parts.budgets)

        own = asyncio._get_running_loop()
        home = self._residence.elsewhere() if own is not None else None
        given = name, find, operation, args, kwargs, self.deadlines
        if home is None:
            return OperationStream(*given)
        return CarriedOperation(OperationStream(*given, own), home)

    async def _find_operation(self, name: str) -> tuple[Service, OperationMoney]:
        service, money = self.parts.find_operation(name)
        if money.needs_prices:
            await self.parts.load_prices(surely=True)
        return service, money

    # ── status: synchronous, no I/O, changes nothing ──────────────────────────────────────────────────────────

    def service_health(self, name: str) -> ServiceHealth:
        """One service, in the promised shape. Raises `UnknownService`, which lists the known ones."""
        return self.parts.service_health(name)

    def services_status(self) -> dict[str, ServiceHealth]:
        """Every service by name."""
        return self.parts.services_status()

    def services_health(self) -> ServicesHealth:
        """All services with their overall health."""
        return self.parts.services_health()

    async def system_health(self) -> SystemHealth:
        """Database and services. The database is probed, unless it was probed within the last two seconds."""
        if (home := await self._residence.enter()) is not None:
            return await carry(home, self.system_health())
        return self.parts.system_health(await self.database.health_check(max_age_s=LOOK_AGE_MAX_S))

    def active_alerts(self) -> list[Alert]:
        """Active alerts, worst first, then those that ended within the last fifteen minutes."""
        return self.parts.listed_alerts()

    async def alert_deliveries(self) -> AlertDeliveries:
        """Whether people were notified of alerts, and why not: the last day's notices on each channel.

        Does not raise while the state store is unreachable: `store` then has the reason.
        """
        alerts = self.active_alerts()
        return await self._at_home(lambda: self.parts.outbox.deliveries(alerts))

    async def fleet(self) -> FleetStatus:
        """The processes on the state store: which are alive, which leads, which circuits are open, whose settings
        differ."""
        return await self._at_home(self.parts.fleet_status)

    async def test_alerts(self, channel: str | None = None) -> AlertTests:
        """Send a test on one channel ("webhook", "slack" or "email"), or on all of them, and return the results.

        Takes 15 s at most. Raises `CallerMistake` if that channel is not configured, or if none is.
        """
        return await self._at_home(lambda: self.parts.outbox.test(channel))

    @property
    def alerts(self) -> AlertActs:
        """Acts on alerts: acknowledge, silence, and list past ones."""
        return AlertActs(self.parts.alerts, self.parts.store, self._clock, self._at_home)

    @property
    def history(self) -> HistoryReports:
        """The history of the last 30 days: `await platform.history.report(range_s=3600)`."""
        return HistoryReports(self.parts.history, self._at_home, self.parts.savings.report)

    @property
    def incidents(self) -> IncidentReports:
        """Why each breaker opened, in the last 30 days: `await platform.incidents.list()`."""
        return IncidentReports(self.parts.incidents, self.parts.history, self._at_home)

    async def _at_home(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        home = await self._residence.enter()
        return await (work() if home is None else carry(home, work()))

    async def check_services(self, name: str | None = None) -> dict[str, ServiceCheck]:
        """Check that services respond and accept the key. Never billed. None checks all configured services."""
        return await self._at_home(lambda: check_services(self.parts, name))

    async def spend(
        self,
        *,
        days: int | None = None,
        first_day: date | None = None,
        last_day: date | None = None,
        month: str | None = None,
        by: Sequence[str] = ("service",),
    ) -> Spend:
        """What all processes spent in a period: the last `days`, from `first_day` to `last_day` (UTC days, inclusive),
        or a `month` ("2026-11").

        The default is the current month. `by`: any of "day", "service", "model" and "tag". Raises
        `InvalidRequest`, and `ServiceRefused` while the state store is unreachable.
        """
        spending = self.parts.spending
        return await self._at_home(lambda: spending.report(days, first_day, last_day, month, by))

    # ── acting ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def breakers(self) -> BreakerActs:
        """Acts on breakers, by name: list them, trip one, put one into shadow, reset one."""
        return BreakerActs(self.parts, self._act)

    def reset_service(self, name: str, *, by: str = "", reason: str = "") -> bool:
        """Clear phases, streaks, cooldowns and key blocks of all its models; False for an unknown service."""
        if not isinstance(name, str) or name not in self.services:
            return False
        self.breakers.reset(name, by=by, reason=reason)
        return True

    def reset_services(self, *, by: str = "", reason: str = "") -> dict[str, bool]:
        """Reset every service."""
        return {name: self.reset_service(name, by=by, reason=reason) for name in self.services}

    def reset_limits(self, name: str) -> bool:
        """Clear the used units of a service's limits in every process, never its money; False for an unknown
        service."""
        service = self.services.get(name) if isinstance(name, str) else None
        if service is None:
            return False
        self._act(service.forget_used, lambda: self.parts.sharing.publish("limits", name))
        return True

    def override_service(self, name: str, override: Override) -> None:
        """Set an operator's override on all models of a service. Raises `UnknownService`."""
        self.breakers.override(self.parts.find_service(name).name, override)

    async def write_off(self, process: str | None, *, by: str, reason: str = "") -> WriteOffs:
        """Free the budget money that a process which no longer reports still holds; None: every such process.

        If the process did spend it, the bill may exceed the budget by that amount. `by` and `reason` are recorded with
        it. Raises `CallerMistake` for a process that holds nothing or still reports, and `ServiceRefused` while the
        state store is unreachable.
        """
        return await self._at_home(lambda: self.parts.spending.write_off(process, by, reason))

    def reset_database(self, *, by: str = "", reason: str = "") -> bool:
        """Close the database's breaker, here and in every process on the same state store."""
        self.breakers.reset("database", by=by, reason=reason)
        return True

    def pause_database(self, *, by: str = "", reason: str = "") -> DatabaseGate:
        """Make new scopes of this process's database wait, each until its own deadline; see `Database.pause`."""
        self._act(lambda: self.database.pause(act_of(by, reason)))
        return self.database.get_gate()

    def resume_database(self, *, by: str = "", reason: str = "") -> DatabaseGate:
        """Let new scopes of this process's database start again."""
        self._act(lambda: self.database.resume(act_of(by, reason)))
        return self.database.get_gate()

    async def drain_database(
        self, within_s: float | None = None, *, by: str = "", reason: str = ""
    ) -> DatabaseGate:
        """Refuse new scopes in this process, and wait for the open ones; see `Database.drain`."""
        return await self._at_home(lambda: self.database.drain(within_s, act_of(by, reason)))

    async def rotate_database(self, within_s: float = 0.0) -> DatabaseGate:
        """Replace this process's connections with new ones to the current `DATABASE_URL`; see `Database.rotate`.

        The environment and `.env` are read again, unless the platform was created with options.
        """
        if (home := await self._residence.enter()) is not None:
            return await carry(home, self.rotate_database(within_s))
        url = None if self._given_options is not None else _read_settings().database.url
        return await self.database.rotate(url, within_s=within_s)

    def _act(self, *steps: Callable[[], object]) -> None:
        """Run changes of the policies, then update the alerts immediately, because the operator looks at them next."""

        def act() -> None:
            for step in (*steps, self.parts.see):
                step()

        self._residence.act(act)


def _read_settings() -> PlatformOptions:
    from koo.settings import Settings  # imported only if the environment is read

    return Settings().platform_options()
