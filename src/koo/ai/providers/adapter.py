"""What all adapters that use the network share; a vendor's file holds its wire format and nothing of this."""

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
"""What a stream of events begins with."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor's own facts: what its errors mean, how their bodies are read, and its address.

    `base_url` "" means that it has none: each service declares its own. `models` is the path of its list of models,
    which is never billed, limited to one entry if possible.
    """

    faults: FaultTable
    read_error: ReadError
    base_url: str = ""
    models: str = "/models"


class Adapter:
    """One service of one vendor, behind a `Wire`.

    `base_url` None is the vendor's own address; `api_key` None sends no key (a self-hosted server). `headers` and
    `body` are an operator's additions to every request, `form` what is known of the parameters that its server accepts.
    A subclass names its `vendor`, has an `encode` and a `_completion`, and overrides `address` and `headers` if its
    vendor differs. `own_path` is the request's path, `shape` what answers are decoded to, `reader` reads its streams.
    """

    vendor: ClassVar[Vendor]
    own_path: ClassVar[str]
    shape: ClassVar[msgspec.json.Decoder[Any]]
    reader: ClassVar[type[Reader]]
    output_tokens_min = 1
    has_two_names: ClassVar[bool] = False
    """Whether the format has two names for the longest answer."""

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
        """The address that paths are appended to, from an operator's setting (without a slash at its end)."""
        return base_url

    @staticmethod
    def headers(api_key: str | None) -> dict[str, str]:
        """The headers of every request: the key, and what else the vendor requires."""
        return {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    def encode(self, request: Request, *, stream: bool) -> bytes:
        """The request's body, in the form that the model accepts."""
        raise NotImplementedError

    def path(self, request: Request, *, stream: bool) -> str:
        """The path below the base URL."""
        return self.own_path

    async def complete(self, request: Request) -> Completion:
        """Send once. Raises `ExternalServiceError`."""
        body = Sent(self.encode(request, stream=False))
        response = await self._wire.request("POST", self.path(request, stream=False), body, request)
        try:
            answer = self.shape.decode(response.body)
        except UNREADABLE:
            answer = None
        if (
            answer is None
        ):  # outside the `except`: that error may quote the answer, and would stay attached to ours
            return await self._reread(request, response)
        return self._completion(request, response, answer)

    def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        """Send once; returns the pieces as they arrive. Raises `ExternalServiceError`."""
        body = Sent(self.encode(request, stream=True))
        return read_stream(self._wire, self.path(request, stream=True), body, request, self.reader)

    def bound_input_tokens(self, request: Request) -> int:
        """UTF-8 bytes of prompt, system and an operator's own fields, and an allowance for what is put around them."""
        extra = self._wire.extra
        return bound_tokens(request) + (extra.bytes_max if extra is not None else 0)

    def _completion(self, request: Request, response: HttpResponse, answer: Any) -> Completion:
        """The completion of an answer that was decoded to `shape`. Raises `ExternalServiceError`."""
        raise NotImplementedError

    async def _reread(self, request: Request, response: HttpResponse) -> Completion:
        """An answer that cannot be read strictly: leniently, or as the stream that it is. Raises as `complete` does."""
        if response.body.lstrip(b"\xef\xbb\xbf\r\n").startswith(EVENT_FIELDS):
            return await read_events(self.reader(self._wire, response.headers, request), response.body)
        return self._completion(request, response, self._wire.reread(response, self.shape))

    def obstacle(self) -> str:
        """Nothing on this machine: the options say whether there is a key."""
        return ""

    async def check(self) -> None:
        """Ask for the list of models. Raises `ExternalServiceError`."""
        await self._wire.request("GET", self.vendor.models)

    async def close(self) -> None:
        """Nothing is held: the connections are the client's."""
