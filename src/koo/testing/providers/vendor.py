"""One vendor's wire format, which is all that a vendor's fake adds to the shared server."""

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
    """The provider's charge for one request, even if its response was lost."""

    model: str
    input_tokens: int
    output_tokens: int
    usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of one response, in disjoint classes."""

    input: int
    output: int
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0

    @property
    def read(self) -> int:
        """All tokens that the model read."""
        return self.input + self.cache_read + self.cache_write


def count_tokens(text: str) -> int:
    """A tokenizer for fakes: one token per four bytes, rounded up."""
    return max(1, (len(text.encode()) + 3) // 4)


class Vendor(ABC):
    """One vendor's requests, responses, streams and errors."""

    error_types: ClassVar[Mapping[int, ErrorType]] = {}
    """The vendor's type of error for each status, or its type and code."""

    def failure(self, status: int) -> Failure:
        kind = self.error_types.get(status, self.error_types.get(500 if status >= 500 else 400))
        words = (kind,) if isinstance(kind, str) else kind or (None,)
        return Failure(status, words[0], "no reason given", code=words[1] if len(words) > 1 else None)

    def fees_usd(self, request: ReceivedRequest) -> Decimal:
        """Charges in addition to tokens."""
        return Decimal(0)

    def model_of(self, request: ReceivedRequest) -> str:
        """The model of a request."""
        return str(request.body["model"])

    @abstractmethod
    def refuse(self, request: ReceivedRequest) -> Reply | None:
        """The refusal of a request that the real server would never accept: key, path, JSON, fields, model."""

    def wants_stream(self, request: ReceivedRequest) -> bool:
        """Whether the request asks for a stream; for most vendors a field of the body."""
        return isinstance(request.body, dict) and request.body.get("stream") is True

    @abstractmethod
    def list_models(self) -> Reply:
        """The response with the list of models."""

    @abstractmethod
    def prompt_of(self, request: ReceivedRequest) -> str:
        """All text of a request's prompt."""

    def read_of(self, request: ReceivedRequest) -> str:
        """All text that the model reads and that is billed: the prompt, unless the vendor reads it more than once."""
        return self.prompt_of(request)

    @abstractmethod
    def max_tokens_of(self, request: ReceivedRequest) -> int:
        """The largest number of output tokens that the request allows."""

    @abstractmethod
    def headers(self, number: str) -> dict[str, str]:
        """The headers of every response: the request's id and the limits."""

    @abstractmethod
    def plain(self, request: ReceivedRequest, step: Answer, tokens: Tokens, number: int) -> dict[str, Any]:
        """The body of a whole response."""

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
        """The event that the vendor sends to keep a silent stream open."""

    @abstractmethod
    def error_body(self, failure: Failure) -> dict[str, Any]:
        """The body of an error."""

    @abstractmethod
    def error_event(self, failure: Failure) -> bytes:
        """The event for an error inside a stream."""
