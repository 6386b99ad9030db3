"""Read attributes of errors and clients of unknown origin without ever raising."""

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
    """An attribute of an object, or None. Properties are read only on objects of installed libraries.

    A property of an application's own class may do anything, such as load a row from a database.
    """
    fields = getattr(thing, "__dict__", None)
    if isinstance(fields, dict) and name in fields:
        return fields[name]
    return peek(thing, name) if is_installed(type(thing).__module__) else None


def is_installed(module: str) -> bool:
    """Whether a module belongs to an installed library and not to the application."""
    # A namespace package (`google`, `mistralai`) has no file, so the submodule is checked too.
    places = (
        getattr(sys.modules.get(name), "__file__", None) or "" for name in (module, module.partition(".")[0])
    )
    return any("site-packages" in place or "dist-packages" in place for place in places)


def names_of(cls: type) -> dict[str, set[str]]:
    """Top-level module → names of an exception's base classes, so that a user's subclass is recognised too."""
    names: dict[str, set[str]] = {}
    for base in cls.__mro__:
        names.setdefault(str(base.__module__).partition(".")[0], set()).add(base.__name__)
    return names
