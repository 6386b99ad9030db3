"""Results of operations that are read over time: how they are distinguished from answers, opened, read and closed.

Libraries start a stream in five ways, and any of them may be behind an `await`:

- an asynchronous generator or iterator, which sends nothing before it is read (LangChain's `astream`);
- an iterator whose request has been answered when it is returned (`create(stream=True)`);
- a context manager, which sends when it is entered and yields another object (`messages.stream`,
  `with_streaming_response`);
- one that is entered and yields itself, or may be awaited as well (aiohttp's `session.get`);
- an answer that was left open, and has `aclose` (httpx's `send(stream=True)`), or keeps one that has
  (`with_raw_response`).

`execute` must tell them from answers. An object with `__anext__` can only be read on, so it is a stream; but a cursor,
a connection and a file have it too, and are used in other ways: they pass. A context manager that offers nothing else
has to be entered, so it is a stream; a response or a client is a context manager only in addition, and passes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncContextDecorator
from enum import Enum
from typing import Any, Final, TypeVar

from koo.deadlines import Alarm, OwnTimer

R = TypeVar("R")
log = logging.getLogger("koo")

USED_OTHERWISE = ("fetchone", "send", "send_bytes", "write", "read")
"""Methods of iterable objects that are not streams: cursors, websockets, files and pipes."""
UNWRAPS_MAX = 4
"""An awaitable of an awaitable happens; an endless chain must not hang."""
CLOSING_S_MAX = 10.0
"""Closing a connection has no reason to take longer, and must not keep a place forever."""
CLASSES_MAX = 1024
_known: dict[type, bool] = {}  # each call asks, and looking for a name that a class lacks takes a microsecond


class End(Enum):
    """The end of a stream: any other value may be a piece."""

    END = 0


END: Final = End.END


def is_unstarted(given: object) -> bool:
    """Whether what a call returned, and cannot be awaited, is a stream."""
    cls = type(given)
    return hasattr(cls, "__aiter__") or hasattr(cls, "__anext__") or hasattr(cls, "__aenter__")


def is_stream(result: object) -> bool:
    """Whether an awaited result is a stream, not an answer."""
    cls = type(result)
    found = _known.get(cls)
    if found is None:
        if len(_known) >= CLASSES_MAX:
            _known.clear()
        found = _known[cls] = _is_read_on(cls)
    return found


def _is_read_on(cls: type) -> bool:
    if hasattr(cls, "__anext__"):
        return not any(hasattr(cls, name) for name in USED_OTHERWISE)
    return hasattr(cls, "__aenter__") and _is_only_entered(cls)


def is_left_open(result: object) -> bool:
    """Whether an answer requested with `stream=True` has a body that is still to be read."""
    return getattr(_answer_in(result), "is_closed", None) is False


def _answer_in(given: object) -> object:
    """The HTTP answer inside an SDK's raw response, or the object itself."""
    return given if hasattr(given, "aclose") else getattr(given, "http_response", given)


def _is_only_entered(cls: type) -> bool:
    """A context manager that can only be entered."""
    if issubclass(cls, AsyncContextDecorator):
        return True  # of `contextlib.asynccontextmanager`
    return not any(callable(getattr(cls, name, None)) for name in dir(cls) if not name.startswith("_"))


async def close(given: object) -> None:
    """Close what is open, by whichever method it has."""
    for name in ("aclose", "close", "cancel"):
        way = getattr(given, name, None)
        if callable(way):
            done = way()
            if inspect.isawaitable(done):
                await done
            return


async def discard(given: object) -> None:
    """Close a stream that will not be read; a manager that was never entered is not closed, but leaves no warning."""
    if hasattr(type(given), "__aiter__") or hasattr(type(given), "__anext__") or is_left_open(given):
        await close(_answer_in(given))
    for value in list(getattr(given, "__dict__", {}).values()):
        # A manager keeps the coroutine that it would await when entered. Python warns of one that is never awaited.
        if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
            value.close()


class Source:
    """An operation's opened result: `target` is what is read; `pieces` is its iterator, if it has one.

    `is_managed`: entering yielded another object than the one that was entered, or one without pieces, so its user
    decides what is read of it.
    """

    __slots__ = ("_manager", "is_managed", "pieces", "target")

    def __init__(self, target: Any, manager: Any = None) -> None:
        cls = type(target)
        self.target = target
        self._manager = manager
        self.pieces: AsyncIterator[Any] | None = aiter(target) if hasattr(cls, "__aiter__") else None
        if self.pieces is None and hasattr(cls, "__anext__"):
            self.pieces = target
        self.is_managed = self.pieces is None or (manager is not None and manager is not target)

    async def next(self) -> Any | End:
        """The next piece, or END. Raises TypeError if its object offers something else to be read."""
        if self.pieces is None:
            raise TypeError(
                f"{describe(self.target)} cannot be read with async for alone; open it in a block, "
                "async with stream_with_error_handling(...) as opened, and read what it offers there"
            )
        return await next_of(self.pieces)

    async def close(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: Any = None
    ) -> bool:
        """Close it, as at the end of a `with` block that `error` left; returns whether that swallows the error."""
        try:
            if self.pieces is not None and self.pieces is not self.target:
                await close(self.pieces)
        finally:
            swallows = await self._close_target(kind, error, trace)
        return swallows

    async def _close_target(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> bool:
        if self._manager is None:
            await close(_answer_in(self.target))
            return False
        try:
            return bool(await self._manager.__aexit__(kind, error, trace))
        except BaseException as raised:
            if raised is error:
                return False  # it is the block's own, which propagates by itself
            raise


async def open_source(given: object) -> Source:
    """Open an operation's result. Raises what opening raises, and TypeError if it is not a stream."""
    for _ in range(UNWRAPS_MAX):
        cls = type(given)
        if hasattr(cls, "__aenter__"):
            # As `async with` does: the way out is looked up before the way in is taken.
            if not hasattr(cls, "__aexit__"):
                break
            return Source(await given.__aenter__(), given)  # type: ignore[attr-defined]
        if hasattr(cls, "__aiter__") or hasattr(cls, "__anext__"):
            return Source(given)
        if not inspect.isawaitable(given):
            break
        given = await given
    if hasattr(_answer_in(given), "aclose"):
        return Source(given)
    if hasattr(type(given), "__next__") or hasattr(type(given), "__enter__"):
        await close(given)
        raise TypeError(
            f"the operation returned {describe(given)}, which is read without await and would block the event loop: "
            "use the asynchronous client"
        )
    raise TypeError(
        f"the operation returned {describe(given)}, which is not a stream: for a whole answer call execute"
    )


def describe(given: object) -> str:
    """Its class, without its content."""
    cls = type(given)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


async def next_of(pieces: AsyncIterator[R]) -> R | End:
    """The next piece, or END."""
    try:
        return await pieces.__anext__()
    except StopAsyncIteration:
        return END


async def close_quietly(name: str, closing: Coroutine[object, object, bool]) -> None:
    """Close it within a bound; its reader need not know what fails there."""
    when = asyncio.get_running_loop().time() + CLOSING_S_MAX
    try:
        with Alarm(OwnTimer(), when):
            await closing
    except Exception as wrong:  # noqa: BLE001 - an SDK's own
        log.warning("%s: a stream could not be closed: %s", name, type(wrong).__name__)
