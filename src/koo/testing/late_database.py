"""A database object that binds to its platform's database when it is first used."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from koo.database.database import Database
from koo.platform import Platform


class LateDatabase(Database):
    """Empty at first; then it shares all attributes of its platform's database."""

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for missing attributes. Once the attributes are shared, a missing one is an error, and
        # sharing them again would recurse forever.
        if vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.__dict__ = vars(_platforms[self].database)
        return getattr(self, name)


_platforms: WeakKeyDictionary[LateDatabase, Platform] = WeakKeyDictionary()


def late_database(platform: Platform) -> LateDatabase:
    """A late database that belongs to `platform`."""
    made = LateDatabase.__new__(LateDatabase)
    _platforms[made] = platform
    return made
