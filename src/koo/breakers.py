"""Every breaker of a platform by its name, and operators' overrides.

A name is "database", a service ("claude", all of its models), or one model ("claude/opus"). What is set here holds in
this process; `sharing.py` carries it to the others.

The database is made when it is first used. An override that was set before holds from then on.
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
    """Those of one platform. `database`: its guard; None: none is used so far."""

    def __init__(
        self, services: Callable[[], Mapping[str, Service]], database: Callable[[], Guard | None]
    ) -> None:
        self._services = services
        self._database = database
        self._of_database: tuple[Override, Act | None, float] | None = None

    def guards(self) -> list[Guard]:
        """All of them, the database's first; of services those that can be asked."""
        database = self._database()
        of_services = [guard for one in self._services().values() if one.configured for guard in one.guards]
        return of_services if database is None else [database, *of_services]

    def named(self, name: str) -> list[Guard]:
        """Those that a name means; empty: there are none of that name."""
        if name == DATABASE:
            database = self._database()
            return [] if database is None else [database]
        service, slash, _ = name.partition("/")
        found = self._services().get(service)
        if found is None:
            return []
        return [guard for guard in found.guards if not slash or guard.breaker.name == name]

    def find(self, name: str) -> Breaker | None:
        """The one breaker of that very name; None: there is none now."""
        return next((guard.breaker for guard in self.named(name) if guard.breaker.name == name), None)

    def override(self, name: str, override: Override, act: Act | None = None, ends_at: float = NEVER) -> None:
        """Let an operator decide, until monotonic `ends_at`; what of that name does not exist is left alone."""
        service = self._services().get(name)
        if name == DATABASE:
            self._of_database = None if override is NONE else (override, act, ends_at)
        if service is not None and name != DATABASE:
            service.set_override(override, act, ends_at)
            return
        for guard in self.named(name):
            guard.set_override(override, act, ends_at)

    def reset_database(self, act: Act | None = None) -> None:
        """Close its breaker, if it is used."""
        self._of_database = None
        for guard in self.named(DATABASE):
            guard.reset(act)

    def reset(self, name: str, act: Act | None = None) -> None:
        """Close those that a name means."""
        for guard in self.named(name):
            guard.reset(act)

    def meet_database(self, guard: Guard, now: float) -> None:
        """It has been made: an override that was set before holds now."""
        if self._of_database is not None and now < self._of_database[2]:
            guard.set_override(*self._of_database)
