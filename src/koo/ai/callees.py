"""What koo knows of the object or function that an operation calls: looked up once, remembered while that lives.

An SDK's method is bound to a resource of its client. From there koo can tell whether it blocks and whether the client
repeats by itself. The walk takes some microseconds, and a guarded call is to cost one or two: so it is made when an
object is first seen. Nothing here keeps an object alive.
"""

from __future__ import annotations

import weakref
from types import FunctionType

from koo.ai.blocking import called_by, innermost, instead_of
from koo.ai.sdk_retries import own_retries

CO_COROUTINE = 0x80


class Callee:
    """What is known of one object, with all its methods, or of one function."""

    __slots__ = ("_instead", "library", "ref", "retries")

    def __init__(self, ref: weakref.ref[object] | None, inner: object) -> None:
        self.ref = ref
        self.retries = own_retries(inner)
        self.library = type(getattr(inner, "__self__", inner)).__module__.partition(".")[0]
        self._instead: dict[str, str] = {}

    def instead(self, method: object) -> str:
        """What to do instead of awaiting this method; see `instead_of`."""
        name = getattr(method, "__name__", "")
        found = self._instead.get(name)
        if found is None:
            found = self._instead[name] = instead_of(method)
        return found


_known: dict[int, Callee] = {}


def says_nothing(operation: object) -> bool:
    """An `async def` of the application's own, a lambda, a function within another: there is nothing to look up."""
    if type(operation) is not FunctionType or operation.__dict__:
        return False
    return bool(operation.__code__.co_flags & CO_COROUTINE) or operation.__closure__ is not None


def look(operation: object) -> tuple[Callee, str]:
    """What an operation calls in the end, and what to do instead where that blocks."""
    called = called_by(operation)
    inner = innermost(called)
    owner = getattr(inner, "__self__", inner)
    callee = _known.get(id(owner))
    if callee is None or callee.ref is None or callee.ref() is not owner:
        callee = _look_at(owner, inner)
    return callee, callee.instead(called) if called is inner else instead_of(called)


def _look_at(owner: object, inner: object) -> Callee:
    key = id(owner)
    try:
        ref = weakref.ref(owner, lambda _: _known.pop(key, None))
    except TypeError:  # its end would not be noticed, and another object could have its number
        return Callee(None, inner)
    callee = _known[key] = Callee(ref, inner)
    return callee
