"""Composition: the parts of koo in one process, and how they are connected.

This is the only place where services, database, ledger, alerts and events are connected. `Parts` creates them without
I/O, opens what must be restored before the first call (the state store), and closes everything in the reverse order of
use. `platform.py` decides when that happens, and on which loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from koo.ai.assembly import assemble, describe
from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.operation_money import Money, OperationMoney, SharedMoney
from koo.ai.pricing import Prices
from koo.ai.registration import is_same
from koo.ai.service import AIService, Service
from koo.ai.threads import Threads
from koo.alerts.engine import outer_component
from koo.alerts.evidence import Looks
from koo.alerts.findings import Finding
from koo.alerts.gravity import weigh
from koo.alerts.keeping import AlertKeeper
from koo.alerts.money_rules import BUDGET, STORE
from koo.alerts.news import StoreNews
from koo.alerts.outbox import Outbox
from koo.alerts.own_rules import CHANNEL, DISK, PROCESS, find_in_channels
from koo.alerts.own_watch import OwnWatch, folders_of
from koo.alerts.rules import find
from koo.alerts.views import stale_views
from koo.breakers import DATABASE, Breakers
from koo.clock import Clock, iso
from koo.database_urls import is_same_server
from koo.deadlines import Deadlines
from koo.events import EventBus, ProcessRenamed, StoreForgot, StoreFound, StoreLost
from koo.fleet.beats import Fleet
from koo.fleet.digests import digests_of, settings_of
from koo.fleet.look import look_at_fleet
from koo.fleet.places import place_of, place_of_database, presence_of
from koo.guard import Guard
from koo.history import History
from koo.http.client import HttpClient
from koo.incidents import Recorder
from koo.logs.calls import CallLog
from koo.logs.event_log import EventLog
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.history import count_services, counted_database
from koo.monitoring.overview import digest_of_home, services_view, system_view
from koo.monitoring.own_shapes import KooHealth, StoreHealth
from koo.monitoring.shapes import Alert, Budget, DatabaseHealth, ServiceHealth, ServicesHealth, SystemHealth
from koo.monitoring.snapshot import own_budget_view, service_view, unknown_service
from koo.openings import Act
from koo.options import PlatformOptions
from koo.policies.fleet import GuardKey, Presence
from koo.policies.money import from_pico
from koo.policies.samples import Span
from koo.policies.treasury import Reply
from koo.savings import Savings
from koo.sharing import Sharing, said
from koo.spending import SpendReports
from koo.storage.base import BudgetView, Store, StoreUnavailable
from koo.storage.store import SqlStore

if TYPE_CHECKING:
    from koo.database.database import Database

log = logging.getLogger("koo")

STORE_SOURCE = "state store"
AWAY = "calls under budgets that were set are refused until it is back; default budgets count in this process only"


class Parts:
    """Every part of koo in one process, connected. Raises `ConfigurationError` for invalid options."""

    def __init__(
        self, options: PlatformOptions, *, clock: Clock, deadlines: Deadlines, events: EventBus
    ) -> None:
        self.options = options
        self.clock = clock
        self.deadlines = deadlines
        self.events = events
        self.calls = CallLog(clock)
        events.listen(EventLog(clock).on_event)
        self.http = HttpClient(network=options.network)
        self.prices = Prices()
        store = SqlStore(options.state_url, clock=clock, home=options.home)
        self.store: Store = store
        self.store.watch(self._store_changed)
        self.store.ledger.heard = self._heard
        self.budgets = Budgets(self.store.ledger, options.budgets, events.publish)
        self.ai_services = self._assemble()
        self.operations: dict[str, tuple[Service, Money]] = {}
        self._registrations: dict[str, Mapping[str, Any]] = {}
        self.shared_money = {
            name: SharedMoney(one.options, self.prices) for name, one in self.ai_services.items()
        }
        self.gateway = Gateway(
            self.ai_services,
            budgets=self.budgets,
            prices=self.prices,
            deadlines=deadlines,
            clock=clock,
            calls=self.calls,
        )
        self.breakers = Breakers(lambda: self.services, self._database_guard)
        self.sharing = Sharing(self.store, clock, lambda: self.services, self.breakers, self._key_of)
        self.fleet = Fleet(self.store, clock, self.sharing, self._guards, self._presence_of())
        self.history, self.savings, self.incidents = self._past()
        self.spending = SpendReports(self.store, clock, self.own_budgets)
        self.outbox = Outbox(
            options.alerts,
            options.network,
            self.store,
            clock=clock,
            deadlines=deadlines,
            publish=events.publish,
        )
        self.alerts = AlertKeeper(
            self.store,
            clock,
            self.observes,
            alone=self.outbox.alone,
            outer=self.hangs_on,
            remind_every_s=options.alerts.reminder_every_s,
            has_channel=bool(self.outbox.couriers),
        )
        self.own_watch = OwnWatch(folders_of(options.home, store.file))
        self.checked: set[str] = set()  # services whose last unbilled check passed
        self.store_news = StoreNews(clock)
        for part in (self.sharing, self.fleet, self.history, self.incidents, self.store_news):
            events.listen(part.on_event)
        self.database_in_use: Database | None = None
        self._opened_at = self._store_back_at = 0.0
        self._priced: bool | None = None  # False: no service needs prices

    def _presence_of(self) -> Callable[[], Presence]:
        """What this process reports about itself to the others."""
        label, configuration = self.options.version_label, json.dumps(digests_of(self.options))
        return lambda: presence_of(self.store.ledger.process, label, configuration)

    def _past(self) -> tuple[History, Savings, Recorder]:
        settings = partial(settings_of, self.options)
        history = History(self.store, self.clock, version=self._version, settings=settings)
        incidents = Recorder(self.store, self.clock, self.breakers.find)
        self.gateway.served = incidents.served
        return history, Savings(history), incidents

    def _version(self) -> str:
        """The deployed version, as the history shows it."""
        return self.options.version_label or f"koo {self._presence_of()().version}"

    def _assemble(self) -> dict[str, AIService]:
        """The services of the options, each with its budget."""
        services = assemble(
            self.options,
            http=self.http,
            clock=self.clock,
            deadlines=self.deadlines,
            publish=self.events.publish,
            calls=self.calls,
        )
        for one in services.values():
            self._share(one.service)
            self._introduce(one.service, place_of(one.options))
        return services

    def _share(self, service: Service) -> None:
        """Share a service's budget and limits with all processes on the store."""
        requests = self.budgets.add_service(service.name, service.allowance, service.options.limits.per_day)
        self.store.leasing.share(service.gates.limits, service.name, requests, service.tokens)

    # ── finding ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def database(self) -> Database:
        """The guarded database. It is created on first access and opened on first use."""
        if self.database_in_use is None:
            self.make_database()
        assert self.database_in_use is not None
        return self.database_in_use

    def make_database(self, **changes: Any) -> None:
        """Create the database. `changes`: more arguments of `Database`."""
        # It is imported here, because importing SQLAlchemy takes longer than importing all of koo.
        from koo.database.database import Database

        self.database_in_use = Database(
            self.options.database,
            deadlines=self.deadlines,
            clock=self.clock,
            publish=self.events.publish,
            calls=self.calls,
            on_reset=self._database_was_reset,
            **changes,
        )
        self.breakers.meet_database(self.database_in_use.guard, self.clock.monotonic())

    @property
    def services(self) -> dict[str, Service]:
        """All services by name: built-in, declared, and registered by the user."""
        services = {name: ai_service.service for name, ai_service in self.ai_services.items()}
        services.update({name: service for name, (service, _) in self.operations.items()})
        return services

    def _guards(self) -> Iterator[tuple[GuardKey, Guard]]:
        """Every guard, with the key that identifies it across processes."""
        for service in self.services.values():
            if service.configured:
                place = self._place_of(service)
                for guard in service.guards:
                    yield GuardKey(guard.breaker.name, place), guard
        if self.database_in_use is not None:
            place = place_of_database(self.database_in_use.options)
            yield GuardKey(DATABASE, place), self.database_in_use.guard

    def _place_of(self, service: Service) -> str:
        ai_service = self.ai_services.get(service.name)
        return "" if ai_service is None else place_of(ai_service.options)

    def _introduce(self, service: Service, place: str) -> None:
        """From now on, apply the fleet's reports to each new guard of the service when it is created."""
        service.on_new_guard = lambda guard: self.fleet.meet(GuardKey(guard.breaker.name, place), guard)

    def find_service(self, name: str) -> Service:
        """One service. Raises `UnknownService`, which lists the known ones."""
        service = self.services.get(name) if isinstance(name, str) else None
        if service is None:
            raise unknown_service(name, list(self.services))
        return service

    def find_operation(self, name: str) -> tuple[Service, OperationMoney]:
        """The service and the money for an operation: a registered one, or a built-in service. Raises
        `UnknownService`."""
        return self.operations.get(name) or (self.find_service(name), self.shared_money[name])

    def has_operation(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether an operation has this name and these options."""
        return is_same(self._registrations.get(name), options)

    def add_operation(self, service: Service, money: Money, options: Mapping[str, Any]) -> None:
        """Guard a user's own operation from now on, replacing one of the same name. `options`: its registration's."""
        service.calls = self.calls
        if service.name in self.operations:
            service.take_over(self.operations[service.name][0])
        self.operations[service.name] = (service, money)
        self._registrations[service.name] = options
        self._introduce(service, "")
        self._share(service)

    def budget(self, service: Service) -> BudgetView:
        """The last view of today's budget of a service."""
        return self.budgets.view(service.name, service.default_model, self.clock.wall())

    def own_budgets(self) -> list[Budget]:
        """The budgets that an operator set."""
        return [own_budget_view(one) for one in self.budgets.views(self.clock.wall())]

    def service_health(self, name: str) -> ServiceHealth:
        """One service, in the promised shape. Raises `UnknownService`."""
        service = self.find_service(name)
        ai_service = self.ai_services.get(name)
        configuration = describe(ai_service) if ai_service is not None else None
        return service_view(service, self.budget(service), self.clock, configuration)

    def services_status(self) -> dict[str, ServiceHealth]:
        """Every service by name."""
        return {name: self.service_health(name) for name in self.services}

    def observes(self, component: str) -> bool:
        """Whether this process can observe an alert's component. It cannot observe a database that it does not use."""
        if component == DATABASE:
            return self.database_in_use is not None
        if component in (STORE, PROCESS) or component.startswith((BUDGET, DISK, CHANNEL)):
            return True
        name = component.removeprefix("ai:").partition("/")[0]
        service = self.services.get(name)
        return service is not None and service.configured

    async def fleet_status(self) -> FleetStatus:
        """The processes on the state store, as shown to people."""
        now = self.clock.wall()
        named = [(f"ai:{one.name}", self.budget(one)) for one in self.services.values() if one.configured]
        for own in self.budgets.views(now):
            tag = "" if own.tag is None else f"/{own.tag}"
            named.append((f"{BUDGET}{own.options.name}{tag}", own.view))
        up_s = self.clock.monotonic() - self._opened_at
        return await look_at_fleet(
            self.store, self._presence_of()(), named, self.store_health(), up_s=up_s, now=now
        )

    def koo_health(self) -> KooHealth:
        """koo's own health: its state store, its disks and its watchers."""
        return self.own_watch.view(self.store_health(), self.clock.monotonic())

    def store_health(self) -> StoreHealth:
        """The state store's health, as this process sees it."""
        trouble, now = self.store.trouble, self.clock.monotonic()
        lost_at = None if trouble is None else self.clock.wall() - (now - self._store_back_at)
        capped = [
            one.name for one in self.services.values() if one.configured and self.budgets.is_capped(one.name)
        ]
        return {
            "reachable": trouble is None,
            "reason": trouble or "",
            "lost_at": iso(lost_at),
            "refuses": [] if trouble is None else capped,
        }

    def findings(
        self, database: DatabaseHealth | None, services: Mapping[str, ServiceHealth], koo: KooHealth
    ) -> list[Finding]:
        """Everything that is wrong now, one finding for each cause and component."""
        found = find(database, services, self.own_budgets(), koo)
        channels = find_in_channels(self.outbox.statuses(), self.clock.wall())
        return self.store_news.add_to([*found, *channels])

    def counted(self, looks: Looks) -> Span:
        """The counts of each component's guards, for the history."""
        span = count_services(self.services, looks.services, self.gateway.fell_back, self.budgets.not_spent)
        if looks.database is not None and self.database_in_use is not None:
            span[DATABASE] = counted_database(self.database_in_use.guard.tally, looks.database)
        return span

    def what_holds(self) -> tuple[list[Finding], Looks]:
        """The current findings, and the evidence that this process has by now. Without I/O."""
        # Do not import SQLAlchemy just to watch a database that is not used.
        database = self.database_in_use
        health = database.get_health() if database is not None else None
        services = self.services_status()
        return self.findings(health, services, self.koo_health()), self.looks(health, services)

    def see(self) -> None:
        """Update the alerts now instead of with the next beat, because an operator has changed something."""
        # Before koo is open it does not know which alerts an earlier process raised, and would begin them a second
        # time.
        if self.deadlines.loop is not None:
            self.alerts.see(*self.what_holds())

    def services_health(self) -> ServicesHealth:
        """All services with their overall health."""
        return services_view(self.services_status(), self.clock, self.own_budgets())

    def system_health(self, database: DatabaseHealth) -> SystemHealth:
        """The whole system with its overall health and the gravity of what is wrong."""
        services, koo = self.services_health(), self.koo_health()
        gravity = weigh(self.findings(database, services["services"], koo), self.listed_alerts())
        view = system_view(database, services, koo, gravity, self.clock)
        return {**view, "home": digest_of_home(self.options.home)}

    def listed_alerts(self) -> list[Alert]:
        """Active alerts, worst first, then those that ended within the last fifteen minutes."""
        views = self.alerts.views()
        # Alerts start and end with koo's once-a-second beat, so a missing beat is the one fault that no alert can
        # report.
        is_late = self.own_watch.beats.is_late
        return [*stale_views(self.koo_health(), self.alerts.now), *views] if is_late else views

    def hangs_on(self, component: str) -> tuple[str, ...]:
        """The components that an alert's component is part of or depends on."""
        if component == STORE:
            return ("disk:state_store", DATABASE) if self.store_is_databases else ("disk:state_store",)
        return outer_component(component)

    @property
    def store_is_databases(self) -> bool:
        """Whether the state store is on the database's own server, so that one outage affects both."""
        return is_same_server(self.options.state_url, self.options.database.url)

    def looks(self, database: DatabaseHealth | None, services: Mapping[str, ServiceHealth]) -> Looks:
        """The evidence that this process has by now, against which alerts of an earlier process are checked."""
        now = self.clock.monotonic()
        return Looks(
            database,
            services,
            checked=frozenset(self.checked),
            up_s=now - self._opened_at,
            store_up_s=None if self.store.trouble is not None else now - self._store_back_at,
        )

    def _store_changed(self, trouble: str | None) -> None:
        """The state store became unreachable (`trouble` is the reason) or is back."""
        self._store_back_at = self.clock.monotonic()
        self.own_watch.host.hurry()  # check the disks now: a full disk is a common reason
        self.events.publish(
            StoreFound(STORE_SOURCE) if trouble is None else StoreLost(STORE_SOURCE, f"{trouble}; {AWAY}")
        )

    def _heard(self, answer: Reply) -> None:
        """The ledger's store has lost data, or another process used this one's name in it."""
        if not answer.is_you:
            self.events.publish(ProcessRenamed(STORE_SOURCE, self.store.ledger.process))
        forgotten = sum(
            amount for key, amount in answer.forgotten.items() if not key.budget.startswith("requests/")
        )
        if forgotten:
            self.events.publish(StoreForgot(STORE_SOURCE, str(from_pico(forgotten))))

    def reset_service(self, service: Service, act: Act | None = None) -> None:
        """Reset a service for an operator. Alerts left over from an earlier process then end without a further
        check."""
        service.reset(act)
        self.alerts.alerts.trust(f"ai:{service.name}")

    def _database_was_reset(self, act: Act | None) -> None:
        self.sharing.publish("reset", DATABASE, said(act))
        self.alerts.alerts.trust(DATABASE)
        self.see()

    def _database_guard(self) -> Guard | None:
        return None if self.database_in_use is None else self.database_in_use.guard

    def _key_of(self, name: str) -> str | None:
        ai_service = self.ai_services.get(name)
        return ai_service.options.api_key if ai_service is not None else None

    # ── opening and closing ───────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Continue where the last process stopped: today's spending and requests, and active alerts.

        An unreachable store does not stop the process: the ledger decides what that means for budgets.
        """
        self._opened_at = self._store_back_at = self.clock.monotonic()
        self.outbox.begin()
        self.http.reopen()
        try:
            await self.store.open()
            for service in self.services.values():
                self.budgets.keep_count(service)
            await self.fleet.begin()
            await self.store.leasing.begin()
            await self.alerts.begin()
        except StoreUnavailable:
            log.warning("koo is starting without its state store, and keeps trying to reach it")

    def forget_parent(self) -> None:
        """In a forked child: forget running calls, which are the parent's, and keep everything else that is known."""
        for service in self.services.values():
            service.forget_parent()
        self.sharing.forget_parent()
        for threads in self._threads():
            threads.forget_parent()

    def _threads(self) -> list[Threads]:
        services = [service for service, _ in self.operations.values()]
        return [service.threads for service in services if service.threads is not None]

    async def load_prices(self, *, surely: bool = False) -> None:
        """Load the price table, once, if a service may need it, or `surely`."""
        # Loading takes some tenths of a second and some MiB, which a process with only a local model should not spend.
        if self._priced is None or (surely and not self._priced):
            needed = surely or any(
                b.options.configured and b.options.kind != "local" for b in self.ai_services.values()
            )
            if needed:
                await self.prices.load()
            self._priced = needed

    async def close(self) -> None:
        """Close in the reverse order of use. A part that fails to close does not keep the others open."""
        # The order is callers first, then what they use, and the store last. Streams are cut before the database and
        # the store close, so that their last charges are still booked; counts and history are written while the store
        # is open.
        self.own_watch.beats.stop()
        closers: list[Callable[[], Awaitable[None]]] = [self._close_threads]
        closers.extend(ai_service.provider.close for ai_service in self.ai_services.values())
        closers.extend((self.http.shut, self.gateway.cut_streams))
        if self.database_in_use is not None:
            closers.append(self.database_in_use.close)
        closers.extend(
            (
                self._release_alerts,
                self.outbox.finish,
                self.sharing.flush,
                self.fleet.leave,
                self._keep_counts,
                self._finish_history,
                self.store.close,
            )
        )
        for close in closers:
            try:
                await close()
            except Exception:
                log.exception("a part of koo did not close")
        self.calls.close()

    async def _close_threads(self) -> None:
        await asyncio.gather(*(threads.close() for threads in self._threads()))

    async def _keep_counts(self) -> None:
        for service in self.services.values():
            self.budgets.keep_count(service)

    async def _finish_history(self) -> None:
        for one in (self.history, self.incidents):
            with suppress(StoreUnavailable):
                await one.finish()

    async def _release_alerts(self) -> None:
        with suppress(StoreUnavailable):
            await self.alerts.finish()
