"""The steps of a fake provider's script: what it does with the next requests, one step for each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, MISSING, dataclass, field, fields
from typing import Any, get_args

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Answer:
    """A good response, plain or streamed as requested; tokens are counted from the texts unless they are given."""

    text: str = "Paris."
    _: KW_ONLY
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    stop_reason: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: bool = True
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"the text of an answer is a string, not {self.text!r}")


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in the vendor's format. `body` replaces the whole body; `extra` adds to it (OpenRouter's metadata)."""

    status: int
    type: str | None = None
    message: str = "no reason given"
    _: KW_ONLY
    code: str | int | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.status, bool) or not 200 <= self.status <= 599:
            raise ValueError(f"the status of an error is 200 to 599, not {self.status!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A response with exactly these bytes as its body."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The connection is closed without a response."""

    billed: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """A good response whose connection is closed after a number of bytes, including headers."""

    after_bytes: int
    then: Answer = Answer()

    def __post_init__(self) -> None:
        if self.after_bytes < 0:
            raise ValueError(f"a response can be cut after 0 bytes or more, not {self.after_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """No response until the client disconnects."""

    billed: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """`then` after a number of seconds."""

    seconds: float
    then: Step = Answer()

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"a delay is 0 s or more, not {self.seconds!r}")


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of these pieces, and the ways in which it can fail, each after a number of pieces.

    `cut_after`: the connection is cut. `stall_after`: silence, with pings if `ping_only`. `error_after`: `error` is
    sent as an event. `end=False`: the body ends cleanly but without the vendor's own end. `interval_s`: the pause
    between two pieces. `reasoning` is sent before the pieces, and billed. `hidden_tokens` are billed but never sent.
    """

    pieces: Sequence[str]
    _: KW_ONLY
    cut_after: int | None = None
    stall_after: int | None = None
    ping_only: bool = False
    error_after: int | None = None
    error: Failure = Failure(status=529, type="overloaded_error", message="overloaded")
    end: bool = True
    interval_s: float = 0.0
    usage: bool = True
    input_tokens: int | None = None
    stop_reason: str | None = None
    reasoning: Sequence[str] = ()
    hidden_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A fault after more pieces than there are would never occur, and the test would pass without it.
        pieces = self.pieces
        if isinstance(pieces, str | bytes) or not isinstance(pieces, Sequence):
            raise TypeError(f"a stream is a list of pieces; did you mean [{pieces!r}]?")
        if wrong := [one for one in pieces if not isinstance(one, str)]:
            raise TypeError(f"a piece of a stream is a string, not {wrong[0]!r}")
        for name, after in self.faults.items():
            if not 0 <= after <= len(pieces):
                raise ValueError(f"{name} is {after}, but the stream has {len(pieces)} piece(s)")

    @property
    def faults(self) -> dict[str, int]:
        """The faults after a number of pieces: {"cut_after": 2}."""
        named = {
            "cut_after": self.cut_after,
            "stall_after": self.stall_after,
            "error_after": self.error_after,
        }
        return {name: after for name, after in named.items() if after is not None}


class Gate:
    """`then`, but only after `open()`: a test waits with `arrived()` for a request, and then releases it.

    It works across threads and event loops, and holds all requests that arrive before it is opened.
    """

    __slots__ = ("_arrived", "_opened", "then")

    def __init__(self, then: Step | None = None) -> None:
        self.then: Step = then or Answer()
        # These are not asyncio events, because the server may run on a loop other than the test's, or the test may have
        # no loop.
        self._arrived = Future[None]()
        self._opened = Future[None]()

    async def arrived(self) -> None:
        """Wait until a request has arrived, on any event loop."""
        await _resolved(self._arrived)

    def wait_arrived(self, within_s: float = 10.0) -> None:
        """Like `arrived`, for a test without an event loop. Raises TimeoutError."""
        self._arrived.result(within_s)

    def open(self) -> None:
        """Release the held requests; may be called from any thread."""
        _resolve(self._opened)

    async def wait(self) -> None:
        """The server's side: report an arrival, and wait until the gate is opened."""
        _resolve(self._arrived)
        await _resolved(self._opened)


@dataclass(frozen=True, slots=True)
class Held:
    """`then` after `gate` is opened; several steps may wait for one gate."""

    gate: Gate
    then: Step = Answer()


def _resolve(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _resolved(future: Future[None]) -> None:
    # The future is shielded, because cancelling one waiter must not cancel it for the others.
    await asyncio.shield(asyncio.wrap_future(future))


Step = Answer | Failure | Raw | Nothing | Cut | Hang | Delay | Stream | Gate | Held


def is_step(step: object) -> bool:
    """Whether this is a step of a script."""
    return isinstance(step, get_args(Step))


def check_step(step: object) -> None:
    """Raise TypeError for a value that is not a step, even inside `delay`, `cut` or a gate."""
    if not is_step(step):
        raise TypeError(f"a step of a script is answer(...), error(...), hang() or the like, not {step!r}")
    if isinstance(step, Delay | Cut | Gate | Held):
        check_step(step.then)
    if isinstance(step, Cut) and not isinstance(step.then, Answer):
        raise TypeError(f"cut takes an answer(...), not {step.then!r}")


def brief(step: Step) -> str:
    """A step in brief, without the fields that have their default values."""
    if isinstance(step, Gate):
        return f"Gate({brief(step.then)})"
    said = []
    for one in fields(step):
        value = getattr(step, one.name)
        usual = one.default if one.default_factory is MISSING else one.default_factory()
        if value != usual:
            said.append(f"{one.name}={brief(value) if is_step(value) else repr(value)}")
    return f"{type(step).__name__}({', '.join(said)})"


# Lower-case names for scripts. They are the classes themselves, so that a type checker checks the arguments.
answer, error, nothing, cut, hang, delay, stream = Answer, Failure, Nothing, Cut, Hang, Delay, Stream


def html(status: int = 502, headers: Mapping[str, str] = NO_HEADERS) -> Raw:
    """An error page, as an intermediary sends it."""
    page = b"<html><head><title>502 Bad Gateway</title></head><body><center>cloudflare</center></body></html>"
    return Raw(status=status, body=page, content_type="text/html; charset=UTF-8", headers=headers)


def raw(body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> Raw:
    """A response with exactly these bytes."""
    return Raw(status=status, body=body, content_type=content_type, headers=headers)
