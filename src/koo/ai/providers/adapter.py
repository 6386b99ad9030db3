"""The base class of all adapters that use the network. A vendor's file adds only its wire format."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.extras import ExtraFields
from koo.ai.providers.faults import FaultTable
from koo.ai.providers.forms import PLAIN, Form, Forms
from koo.ai.providers.streaming import Reader, read_events, read_stream
from koo.ai.providers.transport import UNREADABLE, ReadError, Wire, bound_tokens
from koo.clock import SYSTEM_CLOCK, Clock
from koo.hidden import Sent
from koo.http.client import HttpClient, HttpResponse
from koo.options import NOTHING

EVENT_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""The possible beginnings of an event stream."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """The facts about a vendor: what its errors mean, how to read their bodies, and its base URL.

    `base_url` "" means that each service declares its own. `models` is the path of the list of models, which is never
    billed, limited to one entry if possible.
    """

    faults: FaultTable
    read_error: ReadError
    base_url: str = ""
    models: str = "/models"


class Adapter:
    """One service of one vendor; it sends through a `Wire`.

    `base_url` None means the vendor's own URL; `api_key` None sends no key (for a self-hosted server). `headers` and
    `body` are the operator's additions to every request; `form` is what is known about the parameters that the server
    accepts. A subclass sets `vendor`, implements `encode` and `_completion`, and overrides `address` and `headers` if
    its vendor differs. `own_path` is the request's path, `shape` the decoder for responses, `reader` reads streams.
    """

    vendor: ClassVar[Vendor]
    own_path: ClassVar[str]
    shape: ClassVar[msgspec.json.Decoder[Any]]
    reader: ClassVar[type[Reader]]
    output_tokens_min = 1
    has_two_names: ClassVar[bool] = False
    """Whether the format has two names for `max_tokens`."""

    def __init__(
        self,
        service: str,
        http: HttpClient,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        headers: Mapping[str, str] = NOTHING,
        body: Mapping[str, Any] = NOTHING,
        form: Form = PLAIN,
    ) -> None:
        self._forms = Forms(service, form, has_two_names=self.has_two_names)
        self._wire = Wire(
            service,
            http,
            base_url=self.address((base_url or self.vendor.base_url).rstrip("/")),
            headers={**self.headers(api_key), **{name.lower(): text for name, text in headers.items()}},
            table=self.vendor.faults,
            read_error=self.vendor.read_error,
            encode=self.encode,
            forms=self._forms,
            clock=clock,
            extra=ExtraFields(body) if body else None,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._wire!r}>"

    @staticmethod
    def address(base_url: str) -> str:
        """The URL to append paths to, from the operator's setting (without a trailing slash)."""
        return base_url

    @staticmethod
    def headers(api_key: str | None) -> dict[str, str]:
        """The headers of every request: the key, and any others that the vendor requires."""
        return {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    def encode(self, request: Request, *, stream: bool) -> bytes:
        """The request's body, in the form that the model accepts."""
        raise NotImplementedError

    def path(self, request: Request, *, stream: bool) -> str:
        """The path below the base URL."""
        return self.own_path

    async def complete(self, request: Request) -> Completion:
        """Send once and return the answer. Raises `ExternalServiceError`."""
        body = Sent(self.encode(request, stream=False))
        response = await self._wire.request("POST", self.path(request, stream=False), body, request)
        try:
            answer = self.shape.decode(response.body)
        except UNREADABLE:
            answer = None
        # This is outside of the `except`: the decoder's error quotes the response, and would become the `__context__`
        # of errors raised there.
        if answer is None:
            return await self._reread(request, response)
        return self._completion(request, response, answer)

    def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """Send once and yield the pieces as they arrive. Raises `ExternalServiceError`."""
        body = Sent(self.encode(request, stream=True))
        return read_stream(self._wire, self.path(request, stream=True), body, request, self.reader)

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt, system and the operator's fields, plus an allowance for what the vendor adds."""
        extra = self._wire.extra
        return bound_tokens(request) + (extra.bytes_max if extra is not None else 0)

    def _completion(self, request: Request, response: HttpResponse, answer: Any) -> Completion:
        """The completion from a response that was decoded by `shape`. Raises `ExternalServiceError`."""
        raise NotImplementedError

    async def _reread(self, request: Request, response: HttpResponse) -> Completion:
        """Read a response that strict decoding failed on: leniently, or as a stream. Raises the same errors as
        `complete`."""
        if response.body.lstrip(b"\xef\xbb\xbf\r\n").startswith(EVENT_FIELDS):
            return await read_events(self.reader(self._wire, response.headers, request), response.body)
        return self._completion(request, response, self._wire.reread(response, self.shape))

    def obstacle(self) -> str:
        """Always "": a service over the network needs nothing on this machine, and the options check for a key."""
        return ""

    async def check(self) -> None:
        """Request the list of models. Raises `ExternalServiceError`."""
        await self._wire.check(self.vendor.models)

    async def close(self) -> None:
        """Do nothing: the connections belong to the HTTP client."""
