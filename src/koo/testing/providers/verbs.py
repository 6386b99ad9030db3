"""How a test sets up a fake provider, in verbs: `fake.fails(529, times=3)`, `fake.answers("Boots.")`.

Without `times` a verb holds until the next such verb. With `times=n` it holds for the next n requests, in the order in
which the verbs were called, before a verb without `times`. `headers` are added to the response, and
`retry_after_s` is its `Retry-After`. `hangs` and `drops` send nothing, so they take neither.

A fault without `times` is an outage: it also meets the unbilled checks by which koo asks for the
list of models, if it is one that a real server would not keep to the queries (no answer, a refused key, a 5xx).
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
        """Do `step` for the next `times` requests, or until the next verb. The verbs below are written with it.

        Raises TypeError for what is not a step, and ValueError for `times` below 1.
        """

    @abstractmethod
    def failure(self, status: int) -> Failure:
        """An error with this status as the vendor words it."""

    if not TYPE_CHECKING:  # a type checker would take every name for granted

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
        """A good answer, plain or streamed as the request asks. `about`: further fields of `Answer`, such as tokens."""
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
        """An error with this status, in the vendor's words. `about`: fields of `Failure` that replace them.

        Raises TypeError for what is not a number.
        """
        if not isinstance(status, int):
            raise TypeError(
                f"fails takes a status, as fails(529), and not {status!r}; without an answer: drops(), hangs()"
            )
        usual = self.failure(status)
        words = {"type": usual.type, "message": usual.message, "code": usual.code, **about}
        return self.do(Failure(status, headers=_headers(headers, retry_after_s), **words), times)

    def hangs(self, *, times: int | None = None) -> Self:
        """No answer, until the client leaves."""
        return self.do(Hang(), times)

    def drops(self, *, times: int | None = None) -> Self:
        """The connection is closed without an answer."""
        return self.do(Nothing(), times)

    def cuts(
        self,
        after: int = 40,
        *,
        times: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
    ) -> Self:
        """A good answer that ends after a number of its bytes, headers included, together with the connection."""
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
        """A stream of these pieces. `about`: how it goes wrong, in fields of `Stream`: `cut_after=2`, `stall_after=1`.

        Raises TypeError for one string: a stream is a list of them.
        """
        if isinstance(pieces, str):
            raise TypeError(f"a stream is a list of pieces, as in [{pieces!r}]")
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
        """A good answer after a number of seconds."""
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
        """What stands behind the gate (a good answer with `text`, where that is given) when the test opens it."""
        then = gate.then
        if text is not None or headers or retry_after_s is not None:
            then = Answer(text or "Paris.", headers=_headers(headers, retry_after_s))
        return self.do(Held(gate, then), times)


def is_outage(step: Step) -> bool:
    """Would a server in this state fail an unbilled check too?"""
    if isinstance(step, Failure):
        return step.status in (401, 403) or step.status >= 500
    return isinstance(step, Hang | Nothing)


def _headers(headers: Mapping[str, str], retry_after_s: float | None) -> dict[str, str]:
    waits = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
    return {**waits, **headers}
