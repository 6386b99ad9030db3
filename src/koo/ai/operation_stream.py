"""A stream of an application's own operation under koo's guard: one permit, one place and one hold until its end.

The operation is called as by `execute`, and its result is opened and asked for its first piece within the attempt. So a
lazy generator is judged by what it sends, and a failure until then is repeated if that is safe. From the first piece on
nothing is repeated. Each later wait is bounded by the time of an attempt, as in `guarded_stream.py`.

    async for piece in stream: ...          the pieces alone
    async with stream as opened: ...        the operation's own object, whose waits are guarded

In a block, a context manager that the operation returned is only entered: its user decides what to read from it. Then
the attempt ends with entering, and the stream with the block. It was a success if the last request on it came to its
end; left in the middle, or never used, it is neutral; and a failure that the block caught is still a failure.

What pieces say about money is recorded as they come. A stream that ends early is booked at its hold, unless the last
piece that arrived included the cost so far: the other side may have written more than was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from koo.ai.budgets import Budgets
from koo.ai.guarded_stream import GuardedStream, Held, Silence
from koo.ai.opened import Opened, StreamOwner
from koo.ai.operation_charge import OperationCharge
from koo.ai.operation_money import OperationMoney
from koo.ai.operations import check_operation, guard_of, note_failure
from koo.ai.service import Service
from koo.ai.stream_source import END, End, Source, close_quietly, next_of, open_source
from koo.crossing import Loop, bring_back
from koo.deadlines import Deadlines
from koo.errors import Kind, ServiceFailed
from koo.guard import Scope
from koo.policies.verdict import CANCELLED, NEUTRAL, SUCCESS, Fault

T = TypeVar("T")
R = TypeVar("R")
SNAPSHOTS = ("current_message_snapshot", "current_completion_snapshot")
"""Where the SDKs' own stream objects keep what arrived, with its usage: their text alone says nothing about money."""
DONE = Fault(verdict=SUCCESS)
_closing: set[asyncio.Task[None]] = set()  # the loop itself holds a task only weakly


class Terms(NamedTuple):
    """What an operation runs under."""

    service: Service
    money: OperationMoney | None
    budgets: Budgets


class OperationStream(GuardedStream[Source], StreamOwner, Generic[T]):
    """`async for piece in stream:` or `async with stream as opened:`; nothing is sent before.

    `await stream` opens it first, up to the first piece: so a refusal is raised before its caller has begun to answer.
    Leaving early (`break`, `aclose()`, the end of the block, cancellation) closes what the operation returned and
    settles what was used; `aclose()` may come from another task. Raises as `execute` until the first piece; later SDK
    and transport errors become `StreamTruncated`, and everything else passes unchanged.
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
        """`own`: the loop of the operation's caller, if the stream is read from another one."""
        super().__init__(name, deadlines)
        check_operation(operation)
        self._own = own
        self._find = find
        self._operation = operation
        self._args = args
        self._kwargs = kwargs
        self._source: Source | None = None
        self._ahead: list[T | End] = []  # the first piece, until it is asked for
        self._in_block = False
        self._came_to: Fault | None = None  # the result of the block's last request; None: it is unfinished
        self._silent_s = 0.0
        self._charge: OperationCharge | None = None
        self._slow = False

    def __aiter__(self) -> OperationStream[T]:
        return self

    async def __anext__(self) -> T:
        self._take_turn()
        self._in_block = False  # a stream read without the block's object ends here, not with the block
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

    # ── as a block ────────────────────────────────────────────────────────────────────────────────────────────

    def __await__(self) -> Generator[Any, None, OperationStream[T]]:
        yield from self._opened().__await__()
        return self

    async def __aenter__(self) -> Opened[T]:
        await self._opened()
        source = self._source
        assert source is not None
        return Opened(self, source.target, source.pieces if source.is_managed else self)

    async def _opened(self) -> None:
        """Open it, up to the first piece; a manager that yields another object is entered."""
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
        self._source = None
        try:
            suppresses = await self._wait(held, self._there(source.close(kind, error, trace)))
        except StopAsyncIteration:
            return None  # closed by another task too
        except BaseException as raised:
            self._note_failure(raised)
            raise
        finally:
            self._end_turn()
            self._settle(CANCELLED, self._silent_s)
        return suppresses

    async def read(self, pieces: AsyncIterator[R]) -> R:
        """The next piece of a part of the open stream; the block's counterpart of `__anext__`."""
        piece = await self._ask(self._there(next_of(pieces)))
        if piece is END:
            self._note_end(DONE)
            raise StopAsyncIteration
        self._note_end(None)
        if self._charge is not None:
            self._charge.take(piece)
        return piece

    async def call(self, awaitable: Awaitable[R]) -> R:
        """The result of a call on the open stream's own object."""
        try:
            result = await self._ask(self._there(_awaited(awaitable)))
        except StopAsyncIteration:
            raise self._closed_by_another() from None
        if not hasattr(type(result), "__anext__"):
            self._note_end(DONE)
            if self._charge is not None:
                self._charge.take(result)
        return result

    async def _ask(self, reading: Coroutine[object, object, R]) -> R:
        held = self._held
        if held is None or (self._closed and self._failed is None):
            return await reading  # it is over, and what its object still returns costs nothing
        try:
            self._take_turn()
        except BaseException:
            reading.close()
            raise
        try:
            return await self._wait(held, reading)
        finally:
            self._end_turn()

    def _note_end(self, came_to: Fault | None) -> None:
        """The last request: a failure stays one, whatever is requested after it."""
        if self._came_to is None or self._came_to.verdict in (SUCCESS, NEUTRAL):
            self._came_to = came_to

    def _closed_by_another(self) -> ServiceFailed:
        return ServiceFailed(self.service, "the stream was closed by another task", kind=Kind.CANCELLED)

    # ── its life ──────────────────────────────────────────────────────────────────────────────────────────────

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
        self._slow = guard.now() - scope.permit.given_at >= guard.options.slow_s
        return Held(guard, scope, silence, service.calls)

    async def _attempt(self) -> Source:
        return await self._there(self._begun())

    async def _begun(self) -> Source:
        """Call the operation, and open its result; up to the first piece if pieces are what is read."""
        given = self._operation(*self._args, **self._kwargs)
        if self._charge is not None:
            self._charge.begun = True
        source = await open_source(given)
        try:
            if not (self._in_block and source.is_managed):
                self._ahead = [await source.next()]
        except BaseException as error:
            await close_quietly(self.service, source.close(type(error), error))
            raise
        return source

    def _there(self, work: Coroutine[object, object, R]) -> Coroutine[object, object, R]:
        """Work of the operation itself runs on its caller's loop: its client belongs there."""
        return work if self._own is None else bring_back(self._own, work)

    async def _finish(self, held: Held[Source]) -> None:
        """The stream's own end."""
        source, self._source = self._source, None
        if source is not None:
            await self._wait(held, self._there(source.close()))
        self._settle_success(held)

    async def _end(self, fault: Fault, silent_s: float = 0.0) -> None:
        if self._in_block and self._left is None and not self._closed:
            # The block's end closes and settles: until then its user may make further requests.
            if self._held is not None:
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
            self._charge.end()
        held.scope.settle(slow=self._slow, took_s=self._provider_s)

    @staticmethod
    def _take_snapshot(charge: OperationCharge, held: Held[Source], name: str) -> None:
        try:
            snapshot = getattr(held.scope.value.target, name, None)
        except Exception:  # noqa: BLE001 - an SDK's own check that something came
            return
        if snapshot is not None:
            charge.take(snapshot)

    def _settle(self, fault: Fault, silent_s: float = 0.0) -> None:
        self._closed = True
        held = self._held
        if held is None:
            return
        if fault is CANCELLED and self._came_to is not None:
            fault = self._came_to  # it is left, and its block's last request decides
        if fault.verdict is SUCCESS:
            self._settle_success(held)
            return
        held.scope.settle(replace(fault, billed=True), took_s=silent_s)

    def __del__(self) -> None:
        # `break` in an `async for` closes nothing: without this the permit and the hold would stay until their end.
        if self._closed or self._held is None:
            return
        loop = self._deadlines.loop
        if loop is not None and loop.is_running():
            # Not at once: the garbage collector runs in the middle of anything, and closing has to be awaited.
            with suppress(RuntimeError):  # the loop was closed a moment ago
                loop.call_soon_threadsafe(_close_later, self)
        else:
            self._settle(CANCELLED)


def _close_later(stream: OperationStream[Any]) -> None:
    task = asyncio.get_running_loop().create_task(stream.aclose(), name="koo closing a stream")
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _awaited(awaitable: Awaitable[R]) -> R:
    return await awaitable
