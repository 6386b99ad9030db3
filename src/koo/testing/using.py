"""`with koo.testing.use(platform):` makes `query_ai`, `db_manager` and all other bound names use that platform.

The code under test bound these names long before the test began, in modules, classes and closures, so they cannot be
replaced where they are bound. Instead, the objects themselves change for as long as the block runs. The process's one
platform (or `instead_of`, an application's own) shares the attributes of the given platform, and a database that was
handed out shares those of the given platform's database. After the block, each has its own attributes again.

A database may be handed out for the first time inside the block (`from koo import db_manager` in a module that the test
imports). It must not stay bound to the test's platform forever. So what is handed out is an object that binds to the
real platform's database when it is first used after the block (`late_database.py`).

Users' own operations are registered with both platforms, because the code under test registers or declares them
(`@guarded`) when it is imported, which may be before the block or inside it.
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
    "the database of the replaced platform is open: close it first (`await platform.close()`), or call `use` before "
    "the application starts"
)
LIFESPAN = (
    "the application's lifespan opens koo on the loop of its test client, so enter `with TestClient(app)` before the "
    "test awaits anything of koo, or use the fixture `koo_sync` in a plain `def` test"
)
_handed_out: WeakKeyDictionary[Platform, Database] = WeakKeyDictionary()
"""For each replaced platform, the database object that was handed out for it during a block."""


class _Replaced(Platform):
    """A platform that is replaced by another one."""

    async def open(self) -> Platform:
        """Like `Platform.open`; a platform that is open on koo's background loop moves to this loop if no call runs.

        So an application's lifespan can open the platform on the loop of its test client after `koo_sync` has used it.
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
        """A separate object, which outlives the block and the given platform."""
        known = _handed_out.get(self)
        if known is None:
            from koo.testing.late_database import late_database

            known = _handed_out[self] = late_database(self)
            known.__dict__ = vars(self.parts.database)
        return known


@contextmanager
def use(platform: Platform, *, instead_of: Platform | None = None) -> Iterator[Platform]:
    """Replace this process's platform, or `instead_of`, by `platform` for as long as the block runs.

    Raises RuntimeError while the database of the replaced one is open.
    """
    # The attributes are replaced as a whole (`__dict__`), so no object that holds a reference needs to be found. The
    # class changes too: `_Replaced.database` must not return the given platform's own database object, which code
    # under test may keep after the block.
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
    """This process's platform."""
    from koo.default.platform import platform

    return platform


def _database_of(platform: Platform) -> Database | None:
    """The database object that was handed out for a platform, if any. Raises RuntimeError if that database is open."""
    made = vars(platform).get("_parts")
    database = made.database_in_use if made is not None else None
    if database is None or isinstance(platform, _Replaced):
        return _handed_out.get(platform)
    connections = database.connections
    if connections is not None and not connections.loop.is_closed():
        raise RuntimeError(OPEN)
    return cast("Database", database)


def _register_too(operations: Mapping[str, Mapping[str, Any]], platform: Platform) -> None:
    """Register operations with a platform that does not have them yet."""
    known = platform.own_operations
    for name, options in operations.items():
        if name not in known:
            # If settings cannot be read, or a built-in service has the name, the platform raises that error itself
            # when it is used.
            with suppress(ConfigurationError):
                platform.register_service(name, **options)
