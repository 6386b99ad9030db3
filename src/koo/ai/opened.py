"""An open stream in its block: the operation's own object, whose waits are guarded.

`stream.text_stream`, `await stream.get_final_message()`, `response.iter_lines()` work as their library documents them.
Reading with `async for`, and awaiting a method's call, goes through the stream's guard; everything else is the object's
own.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class StreamOwner(ABC):
    """What guards the waits of an opened stream."""

    @abstractmethod
    async def read(self, pieces: AsyncIterator[R]) -> R:
        """The next piece. Raises StopAsyncIteration after the last one."""

    @abstractmethod
    async def call(self, awaitable: Awaitable[R]) -> R:
        """The result of a call."""

    @abstractmethod
    async def aclose(self) -> None:
        """Leave it."""


class Opened(Generic[T]):
    """The object that an operation returned, or a readable part of it: `async for`, and everything that it offers.

    `pieces`: what `async for` reads, or None if its class cannot be iterated.
    """

    __slots__ = ("_owner", "_pieces", "_target")

    def __init__(self, owner: StreamOwner, target: object, pieces: AsyncIterator[T] | None) -> None:
        self._owner = owner
        self._target = target
        self._pieces = pieces

    def owned_by(self, owner: StreamOwner) -> Opened[T]:
        """The same for another owner, which carries each wait to this one's loop."""
        pieces: Any = owner if isinstance(self._pieces, StreamOwner) else self._pieces
        return Opened(owner, self._target, pieces)

    def __repr__(self) -> str:
        return f"<guarded {self._target!r}>"

    def __aiter__(self) -> Opened[T]:
        if self._pieces is None:
            raise TypeError(
                f"'async for' cannot read {type(self._target).__name__}: use the methods that it offers for reading"
            )
        return self

    async def __anext__(self) -> T:
        pieces = self._pieces
        if pieces is None:
            raise TypeError(f"{type(self._target).__name__} cannot be iterated")
        if isinstance(pieces, StreamOwner):
            return await pieces.__anext__()  # the stream itself, which asks its guard
        return await self._owner.read(pieces)

    async def __aenter__(self) -> Opened[T]:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the whole stream: what was used is settled."""
        await self._owner.aclose()

    async def close(self) -> None:
        """As `aclose`: the SDKs' name for it."""
        await self._owner.aclose()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self._target, name)
        if inspect.isroutine(value):
            return self._guarded(value)
        return self._watched(value)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self._watched(method(*args, **kwargs))

        return guarded

    def _watched(self, value: Any) -> Any:
        """Awaitables go through the guard; everything else is returned as it is."""
        if hasattr(type(value), "__aiter__"):
            return Opened(self._owner, value, aiter(value))
        return self._answer(value) if inspect.isawaitable(value) else value

    async def _answer(self, awaitable: Awaitable[R]) -> Any:
        result: Any = await self._owner.call(awaitable)
        return Opened(self._owner, result, aiter(result)) if hasattr(type(result), "__anext__") else result
