"""`@guarded("parcels", idempotent=True)`: guards a function under a name that is given at its definition.

A function keeps its kind. An `async def` is awaited as before. An asynchronous generator becomes a stream under the
guard. A `def` stays a `def`: it runs in one of koo's threads while its caller waits, for code without an event loop.
`in_thread=True` turns a `def` into an awaitable function, for code that has a loop.

Functions are decorated during import, when settings must not be read yet. So a declaration is only recorded, and the
service is registered when koo's parts are made. That is before the first call, so states and metrics include the
service from the start. Functions with the same name share its guard, and one of them sets the options.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from types import CoroutineType, FunctionType
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from koo.ai.operation_stream import OperationStream
from koo.ai.registration import read_credential, read_options
from koo.bridge import run
from koo.errors import ConfigurationError
from koo.hidden import UNSHOWN
from koo.service_names import check_service_name

P = ParamSpec("P")
T = TypeVar("T")
WRAPPERS = frozenset({"contextlib", "functools"})
IN_LOOP = (
    "{} blocks, and an event loop is running in this thread: decorate it with in_thread=True and await it, or call it "
    "from another thread"
)


class Runner(Protocol):
    """Runs operations under the guard of a name; implemented by the platform."""

    def execute(
        self, name: str, operation: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]: ...

    def execute_stream(
        self, name: str, operation: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> OperationStream[Any]: ...


@dataclass(frozen=True, slots=True)
class Declaration:
    """What one decorator declares. `blocks`: the function needs a thread. `by`: the function's module and name."""

    options: Mapping[str, Any]
    blocks: bool
    by: str


class Declarations:
    """The declarations of one platform's decorators, keyed by the guard's name."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[Declaration]] = {}

    def add(self, name: str, new: Declaration) -> None:
        """Record a declaration. It replaces an earlier one of the same function, as when a module is reloaded.

        Raises `ConfigurationError` if two functions set different options for one name.
        """
        others = [one for one in self._by_name.get(name, ()) if one.by != new.by]
        for other in others:
            if other.options and new.options and other.options != new.options:
                raise ConfigurationError(
                    "guarded",
                    f"{name!r} has different options at {other.by} and at {new.by}: set them in only one place",
                )
        self._by_name[name] = [*others, new]

    def options(self, name: str) -> dict[str, Any]:
        """The options to register `name` with. If empty, its existing registration or the defaults apply."""
        said = self._by_name[name]
        merged = next((dict(one.options) for one in said if one.options), {})
        return merged | {"in_thread": True} if any(one.blocks for one in said) else merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)


class Guarding:
    """The decorator for one name. The decorated function is of the same kind as the original."""

    def __init__(
        self, runner: Runner, name: str, declare: Callable[[str, Declaration], None], **options: Any
    ) -> None:
        check_service_name(name)
        read_options(options)
        read_credential(options.get("credential"))
        self._runner = runner
        self._name = name
        self._declare = declare
        self._options = options

    @overload
    def __call__(self, function: Callable[P, AsyncIterator[T]], /) -> Callable[P, OperationStream[T]]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[T]], /) -> Callable[P, CoroutineType[Any, Any, T]]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Callable[P, T]: ...
    def __call__(self, function: Callable[..., Any], /) -> Callable[..., Any]:
        return self._wrap(function)

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(function, classmethod | staticmethod):
            return type(function)(self._wrap(function.__func__))
        make = self._kind_of(function)
        by = f"{function.__module__}.{function.__qualname__}"
        # The service is declared only after `_kind_of` has accepted the function: a refused function must not leave a
        # declared service behind.
        self._declare(self._name, Declaration(self._options, make == self._blocking, by))
        return make(function)

    def _kind_of(self, function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        if not inspect.isroutine(function):
            raise TypeError(
                f'@guarded("{self._name}") is for functions and methods, not {type(function).__name__}'
            )
        plain = _declared(function)
        if inspect.isasyncgenfunction(plain):
            return self._streamed
        if inspect.isgeneratorfunction(plain):
            raise TypeError(
                f"{function.__qualname__} is a generator that blocks: write it as `async def` to guard its stream"
            )
        if inspect.iscoroutinefunction(plain) or self._options.get("in_thread"):
            return self._awaited
        if self._options.get("in_thread") is False:
            raise TypeError(
                f"{function.__qualname__} blocks, and in_thread=False leaves it no thread to run in"
            )
        return self._blocking

    def _awaited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        runner, name = self._runner, self._name

        @wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return await runner.execute(name, function, *args, **kwargs)
            except BaseException:
                args = kwargs = UNSHOWN
                raise

        return guarded

    def _streamed(self, function: Callable[..., AsyncIterable[Any]]) -> Callable[..., OperationStream[Any]]:
        runner, name = self._runner, self._name

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> OperationStream[Any]:
            return runner.execute_stream(name, function, *args, **kwargs)

        return guarded

    def _blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        runner, name = self._runner, self._name

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            # `run` blocks this thread until the guarded call ends. Inside a running loop that would stop the loop, and
            # if koo lives on it, the call could never end: a deadlock instead of an error.
            if asyncio._get_running_loop() is not None:
                raise RuntimeError(IN_LOOP.format(function.__qualname__))
            try:
                return run(runner.execute(name, function, *args, **kwargs))
            except BaseException:
                args = kwargs = UNSHOWN
                raise

        return guarded


class GuardingInThread(Protocol):
    """The type of a decorator with `in_thread=True`: a `def` is awaited."""

    @overload
    def __call__(self, function: Callable[P, Awaitable[T]], /) -> Callable[P, CoroutineType[Any, Any, T]]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Callable[P, CoroutineType[Any, Any, T]]: ...


def _declared(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside a wrapper of the standard library, which returns that function's own result.

    `functools.singledispatch`, `contextlib.asynccontextmanager` and a `contextlib.ContextDecorator` wrap an
    asynchronous function in a plain one, which would otherwise run in a thread. An application's own wrapper may make
    an asynchronous function blocking, so nothing is looked for in that.
    """
    if isinstance(function, FunctionType) and function.__globals__.get("__name__") in WRAPPERS:
        plain: Callable[..., Any] = inspect.unwrap(function)
        return plain
    return function
