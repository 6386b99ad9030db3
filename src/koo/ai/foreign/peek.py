"""Looking at an error or a client of unknown origin: nothing that it does may make the look itself fail."""

from __future__ import annotations

import sys


def peek(thing: object, *path: str) -> object:
    """The attribute at the end of `path`, or None if it is missing or reading it raises."""
    for name in path:
        try:
            thing = getattr(thing, name, None)
        except Exception:  # noqa: BLE001 - a property may raise anything
            return None
        if thing is None:
            return None
    return thing


def field_of(thing: object, name: str) -> object:
    """The attribute of a library's object, or None. Of an application's own, only stored attributes are read.

    There a property may do anything: load a row from a database, say.
    """
    fields = getattr(thing, "__dict__", None)
    if isinstance(fields, dict) and name in fields:
        return fields[name]
    return peek(thing, name) if is_installed(type(thing).__module__) else None


def is_installed(module: str) -> bool:
    """Whether a module is a library's, not the application's own."""
    # A namespace package (`google`, `mistralai`) has no file of its own.
    places = (
        getattr(sys.modules.get(name), "__file__", None) or "" for name in (module, module.partition(".")[0])
    )
    return any("site-packages" in place or "dist-packages" in place for place in places)


def names_of(cls: type) -> dict[str, set[str]]:
    """Top module → names of the classes that an exception is, so that a user's subclass is known too."""
    names: dict[str, set[str]] = {}
    for base in cls.__mro__:
        names.setdefault(str(base.__module__).partition(".")[0], set()).add(base.__name__)
    return names
