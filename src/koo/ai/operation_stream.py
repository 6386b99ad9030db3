"""A stream of an application's own operation. It keeps one permit, one slot and one hold until its end.

The operation is called in the same way as by `execute`. Within the attempt its result is also opened and its first
piece read. That is necessary because many streams send nothing before they are read: a lazy generator would be judged a
success without having sent its request. A failure up to the first piece is retried if that is safe. After the first
piece nothing is repeated. Each later wait is limited to the attempt timeout (see `guarded_stream.py`).

    async for piece in stream: ...          only the pieces
    async with stream as opened: ...        the operation's own object, with guarded waits

In a block, a context manager that the operation returned is only entered, because its user decides what to read from
it. Then the attempt ends when it has been entered, and the stream ends with the block. The result is a success if the
last request in the block reached its end. It is neutral if that was left in the middle, or if there was none. A failure
that the block caught is still a failure.

Each piece is checked for usage and cost. A stream that ends early is booked at its hold, unless the last piece that
arrived included the cost so far: the service may have written more than was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from koo.ai.budgets import Budgets
from koo.ai.guarded_stream import GuardedStream, Held, Silence
from koo.ai.opened import Opened, StreamOwner
from koo.ai.operation_charge import OperationCharge
from koo.ai.operation_money import OperationMoney
from koo.ai.operations import check_operation, guard_of, note_failure
from koo.ai.service import Service
from koo.ai.stream_source import END, End, Source, close_quietly, next_of, open_source
from koo.ai.usage_names import module_of
from koo.crossing import Loop, bring_back
from koo.deadlines import Deadlines
from koo.errors import ExternalServiceError, Kind, ServiceFailed
from koo.guard import Scope
from koo.policies.verdict import CANCELLED, NEUTRAL, SUCCESS, Fault

T = TypeVar("T")
R = TypeVar("R")
SNAPSHOTS = ("current_message_snapshot", "current_completion_snapshot")
"""Attributes in which the SDKs' stream objects collect the answer and its usage. A reader of `text_stream` receives
text only, so this is where its usage is found."""
DONE = Fault(verdict=SUCCESS)
# The event loop keeps only weak references to tasks: without this set a closing task could be collected before its end.
_closing: set[asyncio.Task[None]] = set()


class Terms(NamedTuple):
    """The service of an operation, its charges and the budgets."""

    service: Service
    money: OperationMoney | None
    budgets: Budgets


class OperationStream(GuardedStream[Source], StreamOwner, Generic[T]):
    """`async for piece in stream:` or `async with stream as opened:`. Nothing is sent before.

    `await stream` opens it up to the first piece. That way a web handler receives a refusal before it sends its own
    response headers.

    Leaving early (`break`, `aclose()`, the end of the block, cancellation) closes what the operation returned and
    settles what was used. `aclose()` may be called from another task. Up to the first piece the stream raises the same
    errors as `execute`. After that SDK and transport errors become `StreamTruncated`, and other errors pass unchanged.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], Awaitable[Terms]],
        operation: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        deadlines: Deadlines,
        own: Loop | None = None,
    ) -> None:
        """`own` is the loop of the operation's caller, if the guard runs on a different one."""
        super().__init__(name, deadlines)
        check_operation(operation)
        self._own = own
        self._find = find
        self._operation = operation
        self._args = args
        self._kwargs = kwargs
        self._source: Source | None = None
        self._ahead: list[T | End] = []  # the first piece, read by the attempt, until the reader takes it
        self._in_block = False
        self._has_read = False  # something has arrived, so it is billed even if the next request is refused
        self._came_to: Fault | None = (
            None  # the result of the block's last request; None while it is unfinished
        )
        self._silent_s = 0.0
        self._charge: OperationCharge | None = None
        self._slow = False

    def __aiter__(self) -> OperationStream[T]:
        return self

    async def __anext__(self) -> T:
        self._take_turn()
        # `await stream` may have opened it as if for a block, and then no block followed. In a block a failure is only
        # recorded, because the end of the block closes the stream; without a block nothing else would close the
        # connection.
        self._in_block = False
        try:
            held = self._held or await self._begin()
            source = self._source
            assert source is not None
            piece: T | End = (
                self._ahead.pop() if self._ahead else await self._wait(held, self._there(source.next()))
            )
            if piece is END:
                await self._finish(held)
                raise StopAsyncIteration
        except BaseException as error:
            self._note_failure(error)
            raise
        finally:
            self._end_turn()
        if self._charge is not None:
            self._charge.take(piece)
        return piece

    async def athrow(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> T:
        """Raise the reader's error in the operation, at the `yield` where it waits, and return its next piece.

        `asynccontextmanager` and FastAPI do that to report how a block or a request ended. If the operation raises the
        same error again, the stream was left early. If it is not a generator, it is closed and the error is raised.
        """
        # Up to Python 3.11, `contextlib` passes class, error and traceback.
        error = value if value is not None else kind() if isinstance(kind, type) else kind
        held, source = self._held, self._source
        try:
            if self._closed or held is None or source is None or not hasattr(source.pieces, "athrow"):
                await self.aclose()
                raise error
            self._take_turn()
            try:
                piece: T | End | _Raised = await self._wait(held, self._there(_thrown(source.pieces, error)))
                if piece is END:
                    await self._finish(held)
                    raise StopAsyncIteration
            except BaseException as raised:
                self._note_failure(raised)
                raise
            finally:
                self._end_turn()
            if piece is _Raised.AGAIN:
                await self.aclose()
                raise error
            if self._charge is not None:
                self._charge.take(piece)
            return piece
        finally:
            # The error's traceback refers to this frame, and these variables to the error. The cycle would keep both,
            # and the stream with them, until the garbage collector runs.
            del error, kind, value

    # ── in a block ────────────────────────────────────────────────────────────────────────────────────────────

    def __await__(self) -> Generator[Any, None, OperationStream[T]]:
        yield from self._opened().__await__()
        return self

    async def __aenter__(self) -> Opened[T]:
        await self._opened()
        source = self._source
        assert source is not None
        return Opened(self, source.target, source.pieces if source.is_managed else self)

    async def _opened(self) -> None:
        """Open the stream up to its first piece, or only enter a context manager that yields another object."""
        if self._closed and self._failed is None:
            raise RuntimeError("this stream is over: start a new one")
        self._take_turn()
        self._in_block = True
        try:
            if self._held is None:
                await self._begin()
        except StopAsyncIteration:
            self._closed = True
            raise self._closed_by_another() from None
        except BaseException as error:
            self._note_failure(error)
            raise
        finally:
            self._end_turn()
        self._in_block = self._source is not None and self._source.is_managed

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> bool | None:
        held, source = self._held, self._source
        if not self._in_block or self._closed or held is None or source is None:
            await self.aclose()
            return None
        # The source is taken out first: if another task calls `aclose` during the wait below, `_end` must not close the
        # manager a second time.
        self._source = None
        try:
            # Closing goes through the guard like any other wait: it may need the network, and a provider that hangs
            # there must not hang the reader.
            suppresses = await self._wait(held, self._there(source.close(kind, error, trace)))
        except StopAsyncIteration:
            return None  # another task closed it at the same time
        except BaseException as raised:
            self._note_failure(raised)
            raise
        finally:
            # This is in `finally`, because the permit must be given back even if closing is cancelled. CANCELLED stands
            # for "the block was left"; `_settle` replaces it with the result of the block's last request, if there is
            # one.
            self._end_turn()
            self._settle(CANCELLED, self._silent_s)
        return suppresses

    async def read(self, pieces: AsyncIterator[R]) -> R:
        """The next piece of a readable part of the open stream; in a block this takes the place of `__anext__`."""
        piece = await self._ask(self._there(next_of(pieces)))
        if piece is END:
            self._note_end(DONE)
            raise StopAsyncIteration
        self._note_end(None)
        if self._charge is not None:
            self._charge.take(piece)
        return piece

    async def call(self, awaitable: Awaitable[R]) -> R:
        """The result of a method call on the open stream's own object."""
        try:
            result = await self._ask(self._there(_awaited(awaitable)))
        except StopAsyncIteration:
            raise self._closed_by_another() from None
        if not hasattr(type(result), "__anext__"):
            self._note_end(DONE)
            if self._charge is not None:
                self._charge.take(result)
        return result

    def note(self, error: Exception) -> None:
        """Record an error that a method of the open object raised without a wait, such as `raise_for_status`."""
        held = self._held
        if held is None:
            return
        fault = held.guard.judge(error)
        # Only if the service refused or failed. Any other error is a mistake in the use of the object.
        if isinstance(fault.error or error, ExternalServiceError):
            held.calls.failed(
                held.guard.name, "stream", fault.error or error, fault.kind, held.scope.attempts
            )
            self._note_end(fault)

    async def _ask(self, reading: Coroutine[object, object, R]) -> R:
        held = self._held
        self._has_read = True
        if held is None or (self._closed and self._failed is None):
            # The stream has ended. Methods such as `get_final_message()` still work, because they return what the
            # library's object has collected. They send nothing, so there is nothing to guard, and the permit has ended.
            return await reading
        try:
            self._take_turn()
        except BaseException:
            reading.close()  # otherwise Python would warn that it was never awaited
            raise
        try:
            return await self._wait(held, reading)
        finally:
            self._end_turn()

    def _note_end(self, came_to: Fault | None) -> None:
        """Record the result of the block's last request, unless an earlier one has failed.

        After a connection has broken, a call that only returns what had arrived often succeeds. It must not turn the
        failure into a success.
        """
        if self._came_to is None or self._came_to.verdict in (SUCCESS, NEUTRAL):
            self._came_to = came_to

    def _closed_by_another(self) -> ServiceFailed:
        return ServiceFailed(self.service, "the stream was closed by another task", kind=Kind.CANCELLED)

    # ── from opening to settling ──────────────────────────────────────────────────────────────────────────────

    async def _open(self) -> Held[Source]:
        service, money, budgets = await self._find()
        guard = guard_of(service, self._operation, self._args, self._kwargs)
        if money is not None:
            self._charge = money.charge(service, budgets, self._operation, self._args, self._kwargs)
        scope: Scope[Source] = Scope(guard)
        try:
            await guard.begin(self._attempt, charge=self._charge, scope=scope)
        except Exception as error:
            note_failure(service, guard, error)
            raise
        silence = Silence(self._deadlines, service.clock, scope)
        silence.longest_s = guard.options.attempt_timeout_s
        self._source = scope.value
        # What counts as slow is the time until the first piece: a long stream is not a slow call.
        self._slow = guard.now() - scope.permit.given_at >= guard.options.slow_s
        return Held(guard, scope, silence, service.calls)

    async def _attempt(self) -> Source:
        return await self._there(self._begun())

    async def _begun(self) -> Source:
        """Call the operation and open its result. Also reads the first piece, except for a context manager in a block,
        whose pieces the block reads."""
        given = self._operation(*self._args, **self._kwargs)
        # From here on a request may have been sent, so whatever happens next may have to be paid for.
        if self._charge is not None:
            self._charge.begun = True
        source = await open_source(given)
        try:
            if not (self._in_block and source.is_managed):
                self._ahead = [await source.next()]
                self._has_read = True
        except BaseException as error:
            # The guard may call the operation again after this, and no other code has a reference to this source. If it
            # were not closed, its connection would stay open, and the provider would go on writing to it.
            await close_quietly(self.service, source.close(type(error), error))
            raise
        return source

    def _there(self, work: Coroutine[object, object, R]) -> Coroutine[object, object, R]:
        """Run work of the operation itself on its caller's loop, to which its client belongs."""
        return work if self._own is None else bring_back(self._own, work)

    async def _finish(self, held: Held[Source]) -> None:
        """Close and settle a stream that has reached its own end."""
        source, self._source = self._source, None
        if source is not None:
            await self._wait(held, self._there(source.close()))
        self._settle_success(held)

    async def _end(self, fault: Fault, silent_s: float = 0.0) -> None:
        if self._in_block and self._left is None and not self._closed:
            # In a block an error does not end the stream: its user may catch it and make further requests on the same
            # object. The end of the block closes and settles; here the fault is only recorded.
            if self._held is not None:
                # The same alarm serves the next wait. If its expiry stayed set, an error of the next request that comes
                # without suspending would be judged by it, as a stalled stream.
                self._held.silence.expired = False
            self._note_end(fault)
            self._silent_s = silent_s
            return
        await super()._end(fault, silent_s)

    async def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            await close_quietly(self.service, self._there(source.close()))

    def _settle_success(self, held: Held[Source]) -> None:
        self._closed = True
        if self._charge is not None:
            for name in SNAPSHOTS:
                self._take_snapshot(self._charge, held, name)
            target = held.scope.value.target
            if module_of(target) == "pydantic_ai":  # its streams and runs have a usage of their own
                self._charge.take(target)
            self._charge.end()
        held.scope.settle(slow=self._slow, took_s=self._provider_s)

    @staticmethod
    def _take_snapshot(charge: OperationCharge, held: Held[Source], name: str) -> None:
        try:
            snapshot = getattr(held.scope.value.target, name, None)
        except Exception:  # noqa: BLE001 - SDKs assert in this property that something has arrived
            return
        if snapshot is not None:
            charge.take(snapshot)

    def _settle(self, fault: Fault, silent_s: float = 0.0) -> None:
        self._closed = True
        held = self._held
        if held is None:
            return
        if fault is CANCELLED and self._came_to is not None:
            fault = self._came_to  # the stream was left, so the block's last request decides
        if fault.verdict is SUCCESS:
            self._settle_success(held)
            return
        # An error usually means that nothing was billed, but a stream that has delivered something was.
        held.scope.settle(replace(fault, billed=fault.billed or self._has_read), took_s=silent_s)

    def __del__(self) -> None:
        # `break` in an `async for` does not close the iterator. Without this the operation's connection would stay open
        # and the provider would go on writing, because an SDK's stream closes nothing when it is dropped.
        if self._closed or self._held is None:
            return
        loop = self._deadlines.loop
        if loop is not None and loop.is_running():
            # Nothing is settled here: the garbage collector may run this in any thread and in the middle of any other
            # settlement, and closing has to be awaited. The callback's reference keeps the stream alive until then.
            with suppress(RuntimeError):  # the loop was closed a moment ago
                loop.call_soon_threadsafe(_close_later, self)
        else:
            self._settle(CANCELLED)


def _close_later(stream: OperationStream[Any]) -> None:
    task = asyncio.get_running_loop().create_task(stream.aclose(), name="koo closing a stream")
    _closing.add(task)
    task.add_done_callback(_closing.discard)


class _Raised(Enum):
    """The generator raised the error that was thrown into it."""

    AGAIN = 0


async def _thrown(pieces: Any, error: BaseException) -> Any:
    """The next piece of a generator in which `error` is raised, END, or `_Raised.AGAIN` if it comes back.

    Raised from here, the reader's own error would be judged as the service's.
    """
    try:
        return await pieces.athrow(error)
    except StopAsyncIteration:
        return END
    except BaseException as raised:
        # Python lets no StopIteration out of a generator: it raises a RuntimeError from it.
        is_hidden = isinstance(error, StopIteration | StopAsyncIteration) and isinstance(raised, RuntimeError)
        if raised is error or (is_hidden and raised.__cause__ is error):
            return _Raised.AGAIN
        raise
    finally:
        del error  # its traceback refers to this frame


async def _awaited(awaitable: Awaitable[R]) -> R:
    return await awaitable
