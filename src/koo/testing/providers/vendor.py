"""What one vendor says on the wire, which is all that a fake of it adds to the server that all fakes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from koo.testing.providers.script import Answer, Failure
from koo.testing.providers.wire import ReceivedRequest, Reply

ErrorType = str | tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What the provider charges for one request, whatever became of its answer."""

    model: str
    input_tokens: int
    output_tokens: int
    usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What one answer used, all classes disjoint."""

    input: int
    output: int
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0

    @property
    def read(self) -> int:
        """All tokens that were read."""
        return self.input + self.cache_read + self.cache_write


def count_tokens(text: str) -> int:
    """A tokenizer for fakes: one token for each four bytes begun."""
    return max(1, (len(text.encode()) + 3) // 4)


class Vendor(ABC):
    """One vendor's requests, answers, streams and errors."""

    error_types: ClassVar[Mapping[int, ErrorType]] = {}
    """How the vendor words an error with this status: its type, or type and code."""

    def failure(self, status: int) -> Failure:
        kind = self.error_types.get(status, self.error_types.get(500 if status >= 500 else 400))
        words = (kind,) if isinstance(kind, str) else kind or (None,)
        return Failure(status, words[0], "no reason given", code=words[1] if len(words) > 1 else None)

    def fees_usd(self, request: ReceivedRequest) -> Decimal:
        """What is billed besides tokens."""
        return Decimal(0)

    def model_of(self, request: ReceivedRequest) -> str:
        """The model that is asked."""
        return str(request.body["model"])

    @abstractmethod
    def refuse(self, request: ReceivedRequest) -> Reply | None:
        """What the real server would refuse whatever its mood: key, path, JSON, fields, model."""

    def wants_stream(self, request: ReceivedRequest) -> bool:
        """Whether it asks for a stream; most vendors read it in the body."""
        return isinstance(request.body, dict) and request.body.get("stream") is True

    @abstractmethod
    def list_models(self) -> Reply:
        """The answer to a question about models."""

    @abstractmethod
    def prompt_of(self, request: ReceivedRequest) -> str:
        """All text that the request asks with."""

    def read_of(self, request: ReceivedRequest) -> str:
        """All text that is read for it, and billed; what is asked with, unless the vendor reads it more than once."""
        return self.prompt_of(request)

    @abstractmethod
    def max_tokens_of(self, request: ReceivedRequest) -> int:
        """The longest answer that the request allows."""

    @abstractmethod
    def headers(self, number: str) -> dict[str, str]:
        """The headers of every answer: the request's id, limits."""

    @abstractmethod
    def plain(self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int) -> dict[str, Any]:
        """A whole answer."""

    @abstractmethod
    def around(
        self, request: ReceivedRequest, step: Answer, pieces: list[str], tokens: Tokens, number: int
    ) -> tuple[list[bytes], list[bytes]]:
        """The events before and after the pieces of a stream."""

    @abstractmethod
    def piece(self, request: ReceivedRequest, text: str) -> bytes:
        """The event that carries a piece of text."""

    @abstractmethod
    def thought(self, request: ReceivedRequest, text: str) -> bytes:
        """The event that carries a piece of reasoning."""

    @abstractmethod
    def ping(self) -> bytes:
        """What the vendor sends to keep a silent stream open."""

    @abstractmethod
    def error_body(self, failure: Failure) -> dict[str, Any]:
        """An error in the vendor's form."""

    @abstractmethod
    def error_event(self, failure: Failure) -> bytes:
        """An error inside a stream."""
