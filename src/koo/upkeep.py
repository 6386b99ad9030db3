"""Upkeep: the work that is done on time, with or without traffic.

Without it the dashboard of a service without traffic would show an open circuit forever, a blocked key would stay
blocked, and no alert would start or end. Each task survives its own errors, and logs the first one in a row.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from contextlib import suppress

from koo.ai.service import AIService, Service
from koo.alerts.courier import Courier
from koo.breakers import DATABASE
from koo.clock import utc_day
from koo.composition import Parts
from koo.errors import ExternalServiceError, Kind
from koo.events import HealthCheckFailed, HealthCheckPassed
from koo.fleet.places import place_of_key
from koo.monitoring.shapes import ServiceCheck
from koo.monitoring.snapshot import unknown_service
from koo.options import DAY_S
from koo.policies.fleet import Check
from koo.storage.base import LeadersStore, NotLeading, StoreUnavailable
from koo.telemetry.looking import finish, look

TICK_S = 1.0
SWEEP_EVERY_TICKS = 30
PRUNE_EVERY_S = 3600.0
STORE_AWAY_LOOK_S = 5.0
"""While the state store on the database's server is unreachable, the database is checked this often."""
NOTICES_KEPT_S = 90 * DAY_S
"""They are kept as long as the alert episodes that they report."""

_KINDS = {kind.value for kind in Kind}

log = logging.getLogger("koo")


class BackgroundTask(ABC):
    """Work that is done each second until it is cancelled."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._failing = False

    async def run(self) -> None:
        """Wait and step, until cancelled."""
        while True:
            await self.parts.clock.sleep(TICK_S)
            # An error must not end the task: nothing awaits it before koo closes, so breakers would stop recovering and
            # alerts would stop, without a sign. Only the first error in a row is logged, or a step that always fails
            # would write a traceback each second.
            try:
                await self.step()
            except Exception:
                if not self._failing:
                    log.exception("%s failed and will be tried again", type(self).__name__)
                self._failing = True
            else:
                self._failing = False

    @abstractmethod
    async def step(self) -> None: ...


class KeepTime(BackgroundTask):
    """Each second: breakers and key blocks whose time is over, new days, alerts. Every half minute: old data."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._ticks = 0
        self._prune_at = 0.0
        look(parts)

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            finish(self.parts)

    async def step(self) -> None:
        self._watch_itself()
        self.tick()
        await self._watch()
        self._ticks += 1
        if self._ticks % SWEEP_EVERY_TICKS == 0:
            await self._sweep()

    def tick(self) -> None:
        """Apply the passage of time to every guard, without network I/O."""
        parts = self.parts
        look(parts)
        parts.calls.tick()
        for ai_service in parts.ai_services.values():
            if ai_service.service.obstacle:
                # A missing package or file may have been installed since.
                ai_service.look()
        if parts.fleet.heard is not None:
            parts.store.leasing.know_processes(parts.fleet.heard.processes)
        for service in parts.services.values():
            service.tick()
            parts.budgets.keep_count(service)
        if parts.database_in_use is not None:
            parts.database_in_use.tick()

    def _watch_itself(self) -> None:
        """Check that the watchers still run. It counts steps, so that setting the clock raises no alarm."""
        database = self.parts.database_in_use
        is_open = database is not None and database.connections is not None
        options = self.parts.options.database if database is None else database.options
        self.parts.own_watch.step(
            self.parts.clock.monotonic(),
            check_s=self.parts.options.health_check_timeout_s,
            probe=None if database is None else database.last_look,
            probe_s=3 * options.probe_interval_s + options.probe_timeout_s if is_open else None,
        )

    async def _watch(self) -> None:
        """Evaluate everything once, and start and end alerts."""
        findings, looks = self.parts.what_holds()
        history, incidents = self.parts.history, self.parts.incidents
        if history.is_due:
            history.take(self.parts.counted(looks))
        await self.parts.alerts.look(findings, looks)
        incidents.look()
        for one in (history, incidents):
            # Both keep what they could not write, and try again in the next second.
            if one.has_news:
                with suppress(StoreUnavailable):
                    await one.write()

    async def _sweep(self) -> None:
        """Record the data for forecasts; the leader also deletes old data, on behalf of all processes."""
        self.parts.budgets.forget_unused_tags()
        self.parts.budgets.note_paces(self.parts.clock.wall())
        if self.parts.fleet.leads:
            with suppress(StoreUnavailable, NotLeading):
                await self._forget(self.parts.store.as_leader(self.parts.fleet.leadership.epoch))

    # `store` carries the leader's epoch, and refuses a process that is no longer the leader. A machine that was
    # suspended while it led would otherwise go on sweeping alongside its successor, with outdated data.
    async def _forget(self, store: LeadersStore) -> None:
        wall = self.parts.clock.wall()
        await self.parts.alerts.sweep(store)
        await store.notices.prune(wall - NOTICES_KEPT_S)
        await store.roll_call.forget_old()
        await self._prune(store)

    async def _prune(self, store: LeadersStore) -> None:
        """Prune once an hour, or again with the next sweep if there was more than one batch."""
        now = self.parts.clock.monotonic()
        if now >= self._prune_at:
            # Each sweep deletes one batch. A year of entries in a single transaction would hold the store's write lock
            # for so long that beats and bookings of all processes would have to wait.
            wall = self.parts.clock.wall()
            more = await store.past.prune(utc_day(wall) - self.parts.options.ledger_days)
            more |= await store.history.prune(wall)
            await store.incidents.prune(wall)
            self._prune_at = now if more else now + PRUNE_EVERY_S


class SendNotices(BackgroundTask):
    """Sends one channel's messages, one at a time. Each channel has its own task: a slow one does not delay others."""

    def __init__(self, parts: Parts, courier: Courier) -> None:
        super().__init__(parts)
        self._courier = courier

    async def step(self) -> None:
        await self._courier.step()


class CheckServices(BackgroundTask):
    """An unbilled check of each configured service at its interval; a blocked key has its own, growing interval.

    In a fleet the leader checks, and the others use its results. A process with a key or address that the leader does
    not have receives no results for it, and checks for itself, half as often. So does every process while none leads.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._began_at = parts.clock.monotonic()
        self._due_at = self._next_round()
        # Services with alerts that an earlier process left: they are checked once, immediately.
        self._looked_at: set[str] = set()

    def _next_round(self) -> float:
        return self.parts.clock.monotonic() + self.parts.options.health_check_interval_s

    async def step(self) -> None:
        now = self.parts.clock.monotonic()
        self._take_word(now)
        due = now >= self._due_at
        if due:
            self._due_at = self._next_round()
        # Each is checked only once: a service that is still down keeps its alert, and would otherwise be checked every
        # second.
        doubted = self.parts.alerts.doubted() - self._looked_at
        self._looked_at |= doubted
        names = [
            name
            for name, service in self.parts.services.items()
            if _wants_check(service, due or f"ai:{name}" in doubted, now)
            and (f"ai:{name}" in doubted or not self._leaves_it(name, now))
        ]
        # The services are checked in parallel: a provider that hangs until its timeout must not delay the checks of the
        # others.
        await asyncio.gather(*(self._check(name) for name in names))
        self.parts.own_watch.rounds += 1
        await self._check_database(DATABASE in doubted)

    def _leaves_it(self, name: str, now: float) -> bool:
        """Whether another process checks this service, or may still begin to."""
        # After two intervals without a result, the leader does not have this key, or there is no leader. A new process
        # counts from its start, or each restart of a fleet would send one check per process at once.
        fleet, ai_service = self.parts.fleet, self.parts.ai_services[name]
        if fleet.leads or ai_service.options.kind == "local":
            return False
        told_at = fleet.checks.told_at.get((name, place_of_key(ai_service.options)), self._began_at)
        return now - told_at < 2 * self.parts.options.health_check_interval_s

    def _take_word(self, now: float) -> None:
        """Apply the leader's results for services that this process calls with the same key."""
        for check in self.parts.fleet.checks.take():
            ai_service = self.parts.ai_services.get(check.service)
            if ai_service is None or place_of_key(ai_service.options) != check.place:
                continue
            # An older result is from before this process started, or from a leader that has stopped: it may no longer
            # be true. A newer version of koo may report a kind that this one does not have.
            if check.ago_s < 2 * self.parts.options.health_check_interval_s:
                kind = Kind(check.kind) if check.kind in _KINDS else Kind.UNKNOWN
                error = ExternalServiceError(check.service, check.reason, kind=kind) if check.kind else None
                note_check(self.parts, ai_service, error)
                # The leader's failed check counts as this process's own. Otherwise each process of a fleet would send
                # the refused key at its own times, and some providers lock accounts for that.
                if error is not None and ai_service.service.gates.key_blocks:
                    ai_service.service.gates.key_blocks.postpone(now)

    async def _check_database(self, is_doubted: bool) -> None:
        """Check the database now if an earlier process left alerts about it, or if the state store is on its server and
        is unreachable.

        Its own probe may be half a minute away, and until then one outage of the server would be reported as two.
        """
        parts = self.parts
        if parts.database_in_use is None:
            return
        if is_doubted or (parts.store.trouble is not None and parts.store_is_databases):
            await parts.database_in_use.health_check(max_age_s=0.0 if is_doubted else STORE_AWAY_LOOK_S)

    async def _check(self, name: str) -> None:
        result = await check_service(self.parts, name)
        blocks = self.parts.services[name].gates.key_blocks
        if blocks and not result["healthy"]:
            blocks.postpone(self.parts.clock.monotonic())


def _wants_check(service: Service, due: bool, now: float) -> bool:
    if not service.configured or not service.checkable:
        return False
    blocks = service.gates.key_blocks
    # While the key itself is refused, each check is another refused request, so only its own growing interval counts. A
    # block for one model must not stop the regular checks, which show the other models that the service is up.
    return blocks.due(now) or (due and None not in blocks.by_model)


async def check_services(parts: Parts, name: str | None) -> dict[str, ServiceCheck]:
    """Check one built-in service, or all configured ones with None. Raises `UnknownService`."""
    known = parts.ai_services
    if name is not None and name not in known:
        raise unknown_service(name, list(known))
    names = [name] if name is not None else [one for one, ai in known.items() if ai.service.configured]
    results = await asyncio.gather(*(check_service(parts, one) for one in names))
    return dict(zip(names, results, strict=True))


async def check_service(parts: Parts, name: str) -> ServiceCheck:
    """Check that a built-in service responds and accepts the key. Never billed.

    Returns `healthy`, `error`, `response_time_ms`, and the resulting state.
    """
    ai_service, clock = parts.ai_services[name], parts.clock
    began = clock.monotonic()
    error = await _ask(ai_service, parts.options.health_check_timeout_s)
    # A shortage on this machine (descriptors, memory, threads) says nothing about the service.
    if ai_service.service.configured and (error is None or error.kind is not Kind.OUT_OF_RESOURCES):
        note_check(parts, ai_service, error)
        kind, reason = ("", "") if error is None else (error.kind.value, error.reason)
        parts.fleet.note_check(Check(name, place_of_key(ai_service.options), kind, reason))
    view = parts.service_health(name)
    return {
        "service_name": name,
        "healthy": error is None and view["state"] not in ("circuit_open", "unhealthy"),
        "state": view["state"],
        "error": None if error is None else str(error),
        "response_time_ms": (clock.monotonic() - began) * 1000,
        "last_updated": view["last_updated"],
    }


def note_check(parts: Parts, ai_service: AIService, error: ExternalServiceError | None) -> None:
    """Record an unbilled check that was made here or by the leader."""
    name, failed_before = ai_service.options.name, ai_service.service.default_guard.checks_failed
    ai_service.service.note_check(error)
    (parts.checked.discard if error else parts.checked.add)(name)
    _publish_check(parts, name, error, failed_before)


def _publish_check(parts: Parts, name: str, error: ExternalServiceError | None, failed_before: int) -> None:
    """Publish the first failed check in a row, and the success that ends the row."""
    if error is not None and not failed_before:
        parts.events.publish(HealthCheckFailed(name, error.reason, error.kind))
    elif error is None and failed_before:
        parts.events.publish(HealthCheckPassed(name, failed_before))


async def _ask(ai_service: AIService, timeout_s: float) -> ExternalServiceError | None:
    name = ai_service.options.name
    obstacle = ai_service.look()
    if obstacle:
        return ExternalServiceError(name, obstacle, kind=Kind.NOT_CONFIGURED)
    try:
        async with asyncio.timeout(timeout_s):
            await ai_service.provider.check()
    except TimeoutError:
        return ExternalServiceError(name, "the check got no response in time", kind=Kind.TIMEOUT)
    except ExternalServiceError as error:
        return error
    return None
