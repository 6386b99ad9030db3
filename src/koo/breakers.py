"""Every breaker of a platform by its name, and operators' overrides.

A name is "database", a service ("claude": all of its models), or one model ("claude/opus"). What is set here applies to
this process; `sharing.py` sends it to the others.

The database's guard is created on first use. An override that was set before that applies from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from koo.ai.service import Service
from koo.guard import Guard
from koo.openings import Act
from koo.options import NEVER
from koo.policies.breaker import NONE, Breaker, Override

DATABASE = "database"


class Breakers:
    """The breakers of one platform. `database` returns the database's guard, or None if no database has been used
    yet."""

    def __init__(
        self, services: Callable[[], Mapping[str, Service]], database: Callable[[], Guard | None]
    ) -> None:
        self._services = services
        self._database = database
        self._of_database: tuple[Override, Act | None, float] | None = None

    def guards(self) -> list[Guard]:
        """All guards: the database's first, then those of configured services."""
        database = self._database()
        of_services = [guard for one in self._services().values() if one.configured for guard in one.guards]
        return of_services if database is None else [database, *of_services]

    def named(self, name: str) -> list[Guard]:
        """The guards that a name stands for; empty if there are none of that name."""
        if name == DATABASE:
            database = self._database()
            return [] if database is None else [database]
        service, slash, _ = name.partition("/")
        found = self._services().get(service)
        if found is None:
            return []
        return [guard for guard in found.guards if not slash or guard.breaker.name == name]

    def find(self, name: str) -> Breaker | None:
        """The one breaker with exactly this name, or None."""
        return next((guard.breaker for guard in self.named(name) if guard.breaker.name == name), None)

    def override(self, name: str, override: Override, act: Act | None = None, ends_at: float = NEVER) -> None:
        """Apply an operator's override until `ends_at` (monotonic seconds). An unknown name is ignored."""
        service = self._services().get(name)
        # The override is remembered as well as applied: after a restart the stored override arrives before the first
        # session creates the database's guard, which would otherwise start without it.
        if name == DATABASE:
            self._of_database = None if override is NONE else (override, act, ends_at)
        if service is not None and name != DATABASE:
            # This goes through the service, which also applies it to models that are called for the first time later
            # on.
            service.set_override(override, act, ends_at)
            return
        for guard in self.named(name):
            guard.set_override(override, act, ends_at)

    def reset_database(self, act: Act | None = None) -> None:
        """Close the database's breaker, if the database is in use, because another process did."""
        # The remembered override is removed too: otherwise it would apply again as soon as the database's guard is
        # created.
        self._of_database = None
        for guard in self.named(DATABASE):
            guard.reset(act, is_new=False)

    def reset(self, name: str, act: Act | None = None, *, is_new: bool = True) -> None:
        """Close the breakers that a name stands for; see `Guard.reset`."""
        for guard in self.named(name):
            guard.reset(act, is_new=is_new)

    def meet_database(self, guard: Guard, now: float) -> None:
        """Apply an override that was set before the database's guard existed."""
        if self._of_database is not None and now < self._of_database[2]:
            guard.set_override(*self._of_database)
