"""Looking at an error of unknown make: nothing that it does may make the look itself fail."""

from __future__ import annotations


def peek(thing: object, *path: str) -> object:
    """The attribute at the end of `path`, or None where there is none or reading it raises."""
    for name in path:
        try:
            thing = getattr(thing, name, None)
        except Exception:  # noqa: BLE001 - a property may raise anything
            return None
        if thing is None:
            return None
    return thing


def names_of(cls: type) -> dict[str, set[str]]:
    """Top module → names of the classes that an exception is, so that a user's subclass is known too."""
    names: dict[str, set[str]] = {}
    for base in cls.__mro__:
        names.setdefault(str(base.__module__).partition(".")[0], set()).add(base.__name__)
    return names
