"""Real services and a real database guard on virtual time: a platform's inputs, without its sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from koo.ai.service import Service
from koo.alerts.findings import Finding
from koo.alerts.gravity import weigh
from koo.alerts.rules import find
from koo.clock import iso, utc_day
from koo.database.database import Database
from koo.database.pool_queue import PoolQueue
from koo.deadlines import Deadlines
from koo.errors import DatabaseUnavailable, Kind, PoolSaturated
from koo.events import Event
from koo.host import Disk
from koo.monitoring.overview import services_view, system_view
from koo.monitoring.own import disk_state
from koo.monitoring.own_shapes import KooHealth
from koo.monitoring.shapes import DatabaseHealth, ServiceHealth, ServicesHealth, SystemHealth
from koo.monitoring.snapshot import service_view
from koo.monitoring.vitals import Look, database_health
from koo.options import DAY_S, BreakerOptions, DatabaseOptions, GuardOptions, LimitOptions, RetryOptions
from koo.policies.breaker import HALF_OPEN, OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED, Fault
from koo.storage.base import Allowance, BudgetView
from koo.testing.clock import VirtualClock, run_virtual

MODEL = "sonnet"
FAILED = Fault(verdict=FAILURE, kind=Kind.SERVER_ERROR)
CANCELLED = Fault(verdict=NEUTRAL, kind=Kind.INVALID_REQUEST)
TOO_MANY = Fault(verdict=THROTTLED, kind=Kind.THROTTLED, retry_after_s=20.0)
KEY_REFUSED = Fault(verdict=NEUTRAL, kind=Kind.AUTH, block="service")
MODEL_REFUSED = Fault(verdict=NEUTRAL, kind=Kind.AUTH, block="model")
NEVER_BY_RATE = 10_000
"""Used as `calls_min`: the breaker opens only by failures in a row, so a test can reach every rate."""


class Ends(Exception):
    """An operation that ends as the test says."""

    def __init__(self, fault: Fault, said: str) -> None:
        super().__init__(fault.kind, said)
        self.fault = fault


def told(error: Exception) -> Fault:
    return error.fault if isinstance(error, Ends) else FAILED


class Rig:
    """One platform's services, its database, and its ledger's numbers. Create it on the virtual loop."""

    def __init__(self, folder: Path | None = None) -> None:
        self.clock = VirtualClock()
        self.deadlines = Deadlines()
        self.services: dict[str, Service] = {}
        self.budgets: dict[str, BudgetView] = {}
        self.database: Database | None = None
        self.look: Look | None = None
        self.koo: KooHealth = {
            "state_store": {"reachable": True, "reason": "", "lost_at": None, "refuses": []},
            "disks": [],
            "descriptors": None,
            "short_of": "",
            "late": [],
            "blocked_s": 0.0,
        }
        if folder is not None:
            options = DatabaseOptions(
                url=f"sqlite:///{folder / 'user.db'}", retry=RetryOptions(attempts_max=1)
            )
            self.database = Database(
                options, deadlines=self.deadlines, clock=self.clock, draw=lambda: 0.0, publish=self.publish
            )

    def publish(self, event: Event) -> None:
        """Events of guards are ignored here."""

    def add(
        self,
        name: str = "claude",
        *,
        limits: LimitOptions | None = None,
        budget: str | None = "10",
        configured: bool = True,
        concurrency_max: int = 100,
        queue_max: int = 100,
        **breaker: Any,
    ) -> Service:
        options = GuardOptions(
            slow_s=5.0,
            concurrency_max=concurrency_max,
            queue_max=queue_max,
            breaker=BreakerOptions(**{"calls_min": NEVER_BY_RATE, **breaker}),
            retry=RetryOptions(attempts_max=1),
            limits=limits or LimitOptions(),
        )
        self.services[name] = service = Service(
            name,
            options,
            default_model=MODEL,
            clock=self.clock,
            deadlines=self.deadlines,
            classify=told,
            publish=self.publish,
            allowance=Allowance(None if budget is None else Decimal(budget)),
            obstacle="" if configured else "not configured",
        )
        return service

    # ── actions ───────────────────────────────────────────────────────────────────────────────────────────────

    async def call(
        self,
        fault: Fault | None = None,
        *,
        name: str = "claude",
        model: str = MODEL,
        took_s: float = 0.1,
        said: str = "",
    ) -> None:
        """Make one call through the real guard, which succeeds or fails with this fault."""

        async def operation() -> None:
            await asyncio.sleep(took_s)
            if fault is not None:
                raise Ends(fault, said)

        try:
            await self.services[name].guard(model).call(operation)
        except Ends:
            pass

    async def calls(self, good: int = 0, bad: int = 0, **more: Any) -> None:
        """Make this many calls of each kind, the failing ones spread so that few come in a row."""
        for place in range(good + bad):
            fails = (place + 1) * bad // (good + bad) > place * bad // (good + bad)
            await self.call(FAILED if fails else None, **more)

    async def open(self, model: str = MODEL, name: str = "claude") -> None:
        """Fail until that model's breaker opens: five times, or once if recovery is being tested."""
        while self.services[name].guard(model).breaker.phase is not OPEN:
            await self.call(FAILED, name=name, model=model)

    async def half_open(self, model: str = MODEL, name: str = "claude") -> None:
        """Wait until that model's breaker tests its recovery."""
        breaker = self.services[name].guard(model).breaker
        await self.clock.sleep(breaker.opens_until() - self.clock.monotonic())
        self.tick()
        assert breaker.phase is HALF_OPEN

    def tick(self) -> None:
        for service in self.services.values():
            service.tick()
        if self.database is not None:
            self.database.tick()

    def spend(
        self,
        spent: str,
        held: str = "0",
        *,
        name: str = "claude",
        scope: str = "shared",
        above_hold: str = "0",
        idle: str = "0",
        unsettled: str = "0",
    ) -> None:
        """Set the ledger's numbers for today."""
        self.budgets[name] = replace(
            self.budget(name),
            spent_usd=Decimal(spent),
            held_usd=Decimal(held),
            idle_usd=Decimal(idle),
            unsettled_usd=Decimal(unsettled),
            as_of=self.clock.wall(),
            scope=scope,
            above_hold_usd=Decimal(above_hold),
        )

    def budget(self, name: str = "claude") -> BudgetView:
        """The ledger's numbers for today: those set last, or none."""
        today = utc_day(self.clock.wall())
        known = self.budgets.get(name)
        if known is not None and known.resets_at == (today + 1) * DAY_S:
            return known
        nothing = Decimal(0)
        limit_usd = self.services[name].allowance.limit_usd
        return BudgetView(
            limit_usd=limit_usd, spent_usd=nothing, held_usd=nothing, idle_usd=nothing, unsettled_usd=nothing,
            resets_at=(today + 1) * DAY_S, as_of=None,
        )  # fmt: skip

    async def use_database(self, *outcomes: bool) -> None:
        """Make connections of the database that succeed or fail."""
        assert self.database is not None

        async def connect(well: bool) -> None:
            if not well:
                raise ConnectionRefusedError("connection refused")

        for well in outcomes:
            try:
                await self.database.guard.call(connect, well)
            except (DatabaseUnavailable, OSError):
                assert not well

    def look_at_database(self, error: str | None = None) -> None:
        """Report the result of a probe."""
        assert self.database is not None
        trouble = None if error is None else DatabaseUnavailable("database", error)
        self.database.guard.note_check(trouble)
        self.look = Look(self.clock.wall(), 0.01, trouble)

    @property
    def pool_queue(self) -> PoolQueue:
        """The queue in front of the database's pool."""
        assert self.database is not None
        return self.database.pool_queue

    def turn_away(self) -> None:
        """Turn a caller away from a full pool."""
        self.pool_queue.used = self.pool_queue.limit
        self.pool_queue.explain(PoolSaturated("database", ""), self.clock.monotonic(), 0.1)

    def leave_pool(self) -> None:
        """Free all connections."""
        self.pool_queue.used = 0

    def pause_database(self) -> None:
        assert self.database is not None
        self.database.pause()

    def resume_database(self) -> None:
        assert self.database is not None
        self.database.resume()

    def lose_store(self, refuses: list[str]) -> None:
        """Make the state store unreachable; calls to `refuses` count against budgets that were set."""
        self.koo["state_store"] = {
            "reachable": False,
            "reason": "the state store cannot be used: disk I/O error",
            "lost_at": iso(self.clock.wall()),
            "refuses": refuses,
        }

    def fill_disk(self, free_mib: int) -> None:
        """Set the free space on koo's disk."""
        disk = Disk("home", free_mib * 2**20, 100 * 2**30)
        self.koo["disks"] = [
            {
                "name": "home",
                "state": disk_state(disk),
                "free_bytes": disk.free_bytes,
                "total_bytes": disk.total_bytes,
            }
        ]

    # ── observations ──────────────────────────────────────────────────────────────────────────────────────────

    def database_health(self) -> DatabaseHealth:
        assert self.database is not None
        return database_health(replace(self.database.vitals(), look=self.look))

    def view(self, name: str = "claude") -> ServiceHealth:
        return service_view(self.services[name], self.budget(name), self.clock)

    def views(self) -> dict[str, ServiceHealth]:
        return {name: self.view(name) for name in self.services}

    def overview(self) -> ServicesHealth:
        return services_view(self.views(), self.clock)

    def system(self) -> SystemHealth:
        database, services = self.database_health(), self.overview()
        gravity = weigh(find(database, services["services"], services["budgets"], self.koo), ())
        return system_view(database, services, self.koo, gravity, self.clock)

    def findings(self) -> list[Finding]:
        return find(None if self.database is None else self.database_health(), self.views(), (), self.koo)

    def found(self) -> set[str]:
        """The fingerprints of findings that may begin an alert now."""
        return {finding.fingerprint for finding in self.findings() if finding.begins}


def on_rig(test: Callable[[Rig], Awaitable[None]], folder: Path | None = None) -> None:
    """Run a test in a new rig; with a folder it has a database."""

    async def main() -> None:
        await test(Rig(folder))

    run_virtual(main)
