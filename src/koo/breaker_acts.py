"""An operator's acts on breakers: list them, trip one, put one into shadow, reset one.

Each act reaches every process on the same state store with that process's next beat. Who did it and why is recorded in
the incident that it starts, changes or ends, and quoted in the refusals that it causes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from koo.breakers import DATABASE
from koo.composition import Parts
from koo.errors import CallerMistake, InvalidRequest, Kind
from koo.monitoring.guards import Wall, breaker_view
from koo.monitoring.shapes import BreakerStatus
from koo.openings import Act
from koo.options import DAY_S, NEVER
from koo.plain_text import plain
from koo.policies.breaker import Override
from koo.sharing import said

FOR_S_MAX = 30 * DAY_S
"""A breaker that was forced open and then forgotten is an outage, so the time is limited."""
BY_MAX, REASON_MAX = 100, 500


class BreakerActs:
    """Acts on the breakers of one platform. `act` runs a change to the policies on koo's loop.

    A name is "database", a service ("claude": all of its models), or one model ("claude/opus"). Each method raises
    `CallerMistake` for an unknown name.
    """

    def __init__(self, parts: Parts, act: Callable[..., None]) -> None:
        self._parts = parts
        self._act = act

    def statuses(self, name: str | None = None) -> list[BreakerStatus]:
        """The status of all breakers, or of those that a name stands for. Without I/O."""
        wall = Wall(self._parts.clock)
        if name is not None:
            self._check(name)
        guards = self._parts.breakers.guards() if name is None else self._parts.breakers.named(name)
        return [breaker_view(guard, wall) for guard in guards]

    def trip(self, name: str, *, by: str = "", reason: str = "", for_s: float | None = None) -> Act:
        """Force a breaker open: every call is refused for `for_s` seconds, or until a reset."""
        return self._override(name, Override.FORCED_OPEN, by, reason, for_s)

    def shadow(
        self, name: str, *, on: bool = True, by: str = "", reason: str = "", for_s: float | None = None
    ) -> Act:
        """Let a breaker count and decide but refuse nothing; with `on` False its decisions are enforced again."""
        override = Override.METRICS_ONLY if on else Override.NONE
        return self._override(name, override, by, reason, for_s if on else None)

    def override(self, name: str, override: Override, act: Act | None = None) -> None:
        """Set an operator's override until `act.until`."""
        self._check(name)
        clock = self._parts.clock
        act = replace(act or Act(), at=clock.wall())
        ends_at = NEVER if act.until is None else clock.monotonic() + act.until - clock.wall()
        self._act(
            lambda: self._parts.breakers.override(name, override, act, ends_at),
            lambda: self._parts.sharing.publish("override", name, {"override": override.value, **said(act)}),
        )

    def reset(self, name: str, *, by: str = "", reason: str = "") -> None:
        """Close a breaker, remove its override and forget its failures; never counts, limits or money."""
        self._check(name)
        act = act_of(by, reason)
        if name == DATABASE:
            self._act(lambda: self._parts.database.reset_circuit_breaker(act))
            return
        service = self._parts.services.get(name)
        self._act(
            (lambda: self._parts.breakers.reset(name, act))
            if service is None
            else (lambda: self._parts.reset_service(service, act)),
            lambda: self._parts.sharing.publish("reset", name, said(act)),
        )

    def _override(self, name: str, override: Override, by: str, reason: str, for_s: float | None) -> Act:
        if for_s is not None and not 0 < for_s <= FOR_S_MAX:
            raise InvalidRequest(
                "breakers", "it must end in the future and within 30 days", kind=Kind.INVALID_REQUEST
            )
        until = None if for_s is None else self._parts.clock.wall() + for_s
        act = act_of(by, reason, until)
        self.override(name, override, act)
        return act

    def _check(self, name: str) -> None:
        if name == DATABASE:
            _ = self._parts.database
        elif not self._parts.breakers.named(name):
            known = ", ".join(guard.breaker.name for guard in self._parts.breakers.guards())
            raise CallerMistake(
                "breakers",
                f"there is no breaker of that name; the known ones are: {known}",
                kind=Kind.NOT_FOUND,
            )


def act_of(by: str, reason: str, until: float | None = None) -> Act:
    """Reduce both texts to one plain line each: every refused caller sees them."""
    return Act(plain(by, BY_MAX).strip(), plain(reason, REASON_MAX).strip(), until)
