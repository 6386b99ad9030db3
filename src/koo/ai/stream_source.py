"""Streamed results of operations: how to recognise, open, read and close them.

Libraries start a stream in five ways, and each of them may be behind an `await`:

- an asynchronous generator or iterator, which sends nothing before it is read (LangChain's `astream`);
- an iterator whose request has already been answered when it is returned (`create(stream=True)`);
- a context manager, which sends when it is entered and yields another object (`messages.stream`,
  `with_streaming_response`);
- a context manager that yields itself, or may also be awaited (aiohttp's `session.get`);
- a response that was left open and has `aclose` (httpx's `send(stream=True)`), or that wraps such a response
  (`with_raw_response`).

`execute` must distinguish them from whole results. An object with `__anext__` is a stream, because it can only be
iterated. Cursors, connections and files have `__anext__` too, but are used in other ways, so they are whole results. A
context manager without any other public method is a stream, because all that can be done with it is to enter it. A
response or a client has other methods too, so it is a whole result.
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
MOCKS = "unittest.mock"
"""Its `MagicMock`, which an `AsyncMock` returns by default, has the methods of every protocol. In an application's test
it stands for a whole answer."""
UNWRAPS_MAX = 4
"""An awaitable may return another awaitable; the bound keeps an endless chain from hanging."""
CLOSING_S_MAX = 10.0
"""No connection needs longer to close, and one that never closes must not keep its slot."""
CLASSES_MAX = 1024
# Each call checks its result's class, and a failed attribute lookup takes a microsecond for each name.
_known: dict[type, bool] = {}


class End(Enum):
    """The end of a stream. None would not do: any other value may be a piece."""

    END = 0


END: Final = End.END


def is_unstarted(given: object) -> bool:
    """Whether the result of a call that cannot be awaited is a stream."""
    cls = type(given)
    if cls.__module__ == MOCKS:
        return False
    return hasattr(cls, "__aiter__") or hasattr(cls, "__anext__") or hasattr(cls, "__aenter__")


def is_stream(result: object) -> bool:
    """Whether an awaited result is a stream."""
    cls = type(result)
    found = _known.get(cls)
    if found is None:
        if len(_known) >= CLASSES_MAX:
            _known.clear()
        found = _known[cls] = _is_read_on(cls)
    return found


def _is_read_on(cls: type) -> bool:
    # Classes are inspected, not instances: many SDK objects answer any attribute through `__getattr__`, and an instance
    # would seem to have all of these methods.
    if cls.__module__ == MOCKS:
        return False
    if hasattr(cls, "__anext__"):
        return not any(hasattr(cls, name) for name in USED_OTHERWISE)
    return hasattr(cls, "__aenter__") and _is_only_entered(cls)


def is_left_open(result: object) -> bool:
    """Whether a response requested with `stream=True` still has a body to read."""
    return getattr(_answer_in(result), "is_closed", None) is False


def _answer_in(given: object) -> object:
    """The HTTP response inside an SDK's raw response, or the object itself."""
    return given if hasattr(given, "aclose") else getattr(given, "http_response", given)


def _is_only_entered(cls: type) -> bool:
    """Whether the class is a context manager that can only be entered."""
    if issubclass(cls, AsyncContextDecorator):
        return True  # made by `contextlib.asynccontextmanager`
    return not any(callable(getattr(cls, name, None)) for name in dir(cls) if not name.startswith("_"))


async def close(given: object) -> None:
    """Close an object by whichever method it has."""
    for name in ("aclose", "close", "cancel"):
        way = getattr(given, name, None)
        if callable(way):
            done = way()
            if inspect.isawaitable(done):
                await done
            return


async def discard(given: object) -> None:
    """Close a stream that will not be read. A context manager that was not entered has nothing open to close."""
    if hasattr(type(given), "__aiter__") or hasattr(type(given), "__anext__") or is_left_open(given):
        await close(_answer_in(given))
    for value in list(getattr(given, "__dict__", {}).values()):
        # A context manager stores the coroutine that it awaits when it is entered. If that coroutine were dropped,
        # Python would warn, at an unrelated place, that it was never awaited.
        if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
            value.close()


class Source:
    """The opened result of an operation. `target` is the object to read, `pieces` its iterator if it has one.

    `is_managed` is true if entering yielded a different object, or one that cannot be iterated. Then the code that
    opened it decides what to read from it.
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
        """The next piece, or END. Raises TypeError if the object cannot be iterated."""
        if self.pieces is None:
            raise TypeError(
                f"{describe(self.target)} cannot be read with async for alone; open it in a block, "
                "async with stream_with_error_handling(...) as opened, and use its own methods there"
            )
        return await next_of(self.pieces)

    async def close(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: Any = None
    ) -> bool:
        """Close the stream like the end of a `with` block left with `error`; returns whether that suppresses the
        error."""
        # The iterator first. It is often a generator suspended inside the response, and closing the response first
        # would make it raise at a moment when no one awaits it.
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
                # The manager raised the block's own error again. Python propagates that anyway when `__aexit__` returns
                # False. If it were raised from here, it would be judged a second time, as if closing had failed.
                return False
            raise


async def open_source(given: object) -> Source:
    """Open an operation's result. Raises errors of its opening, and TypeError if it is not a stream."""
    for _ in range(UNWRAPS_MAX):
        cls = type(given)
        if hasattr(cls, "__aenter__"):
            # Like `async with`, look up `__aexit__` before entering: what cannot be left must not be entered.
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
    """The name of an object's class. The object's own repr may contain a prompt or a key."""
    cls = type(given)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


async def next_of(pieces: AsyncIterator[R]) -> R | End:
    """The next piece, or END."""
    try:
        return await pieces.__anext__()
    except StopAsyncIteration:
        return END


async def close_quietly(name: str, closing: Coroutine[object, object, bool]) -> None:
    """Close a stream within ten seconds. A failure is logged, because its reader can do nothing about it."""
    # It has its own timer, not the registry's: this may run on the caller's loop, and the registry belongs to koo's.
    when = asyncio.get_running_loop().time() + CLOSING_S_MAX
    try:
        with Alarm(OwnTimer(), when):
            await closing
    except Exception as wrong:  # noqa: BLE001 - an SDK's own
        log.warning("%s: a stream could not be closed: %s", name, type(wrong).__name__)
