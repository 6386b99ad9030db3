"""Recognises operations that would block the event loop before anything is sent.

That an operation is a plain `def` proves nothing: it may return an awaitable, like
`lambda: client.responses.create(...)`. So its library is inspected. The operation blocks if there is an asynchronous
client of the same name next to its own (`OpenAI`, `AsyncOpenAI`), or an asynchronous method next to it (`invoke`,
`ainvoke`), or if the library has nothing asynchronous at all (`requests`). If none of this decides it, the operation is
called, and is refused if its result cannot be awaited.

A wrong refusal would break a program that works, while a missed one is noticed after the first call. So every rule here
needs positive evidence, and in doubt the operation runs.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from types import FunctionType, ModuleType

from koo.ai.foreign.peek import field_of, is_installed

ONLY_BLOCKING = frozenset({
    "MySQLdb", "boto3", "botocore", "ftplib", "http", "imaplib", "poplib", "psycopg2", "pymysql", "requests",
    "requests_toolbelt", "smtplib", "sqlite3", "subprocess", "time", "urllib", "urllib3",
})  # fmt: skip
"""Packages in which every slow function blocks."""
ONLY_BLOCKING_WITHIN = ("sqlalchemy.orm.", "sqlalchemy.engine.")
SIBLINGS = ("a{}", "async_{}", "{}_async", "{}Async")
"""How libraries name the asynchronous variant of a blocking function."""
UNWRAPS_MAX = 5
CLIENTS_MAX = 3
IN_THREAD = "run it in a thread: register_service(..., in_thread=True)"
GOOGLE = "the asynchronous part of the client, its `aio`"


def innermost(operation: object) -> object:
    """The function or bound method inside `functools.partial` or `wraps`."""
    for _ in range(UNWRAPS_MAX):
        if getattr(operation, "__self__", None) is not None:
            break
        deeper = operation.func if isinstance(operation, partial) else getattr(operation, "__wrapped__", None)
        if deeper is None:
            break
        operation = deeper
    return operation


def called_by(operation: object) -> object:
    """The function whose result a call returns unchanged.

    Looks inside partials, and inside a library's wrappers of its own methods. It does not look inside an application's
    wrapper: that may make a blocking function awaitable, for example by running it in a thread.
    """
    while isinstance(operation, partial):
        operation = operation.func
    if isinstance(operation, FunctionType):
        # If wrapper and wrapped method come from the same package, this is the library's own wrapper, such as openai's
        # `with_raw_response`. The code of an application's wrapper is in another package.
        wrapped = getattr(operation, "__wrapped__", None)
        owner = getattr(wrapped, "__self__", None)
        if owner is not None and _top(_home(operation)) == _top(type(owner).__module__):
            return wrapped
    return operation


def is_async(operation: object) -> bool:
    """Whether the operation is declared with `async def`, even as a generator or inside wrappers."""
    called = called_by(operation)
    own_call = getattr(called, "__call__", None)  # noqa: B004 - an object whose class has an `async def __call__`
    return _is_declared_async(called) or inspect.iscoroutinefunction(own_call)


def instead_of(called: object) -> str:
    """What to do instead of awaiting a function or method that blocks; empty if it may be awaitable."""
    if _is_declared_async(called):
        return ""
    owner = getattr(called, "__self__", None)
    if isinstance(owner, ModuleType):  # a function written in C has its module as `__self__`
        return IN_THREAD if _only_blocks(owner.__name__) else ""
    if owner is not None:
        return _instead_of_method(owner, getattr(called, "__name__", ""))
    return _instead_of_function(called) if isinstance(called, FunctionType) else ""


def _instead_of_function(function: FunctionType) -> str:
    module = _home(function)
    if _only_blocks(module):
        return IN_THREAD
    sibling = _sibling_of(sys.modules.get(module), function.__name__)
    return f"use {_top(module)}.{sibling}, or {IN_THREAD}" if sibling and is_installed(module) else ""


def _instead_of_method(owner: object, name: str) -> str:
    kind = owner if isinstance(owner, type) else type(owner)
    module = kind.__module__
    # SDKs' asynchronous clients have plain `def` methods that return coroutines, for example wrapped in a decorator.
    if any(base.__name__.startswith("Async") for base in kind.__mro__):
        return ""
    # This is not done for the standard library: its names follow no such convention, so a match there proves nothing.
    if _top(module) not in sys.stdlib_module_names:
        sibling = _sibling_of(kind, name)
        if sibling and is_installed(module):
            return f"use its {sibling}, or {IN_THREAD}"
        found = [beside for one in clients_of(owner) if (beside := _async_client(type(one)))]
        if found:
            # Users know the class with the shortest path. The others are internal to the SDK.
            return f"use {min(found, key=lambda beside: beside.count('.'))}, or {IN_THREAD}"
    return IN_THREAD if _only_blocks(module) else ""


def clients_of(owner: object) -> list[object]:
    """An SDK's resource, the client that it sends through, and the clients inside that."""
    found = [owner]
    while len(found) <= CLIENTS_MAX and (client := field_of(found[-1], "_client")) is not None:
        found.append(client)
    return found


def _async_client(kind: type) -> str:
    """The public name of the asynchronous variant of a class, such as `openai.AsyncOpenAI`; empty if there is none."""
    for base in kind.__mro__:
        name = f"Async{base.__name__.removeprefix('Sync')}"
        for module in (_top(base.__module__), base.__module__):
            beside = getattr(sys.modules.get(module), name, None)
            # The module of a framework's own `OpenAI` class may have imported another SDK's `AsyncOpenAI`, which is not
            # a variant of it. So both classes must come from the same package.
            if isinstance(beside, type) and _top(beside.__module__) == _top(base.__module__):
                return GOOGLE if base.__module__.startswith("google.genai") else f"{module}.{name}"
    return ""


def _sibling_of(owner: object, name: str) -> str:
    """The asynchronous variant of the function with this name, if `owner` has one."""
    names = [pattern.format(name) for pattern in SIBLINGS]
    if name.endswith("_sync"):
        names.append(name.removesuffix("_sync"))
    return next((one for one in names if _is_declared_async(getattr(owner, one, None))), "")


def _is_declared_async(function: object) -> bool:
    if not callable(function):
        return False
    inner = inspect.unwrap(function)
    declared = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner)
    return declared or inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(inner)


def _only_blocks(module: str) -> bool:
    return _top(module) in ONLY_BLOCKING or module.startswith(ONLY_BLOCKING_WITHIN)


def _home(function: FunctionType) -> str:
    """The module that defines a function's code. `__module__` does not say, because `functools.wraps` copies it."""
    return str(function.__globals__.get("__name__", ""))


def _top(module: str) -> str:
    return module.partition(".")[0]
