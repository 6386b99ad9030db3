"""The server that all fake providers share: sockets, the script, received requests, and bills.

It is written with plain asyncio streams, because it must do what a normal server never does: reset a connection in the
middle of a body, close it without a response, or stall. A vendor's class defines the format of requests and responses.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Self

import msgspec

from koo.testing.backstage import Backstage
from koo.testing.providers.diary import Diary, complain
from koo.testing.providers.script import (
    Answer,
    Cut,
    Delay,
    Failure,
    Gate,
    Hang,
    Held,
    Nothing,
    Raw,
    Step,
    Stream,
    check_step,
)
from koo.testing.providers.vendor import Bill, ErrorType, Tokens, Vendor, count_tokens
from koo.testing.providers.verbs import Verbs, is_outage
from koo.testing.providers.wire import (
    Connection,
    ReceivedRequest,
    Reply,
    encode,
    event,
    json_reply,
    read_request,
)

__all__ = [
    "Bill",
    "ErrorType",
    "FakeProvider",
    "ReceivedRequest",
    "Reply",
    "Tokens",
    "count_tokens",
    "event",
    "json_reply",
]

HOST = "127.0.0.1"
HEAD_BYTES_MAX = 256 * 1024
MILLION = Decimal(1_000_000)
GONE = (ConnectionError, asyncio.IncompleteReadError)


class FakeProvider(Vendor, Verbs):
    """A server of one vendor, set up with verbs (`fails(529, times=3)`) or step by step (`script`).

    Args:
        key: the key that clients must send; None if they need none.
        models: the models that it accepts; None: every name that looks like one of the vendor's.
        input_price, output_price: its prices in USD per million tokens, for any model.
        latency_s: the time before each good response.
        port: the port; 0 for a free one.
        default: the step for requests after the end of the script.
        strict: at the end of a `with` block, raise `FakeMisused` for unused steps, and for requests that the fake
            refused or failed on.

    `price_of`: if set, it returns the cost of a model's tokens instead of the two prices. `wall`: its clock, for
    headers with a time of day. Starting it raises OSError if the port is taken.
    """

    def __init__(
        self,
        *,
        key: str | None = "test-key",
        models: tuple[str, ...] | None = None,
        input_price: Decimal = Decimal(2),
        output_price: Decimal = Decimal(10),
        latency_s: float = 0.0,
        port: int = 0,
        default: Step | None = None,
        strict: bool = True,
    ) -> None:
        self.key = key
        self.models = models
        self.input_price = input_price
        self.output_price = output_price
        self.latency_s = latency_s
        self.port = port
        self.default = default or Answer()
        self.strict = strict
        self.diary = Diary()
        self.price_of: Callable[[str, Tokens], Decimal | None] | None = None
        self.wall: Callable[[], float] = time.time
        self.requests: list[ReceivedRequest] = []
        self.bills: list[Bill] = []
        self.connections = 0
        self.abandoned = 0
        self._steps: deque[Step] = deque()
        self._ids = itertools.count(1)
        self._writers: set[StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._backstage: Backstage | None = None

    # ── for tests ─────────────────────────────────────────────────────────────────────────────────────────────

    def script(self, *steps: Step) -> Self:
        """Set the steps for the next requests, one step each (requests for the list of models use none).

        Raises TypeError for a value that is not a step.
        """
        for step in steps:
            check_step(step)
        self._steps.extend(steps)
        return self

    def do(self, step: Step, times: int | None = None) -> Self:
        check_step(step)
        if times is None:
            self.default = step
            self._checks_fail = is_outage(step)
            return self
        if not isinstance(times, int):
            raise TypeError(f"times is {times!r}; expected a whole number")
        if times < 1:
            raise ValueError(f"times is {times}; expected at least 1, or None for no limit")
        return self.script(*[step] * times)

    @property
    def default(self) -> Step:
        """The step for requests after the end of the script. Setting it to anything but a step raises TypeError."""
        return self._default

    @default.setter
    def default(self, step: Step) -> None:
        check_step(step)
        self._default: Step = step
        self._checks_fail = False

    @property
    def url(self) -> str:
        """The server's root URL."""
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for a client of the vendor."""
        return self.url

    @property
    def queries(self) -> list[ReceivedRequest]:
        """The received queries, without requests for the list of models."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def attempts(self) -> int:
        """How many queries were received."""
        return len(self.queries)

    @property
    def billed_usd(self) -> Decimal:
        """The sum of all bills."""
        return sum((bill.usd for bill in self.bills), Decimal(0))

    def forget(self) -> None:
        """Forget the script, the requests, the bills, and the diary."""
        self._steps.clear()
        self.diary.clear()
        self.requests.clear()
        self.bills.clear()
        self.connections = self.abandoned = 0

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Start listening, on the running loop."""
        self._server = await asyncio.start_server(self._serve, HOST, self.port, limit=HEAD_BYTES_MAX)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and abort open connections."""
        # Open connections are aborted first: since Python 3.12, `wait_closed` waits until all of them have ended.
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.stop()
        self.check(error)

    def __enter__(self) -> Self:
        backstage = Backstage("fake-provider")
        backstage.start()
        try:
            backstage.run(self.start())
        except BaseException:
            backstage.stop()
            raise
        self._backstage = backstage
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._backstage is not None
        self._backstage.run(self.stop())
        self._backstage.stop()
        self.check(error)

    def complaints(self) -> list[str]:
        """One sentence for each unused step, and for each request that was refused or failed on."""
        return self.diary.complaints(self._steps)

    def check(self, error: BaseException | None = None) -> None:
        """If `strict`, raise `FakeMisused` for complaints, or add notes to the test's own `error`."""
        if self.strict:
            complain([f"{type(self).__name__}: {one}" for one in self.complaints()], error)

    # ── one connection ────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        request: ReceivedRequest | None = None
        try:
            while (request := await read_request(reader)) is not None:
                request = self._with_prompt(request)
                self.requests.append(request)
                if not await self._handle(request, Connection(reader, writer)):
                    break
        except (*GONE, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001 - the client must not wait for a response that never comes
            self.diary.note_failure(request, error)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()
            with suppress(*GONE):
                await writer.wait_closed()

    async def _handle(self, request: ReceivedRequest, connection: Connection) -> bool:
        """Handle one request; returns whether the connection stays open."""
        refused = self.refuse(request)
        if refused is not None:
            self.diary.note_refusal(request, refused)
            await connection.send(refused)
            return True
        if request.method == "GET":
            if self._checks_fail:
                return await self._play(self.default, request, connection)
            await connection.send(self.list_models())
            return True
        step = self._steps.popleft() if self._steps else self.default
        return await self._play(step, request, connection)

    def _with_prompt(self, request: ReceivedRequest) -> ReceivedRequest:
        """The request with its prompt, or without it if the body is invalid, which `refuse` reports."""
        with suppress(Exception):
            return replace(request, prompt=self.prompt_of(request))
        return request

    async def _play(self, step: Step, request: ReceivedRequest, connection: Connection) -> bool:
        """Wait as the step requires, then respond; returns whether the connection stays open."""
        while True:
            match step:
                case Delay():
                    await asyncio.sleep(step.seconds)
                case Gate():
                    await step.wait()
                case Held():
                    await step.gate.wait()
                case _:
                    return await self._respond(step, request, connection)
            step = step.then

    async def _respond(self, step: Step, request: ReceivedRequest, connection: Connection) -> bool:
        match step:
            case Failure():
                await connection.send(
                    Reply(status=step.status, body=_body(step, self), headers=self._head(step.headers))
                )
            case Raw():
                reply = Reply(
                    status=step.status, body=step.body, content_type=step.content_type, headers=step.headers
                )
                await connection.send(reply)
            case Nothing():
                if step.billed:
                    self._bill(request, self._tokens(request, Answer()))
                return False
            case Hang():
                if step.billed:
                    self._bill(request, self._tokens(request, Answer()))
                await self._wait_until_gone(connection)
                return False
            case Cut():
                return await self._cut(step, request, connection)
            case Answer():
                await self._answer(step, request, connection)
            case Stream():
                return await self._stream(step, request, connection)
        return True

    async def _answer(self, step: Answer, request: ReceivedRequest, connection: Connection) -> None:
        await asyncio.sleep(self.latency_s)
        if self.wants_stream(request):
            words = step.text.split(" ")
            pieces = [word + " " for word in words[:-1]] + words[-1:]
            await self._stream_good(step, pieces, request, connection)
            return
        tokens = self._tokens(request, step)
        self._bill(request, tokens)
        body = msgspec.json.encode(self.plain(request, step, tokens, next(self._ids)))
        await connection.send(Reply(status=200, body=body, headers=self._head(step.headers)))

    async def _stream_good(
        self, step: Answer, pieces: list[str], request: ReceivedRequest, connection: Connection
    ) -> None:
        tokens = self._tokens(request, step)
        before, after = self.around(request, step, pieces, tokens, next(self._ids))
        await connection.begin(self._head(step.headers))
        self._bill(request, tokens)
        for one in (*before, *(self.piece(request, piece) for piece in pieces), *after):
            connection.write(one)
        await connection.end()

    async def _cut(self, step: Cut, request: ReceivedRequest, connection: Connection) -> bool:
        tokens = self._tokens(request, step.then)
        self._bill(request, tokens)
        body = msgspec.json.encode(self.plain(request, step.then, tokens, next(self._ids)))
        whole = encode(Reply(status=200, body=body, headers=self._head(step.then.headers)))
        if step.after_bytes >= len(whole):
            self.diary.note_no_effect(request, f"a cut after {step.after_bytes} of {len(whole)} bytes")
        connection.writer.write(whole[: step.after_bytes])
        await connection.writer.drain()
        connection.writer.transport.close()
        return False

    async def _stream(self, step: Stream, request: ReceivedRequest, connection: Connection) -> bool:
        """Like `_stream_good`, piece by piece, up to the point of failure."""
        text = "".join(step.pieces)
        thought = sum(map(count_tokens, step.reasoning)) + step.hidden_tokens
        good = Answer(
            text=text,
            usage=step.usage,
            input_tokens=step.input_tokens,
            output_tokens=min(count_tokens(text) + thought, self.max_tokens_of(request)) if thought else None,
            reasoning_tokens=thought,
            cache_read_tokens=step.cache_read_tokens,
            cache_write_tokens=step.cache_write_tokens,
            stop_reason=step.stop_reason,
            headers=step.headers,
        )
        if not self.wants_stream(request):
            self.diary.note_whole(request, step)
            await self._answer(good, request, connection)
            return True
        self.diary.note_stream(step)
        tokens = self._tokens(request, good)
        before, after = self.around(request, good, list(step.pieces), tokens, next(self._ids))
        await connection.begin(self._head(step.headers))
        written, is_billed = 0, False
        try:
            if step.error_after == 0:
                connection.write(self.error_event(step.error))
                await connection.end()
                return True
            for one in (*before, *(self.thought(request, piece) for piece in step.reasoning)):
                connection.write(one)
            written += thought
            for number, piece in enumerate(step.pieces):
                if not await self._goes_on(step, number, connection):
                    return step.error_after is not None
                await asyncio.sleep(step.interval_s)
                connection.write(self.piece(request, piece))
                await connection.writer.drain()
                written += count_tokens(piece)
            if not await self._goes_on(step, len(step.pieces), connection):
                return step.error_after is not None
            # The response is billed before its end is sent: a test that has read the stream to its end checks the bill
            # immediately.
            written, is_billed = tokens.output, True
            self._bill(request, Tokens(input=tokens.read, output=written))
            for one in after if step.end else ():
                connection.write(one)
            await connection.end()
        except GONE:
            self.abandoned += 1
        finally:
            # A provider bills what it has written until the failure, or until the client disconnects. Only an error
            # before the first piece is free.
            if step.error_after != 0 and not is_billed:
                self._bill(request, Tokens(input=tokens.read, output=written))
        return True

    async def _goes_on(self, step: Stream, number: int, connection: Connection) -> bool:
        if number == step.cut_after:
            await connection.writer.drain()
            connection.writer.transport.close()
            return False
        if number == step.stall_after:
            await self._stall(step, connection)
            return False
        if number == step.error_after:
            connection.write(self.error_event(step.error))
            await connection.end()
            return False
        return True

    async def _stall(self, step: Stream, connection: Connection) -> None:
        if not step.ping_only:
            await self._wait_until_gone(connection)
            return
        gone = asyncio.ensure_future(self._wait_until_gone(connection))
        try:
            while not gone.done():
                connection.write(self.ping())
                await asyncio.wait((gone,), timeout=0.01)
        finally:
            gone.cancel()

    async def _wait_until_gone(self, connection: Connection) -> None:
        await connection.writer.drain()
        # The client sends nothing more on this connection, so a read returns only when it disconnects.
        with suppress(ConnectionError):
            await connection.reader.read(1)
        self.abandoned += 1

    # ── money ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _tokens(self, request: ReceivedRequest, step: Answer) -> Tokens:
        read = step.input_tokens
        if read is None:
            read = count_tokens(self.read_of(request))
        written = step.output_tokens
        if written is None:
            written = min(count_tokens(step.text), self.max_tokens_of(request))
        return Tokens(
            input=read,
            output=written,
            cache_read=step.cache_read_tokens,
            cache_write=step.cache_write_tokens,
            reasoning=step.reasoning_tokens,
        )

    def _bill(self, request: ReceivedRequest, tokens: Tokens) -> None:
        model = self.model_of(request)
        usd = self.price_of(model, tokens) if self.price_of is not None else None
        if usd is None:
            usd = (tokens.read * self.input_price + tokens.output * self.output_price) / MILLION
        usd += self.fees_usd(request)
        self.bills.append(Bill(model=model, input_tokens=tokens.read, output_tokens=tokens.output, usd=usd))

    def _head(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {**self.headers(f"{next(self._ids):08x}"), **headers}


def _body(step: Failure, server: FakeProvider) -> bytes:
    return msgspec.json.encode(server.error_body(step) if step.body is None else step.body)
