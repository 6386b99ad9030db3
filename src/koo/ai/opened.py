"""The object that a stream's block receives: the operation's own object, with guarded waits.

`stream.text_stream`, `await stream.get_final_message()` and `response.iter_lines()` work as their library documents
them. Iteration with `async for` and awaited method calls go through the stream's guard. Everything else is passed to
the object unchanged.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
READS_OUT = "until_done"
"""The method of anthropic's tool runner that runs its loop to the end and returns the last answer."""


class StreamOwner(ABC):
    """Guards the waits of an opened stream."""

    @abstractmethod
    async def read(self, pieces: AsyncIterator[R]) -> R:
        """The next piece. Raises StopAsyncIteration after the last one."""

    @abstractmethod
    async def call(self, awaitable: Awaitable[R]) -> R:
        """The result of a method call."""

    @abstractmethod
    def note(self, error: Exception) -> None:
        """Record an error that a method raised without a wait."""

    @abstractmethod
    async def aclose(self) -> None:
        """Leave the stream."""


class Opened(Generic[T]):
    """Wraps the object that an operation returned, or a readable part of it, and passes on all its attributes.

    `pieces` is the iterator that `async for` reads, or None if the object cannot be iterated.
    """

    __slots__ = ("_owner", "_pieces", "_target")

    def __init__(self, owner: StreamOwner, target: object, pieces: AsyncIterator[T] | None) -> None:
        self._owner = owner
        self._target = target
        self._pieces = pieces

    def owned_by(self, owner: StreamOwner) -> Opened[T]:
        """A copy with another owner, which carries each wait to this owner's loop."""
        pieces: Any = owner if isinstance(self._pieces, StreamOwner) else self._pieces
        return Opened(owner, self._target, pieces)

    def __repr__(self) -> str:
        return f"<guarded {self._target!r}>"

    def __aiter__(self) -> Opened[T]:
        if self._pieces is None:
            raise TypeError(
                f"'async for' cannot read {type(self._target).__name__}: use its own methods for reading"
            )
        return self

    async def __anext__(self) -> T:
        pieces = self._pieces
        if pieces is None:
            raise TypeError(f"{type(self._target).__name__} cannot be iterated")
        if isinstance(pieces, StreamOwner):
            # The stream's own `__anext__` goes through the guard. If it went through `read` as well, two waits would be
            # nested in one alarm.
            return await pieces.__anext__()
        return await self._owner.read(pieces)

    async def __aenter__(self) -> Opened[T]:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the whole stream and settle what was used."""
        await self._owner.aclose()

    async def close(self) -> None:
        """Same as `aclose`, under the name that the SDKs use."""
        await self._owner.aclose()

    def __getattr__(self, name: str) -> Any:
        # `__getattr__` is called only for names that this class does not have. Private ones are refused: `copy` and
        # `pickle` look them up on an instance whose `_target` is not set yet, and that would recurse without end.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self._target, name)
        if inspect.isroutine(value):
            runs_on = name == READS_OUT and isinstance(self._pieces, StreamOwner)
            return self._read_out(value) if runs_on else self._guarded(value)
        return self._watched(value)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                value = method(*args, **kwargs)
            except Exception as error:
                self._owner.note(error)
                raise
            return self._watched(value)

        return guarded

    def _read_out(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Read the rest of the pieces before a method that would read them itself.

        Otherwise a whole agent loop would have to end within one attempt timeout, and only its last answer would be
        booked.
        """

        @wraps(method)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            async for _ in self:
                pass
            return await self._guarded(method)(*args, **kwargs)

        return guarded

    def _watched(self, value: Any) -> Any:
        """Guard an awaitable or an iterable; return everything else unchanged."""
        if hasattr(type(value), "__aiter__"):
            return Opened(self._owner, value, aiter(value))
        return self._answer(value) if inspect.isawaitable(value) else value

    async def _answer(self, awaitable: Awaitable[R]) -> Any:
        result: Any = await self._owner.call(awaitable)
        return Opened(self._owner, result, aiter(result)) if hasattr(type(result), "__anext__") else result
