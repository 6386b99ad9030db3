"""`with koo.testing.use(platform):` makes `query_ai`, `db_manager` and all other bound names use that platform.

Code under test has bound these names long before the test began, in modules, classes and closures, so nothing can be
replaced where it is bound. Instead the objects themselves stand for others for as long as the block runs: the process's
one platform (or `instead_of`, an application's own) shares the attributes of the given one, and a database that was
handed out shares those of its database. Afterwards each is what it was.

A database that is handed out for the first time inside the block (`from koo import db_manager` in a module that the
test imports) must not be the test's own for ever. It is an object that afterwards becomes the platform's, when
something is first asked of it (`late_database.py`).

Own operations are known to both platforms: code under test registered them, or declared them by `@guarded`, when it was
imported, before the block or in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from koo.bridge import BRIDGE
from koo.errors import ConfigurationError
from koo.platform import Platform
from koo.residence import OpenElsewhere
from koo.testing.taken import settled

if TYPE_CHECKING:
    from koo.database.database import Database

OPEN = (
    "the database of the platform that is to be replaced is open: close it first (`await platform.close()`), or begin "
    "to use the other platform before the application is started"
)
LIFESPAN = (
    "the application's lifespan opens koo on the loop of its test client, so begin with `with TestClient(app)`, before "
    "the test awaits anything of koo's, or take the fixture `koo_sync` in a plain `def` test"
)
_handed_out: WeakKeyDictionary[Platform, Database] = WeakKeyDictionary()
"""By platform: the database that was handed out while another one stood in for it."""


class _Replaced(Platform):
    """A platform for which another one stands in."""

    async def open(self) -> Platform:
        """As `Platform.open`; from koo's loop in the background it moves to this one, where no call is under way.

        So an application's lifespan may open, on the loop of its test client, what `koo_sync` used before.
        """
        try:
            return await super().open()
        except OpenElsewhere as error:
            if not (BRIDGE.is_own(self._residence.loop) and settled(self)):
                raise OpenElsewhere(f"{error}; in a test: {LIFESPAN}") from None
        await self.close()
        return await super().open()

    @property
    def database(self) -> Database:
        """A separate object, which outlives the block and the other platform."""
        known = _handed_out.get(self)
        if known is None:
            from koo.testing.late_database import late_database

            known = _handed_out[self] = late_database(self)
            known.__dict__ = vars(self.parts.database)
        return known


@contextmanager
def use(platform: Platform, *, instead_of: Platform | None = None) -> Iterator[Platform]:
    """Let `platform` stand in for the one of this process, or for `instead_of`, as long as the block runs.

    Raises RuntimeError while the database of the replaced one is open.
    """
    replaced = default_platform() if instead_of is None else instead_of
    if vars(replaced) is vars(platform):
        yield platform
        return
    own, database = vars(replaced), _database_of(replaced)
    _register_too(replaced.own_operations, platform)
    own_database = vars(database) if database is not None else {}
    replaced.__dict__ = vars(platform)
    kind, replaced.__class__ = replaced.__class__, _Replaced
    if database is not None:
        _handed_out[replaced] = database
        database.__dict__ = vars(platform.parts.database)
    try:
        yield platform
    finally:
        replaced.__dict__, replaced.__class__ = own, kind
        handed_out = _handed_out.get(replaced)
        if handed_out is not None:
            handed_out.__dict__ = own_database if handed_out is database else {}
        _register_too(platform.own_operations, replaced)


def default_platform() -> Platform:
    """The one of this process."""
    from koo.default.platform import platform

    return platform


def _database_of(platform: Platform) -> Database | None:
    """What was handed out as its database so far. Raises RuntimeError where that is open."""
    made = vars(platform).get("_parts")
    database = made.database_in_use if made is not None else None
    if database is None or isinstance(platform, _Replaced):
        return _handed_out.get(platform)
    connections = database.connections
    if connections is not None and not connections.loop.is_closed():
        raise RuntimeError(OPEN)
    return cast("Database", database)


def _register_too(operations: Mapping[str, Mapping[str, Any]], platform: Platform) -> None:
    """Operations that one of the two knows are known to the other."""
    known = platform.own_operations
    for name, options in operations.items():
        if name not in known:
            # Where settings cannot be read, or a built-in service has the name, the platform says so when it is asked.
            with suppress(ConfigurationError):
                platform.register_service(name, **options)
