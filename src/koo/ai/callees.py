"""Inspects the object or function that an operation calls, once, and remembers the result while it lives.

An SDK's method is bound to a resource of its client. From there koo can see whether it blocks, whether the client
retries by itself, and which key it uses. Looking that up takes several microseconds and a guarded call should cost one
or two, so it is done once, when an object is first seen. Nothing here keeps an object or a key alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, NoneType
from typing import Any

from koo.ai.blocking import called_by, innermost, instead_of
from koo.ai.client_keys import find_key, header_in, is_client
from koo.ai.credentials import digest_of
from koo.ai.sdk_retries import own_retries

CO_COROUTINE = 0x80
PLAIN = frozenset({str, int, float, bool, bytes, dict, list, tuple, set, NoneType, FunctionType})
KINDS_MAX = 1024
"""The most classes remembered: an application that makes a class per call must not fill the memory."""


class Callee:
    """What is known about one function, or about one object with all its methods."""

    __slots__ = ("_credential", "_instead", "_key", "_seen", "library", "ref", "retries")

    def __init__(self, ref: weakref.ref[object] | None, inner: object) -> None:
        self.ref = ref
        self.retries = own_retries(inner)
        self.library = type(getattr(inner, "__self__", inner)).__module__.partition(".")[0]
        self._instead: dict[str, str] = {}
        self._key = find_key(getattr(inner, "__self__", inner))
        self._seen = 0  # the hash of the key from which `_credential` was computed
        self._credential = ""

    def instead(self, method: object) -> str:
        """What to do instead of awaiting this method; see `instead_of`."""
        name = getattr(method, "__name__", "")
        found = self._instead.get(name)
        if found is None:
            found = self._instead[name] = instead_of(method)
        return found

    def credential(self, inner: object) -> str:
        """The digest of the key that its client has now; empty if koo finds none."""
        if self._key is None:
            return ""
        # The key is read on every call, because applications rotate keys on a live client; under the old digest a new
        # key would stay blocked. Its hash is compared instead of the key itself, so that no copy of the key stays here.
        # Python stores a string's hash in the string, so this takes no time.
        key = self._key(getattr(inner, "__self__", inner))
        seen = hash(key)
        if seen != self._seen:
            self._seen, self._credential = seen, digest_of(key) if key else ""
        return self._credential


_known: dict[int, Callee] = {}
_clients: dict[type, bool] = {}


def says_nothing(operation: object) -> bool:
    """Whether there is nothing to look up: an application's own `async def`, or a nested function."""
    if type(operation) is not FunctionType or operation.__dict__:
        return False
    return bool(operation.__code__.co_flags & CO_COROUTINE) or operation.__closure__ is not None


def look(operation: object) -> tuple[Callee, object, str]:
    """The callee of an operation, its innermost function, and what to do instead if that blocks (else empty)."""
    if type(operation) is MethodType:
        callee = _callee_of(operation.__self__, operation)
        return callee, operation, callee.instead(operation)
    called = called_by(operation)
    inner = innermost(called)
    callee = _callee_of(getattr(inner, "__self__", inner), inner)
    return callee, inner, callee.instead(called) if called is inner else instead_of(called)


def credential_of_headers(headers: object) -> str:
    """The digest of the key in the headers of one call, which replaces its client's; empty if there is none."""
    name = header_in(headers)
    return "" if name is None or not isinstance(headers, Mapping) else digest_of(str(headers[name]))


def credential_of_call(operation: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The digest of a key found in the arguments, in a client among them, or in a nested function's closure.

    Empty if there is none.
    """
    things = args
    if kwargs:
        key = kwargs.get("api_key")
        if key and isinstance(key, str):
            return digest_of(key)
        things = (*args, *kwargs.values())
    for thing in things:
        if type(thing) not in PLAIN and (credential := _credential_of(thing)):
            return credential
    if type(operation) is FunctionType:
        return "" if operation.__closure__ is None else _credential_around(operation.__closure__)
    if isinstance(operation, partial):
        return credential_of_call(operation.func, operation.args, operation.keywords)
    return ""


def _credential_around(cells: Iterable[CellType]) -> str:
    for cell in cells:
        try:
            thing = cell.cell_contents
        except ValueError:  # not set yet
            continue
        if type(thing) not in PLAIN and (credential := _credential_of(thing)):
            return credential
    return ""


def _credential_of(thing: object) -> str:
    kind = type(thing)
    found = _clients.get(kind)
    if found is None:
        if len(_clients) >= KINDS_MAX:
            _clients.clear()
        found = _clients[kind] = is_client(kind)
    return _callee_of(thing, thing).credential(thing) if found else ""


def _callee_of(owner: object, inner: object) -> Callee:
    callee = _known.get(id(owner))
    if callee is None or callee.ref is None or callee.ref() is not owner:
        return _look_at(owner, inner)
    return callee


def _look_at(owner: object, inner: object) -> Callee:
    key = id(owner)
    try:
        ref = weakref.ref(owner, lambda _: _known.pop(key, None))
    except TypeError:
        # An object that cannot be referenced weakly is not remembered. Its end would go unnoticed, and the next object
        # with the same id would get its entry: one tenant's calls would be blocked because of another tenant's key.
        return Callee(None, inner)
    callee = _known[key] = Callee(ref, inner)
    return callee
