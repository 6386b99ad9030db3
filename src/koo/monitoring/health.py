"""Work in the background: what time brings about, with or without traffic.

Without it a dashboard of a quiet service would show an open circuit for ever, a latched key would stay latched, and a
dead process's holds would stay held. Each piece of work survives its own errors: they are logged when they begin.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from koo.clock import Clock
from koo.guard import Gates

TICK_S = 1.0
SWEEP_EVERY_TICKS = 30

log = logging.getLogger("koo")


class Checkable(Protocol):
    """A service that can be asked, unbilled, whether it is there."""

    configured: bool
    checkable: bool
    gates: Gates


class Host(Protocol):
    """What the background needs of the platform."""

    @property
    def services(self) -> Mapping[str, Checkable]: ...

    def tick(self) -> None: ...

    async def watch(self) -> None: ...

    async def sweep(self) -> None: ...

    async def check_service(self, name: str) -> dict[str, Any]: ...


class Work(ABC):
    """Something done each second until it is cancelled."""

    def __init__(self, host: Host, clock: Clock) -> None:
        self.host = host
        self.clock = clock
        self._failing = False

    async def run(self) -> None:
        """For ever: wait, and step."""
        while True:
            await self.clock.sleep(TICK_S)
            try:
                await self.step()
            except Exception:
                if not self._failing:
                    log.exception("%s failed, and goes on", type(self).__name__)
                self._failing = True
            else:
                self._failing = False

    @abstractmethod
    async def step(self) -> None: ...


class KeepTime(Work):
    """Breakers whose time is over, latches that end, days that roll; and now and then what dead processes held."""

    def __init__(self, host: Host, clock: Clock) -> None:
        super().__init__(host, clock)
        self._ticks = 0

    async def step(self) -> None:
        self.host.tick()
        await self.host.watch()
        self._ticks += 1
        if self._ticks % SWEEP_EVERY_TICKS == 0:
            await self.host.sweep()


class CheckServices(Work):
    """One unbilled check of each configured service at its interval; a latched key at its own, growing one."""

    def __init__(self, host: Host, clock: Clock, every_s: float) -> None:
        super().__init__(host, clock)
        self._every_s = every_s
        self._due_at = clock.monotonic() + every_s

    async def step(self) -> None:
        now = self.clock.monotonic()
        due = now >= self._due_at
        if due:
            self._due_at = now + self._every_s
        names = [name for name, service in self.host.services.items() if _wants_check(service, due, now)]
        await asyncio.gather(*(self._check(name) for name in names))

    async def _check(self, name: str) -> None:
        result = await self.host.check_service(name)
        latches = self.host.services[name].gates.latches
        if latches and not result["healthy"]:
            latches.postpone(self.clock.monotonic())


def _wants_check(service: Checkable, due: bool, now: float) -> bool:
    if not service.configured or not service.checkable:
        return False
    return service.gates.latches.due(now) if service.gates.latches else due
