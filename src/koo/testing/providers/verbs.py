"""The verbs with which a test sets up a fake provider: `fake.fails(529, times=3)`, `fake.answers("Boots.")`.

A verb without `times` applies until the next verb without `times`. With `times=n` it applies to the next n requests, in
the order of the calls, and before a verb without `times`. `headers` are added to the response, and `retry_after_s` is
its `Retry-After`. `hangs` and `drops` send nothing, so they take neither.

A fault without `times` is an outage. If it is one that would affect all requests to a real server (no response, a
refused key, a 5xx), it also applies to koo's unbilled checks, which request the list of models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from koo.testing.misspelt import did_you_mean
from koo.testing.providers.script import (
    NO_HEADERS,
    Answer,
    Cut,
    Delay,
    Failure,
    Gate,
    Hang,
    Held,
    Nothing,
    Step,
    Stream,
)


class Verbs(ABC):
    """The verbs; each returns the object itself, so that they can be chained."""

    @abstractmethod
    def do(self, step: Step, times: int | None = None) -> Self:
        """Do `step` for the next `times` requests, or until the next verb. The verbs below call this.

        Raises TypeError for a value that is not a step, and ValueError for `times` below 1.
        """

    @abstractmethod
    def failure(self, status: int) -> Failure:
        """An error with this status, in the vendor's format."""

    if not TYPE_CHECKING:  # with it, a type checker would accept every name

        def __getattr__(self, name):
            verbs = [one for one in dir(type(self)) if not one.startswith("_")]
            raise AttributeError(f"{type(self).__name__} has no {name!r}{did_you_mean(name, verbs)}")

    def answers(
        self,
        text: str = "Paris.",
        *,
        times: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
        **about: Any,
    ) -> Self:
        """A good response, plain or streamed as requested. `about`: further fields of `Answer`, such as tokens."""
        return self.do(Answer(text, headers=_headers(headers, retry_after_s), **about), times)

    def fails(
        self,
        status: int = 500,
        *,
        times: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
        **about: Any,
    ) -> Self:
        """An error with this status, in the vendor's format. `about`: fields of `Failure` to replace.

        Raises TypeError for a status that is not a number.
        """
        if not isinstance(status, int):
            raise TypeError(
                f"fails takes a status, as in fails(529), not {status!r}; for no response use drops() or hangs()"
            )
        usual = self.failure(status)
        words = {"type": usual.type, "message": usual.message, "code": usual.code, **about}
        return self.do(Failure(status, headers=_headers(headers, retry_after_s), **words), times)

    def hangs(self, *, times: int | None = None) -> Self:
        """Send no response until the client disconnects."""
        return self.do(Hang(), times)

    def drops(self, *, times: int | None = None) -> Self:
        """Close the connection without a response."""
        return self.do(Nothing(), times)

    def cuts(
        self,
        after: int = 40,
        *,
        times: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
    ) -> Self:
        """A good response whose connection is closed after `after` bytes, including headers."""
        return self.do(Cut(after, Answer(headers=_headers(headers, retry_after_s))), times)

    def streams(
        self,
        pieces: Sequence[str],
        *,
        times: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
        **about: Any,
    ) -> Self:
        """A stream of these pieces. `about`: fields of `Stream` that make it fail, such as `cut_after=2`.

        Raises TypeError for a single string, because a stream is a list of strings, and ValueError for a fault after
        more pieces than there are.
        """
        return self.do(Stream(pieces, headers=_headers(headers, retry_after_s), **about), times)

    def slow(
        self,
        seconds: float,
        text: str = "Paris.",
        *,
        times: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
    ) -> Self:
        """A good response after this many seconds."""
        return self.do(Delay(seconds, Answer(text, headers=_headers(headers, retry_after_s))), times)

    def waits_for(
        self,
        gate: Gate,
        text: str | None = None,
        *,
        times: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
    ) -> Self:
        """Respond when the test opens the gate: with the gate's step, or with a good response if `text` is given."""
        then = gate.then
        if text is not None or headers or retry_after_s is not None:
            then = Answer(text or "Paris.", headers=_headers(headers, retry_after_s))
        return self.do(Held(gate, then), times)


def is_outage(step: Step) -> bool:
    """Whether a server in this state would fail an unbilled check too."""
    if isinstance(step, Failure):
        return step.status in (401, 403) or step.status >= 500
    return isinstance(step, Hang | Nothing)


def _headers(headers: Mapping[str, str], retry_after_s: float | None) -> dict[str, str]:
    if isinstance(retry_after_s, str):
        raise TypeError(f"retry_after_s is a number of seconds, not {retry_after_s!r}")
    waits = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
    return {**waits, **headers}
