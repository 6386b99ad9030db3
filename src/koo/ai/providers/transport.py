"""The part that all adapters share: send a request, read the response, and turn every failure into one of koo's errors.

A vendor's file has only its wire format and a `Vendor`: its URL, its fault table, and the reader of its error bodies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any, Protocol, TypeVar
from unicodedata import is_normalized, normalize
from urllib.parse import urlsplit

import msgspec

from koo.ai.providers.base import Pace, Request
from koo.ai.providers.ends import failure_of
from koo.ai.providers.extras import ExtraFields
from koo.ai.providers.faults import FaultTable, ParsedError, make_error, transport_error
from koo.ai.providers.forms import Forms
from koo.ai.providers.headers import LimitHeaders
from koo.ai.providers.loose import NOT_JSON, fit, in_utf8, loads, repaired
from koo.ai.types import Usage
from koo.clock import Clock
from koo.errors import ExternalServiceError, Kind
from koo.hidden import Headers, Secret, Sent
from koo.http.client import ClosedHere, HttpClient, HttpResponse, HttpStream
from koo.http.connector import AnswerTooDense, TransportError

T = TypeVar("T", bound=msgspec.Struct)
OF_THE_FORM = frozenset({Kind.INVALID_REQUEST, Kind.CONTEXT_LENGTH, Kind.TOO_LARGE})
"""Kinds of refusal for which the same request may be accepted in another form."""


class Encode(Protocol):
    """Encodes the body of a request in the form that the model accepts."""

    def __call__(self, request: Request, *, stream: bool) -> bytes: ...


ReadError = Callable[[int, Mapping[str, str], bytes], ParsedError]

USER_AGENT = "koo"
FRAMING_TOKENS = 256
"""Tokens that a vendor may add around a prompt: roles, separators, a hidden preamble. A few dozen are known."""
WEB_PAGE = "a web page"
BESIDE = ("code", "error_code", "error_type", "status_code", "param", "request_id", "retry_after")
"""Fields that some servers put next to `error`, which is only a sentence then (xAI, TGI, FastAPI)."""
ERROR_BYTES_MAX = 4096
"""A longer document is not an error."""
SLICE = 16_384
"""Characters to measure in one step."""
UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""Raised for data that is not JSON, for JSON of other types (a `ValidationError` is a `DecodeError`), and for JSON
that is nested too deeply."""


_GROWS = re.compile(
    "[\u00a8-\u00be\u013f-\u0149\u01c4-\u01c6\u02d8-\u02dd\u0344\u037a-\u0385\u0587\u0675-\u0678\u0958-\u095f\u09dc-\u09df"
    "\u0a33-\u0a5e\u0b5c\u0b5d\u0e33\u0eb3-\u0edd\u0f43-\u0fb9\u1fc1-\u1fee\u2033-\u2057\u2150-\u2189\u222c-\u2230"
    "\u247d-\u2487\u2a0c\u2adc\u309b-\u309f\u30ff\u3200-\u3243\u327c\u327d\u32c0-\u32cb\u32ff-\u33fe\ufa6c\ufacf-\ufad7"
    "\ufb13-\ufb4f\ufbdd-\ufdfc\ufe71-\ufe7f\ufef5-\ufefc\U0001d15e-\U0001d164\U0001d1bb-\U0001d1c0\U0001f12a"
    "\U0001f200\U0001f201\U0001f240-\U0001f248]+"
)
"""Every character whose NFKC form has more bytes than the character. A test compares this with Python's own table."""


class Wire:
    """Sends the requests of one service: its URL, prebuilt headers, and errors in koo's words."""

    def __init__(
        self,
        service: str,
        http: HttpClient,
        *,
        base_url: str,
        headers: Mapping[str, str],
        table: FaultTable,
        read_error: ReadError,
        encode: Encode,
        forms: Forms,
        clock: Clock,
        extra: ExtraFields | None = None,
    ) -> None:
        self.service = service
        self.extra = extra
        self._http = http
        # A URL may contain a user and password, which are as secret as an API key.
        self._base_url = Secret(base_url) if "@" in base_url else base_url
        self.host = urlsplit(base_url).hostname or ""
        # All headers that aiohttp would otherwise compute for each request.
        self._headers = Headers(
            {
                "accept": "application/json",
                "accept-encoding": "identity",
                "user-agent": USER_AGENT,
                "content-type": "application/json",
                **headers,
            }
        )
        self._table = table
        # Over plain HTTP a proxy can respond in the service's place, and its error page looks like the service's.
        by_proxy = http.proxy is not None and base_url.startswith("http:")
        self._way = (
            f" (through the proxy {http.proxy}, which may have sent this response)" if by_proxy else ""
        )
        self._read_error = read_error
        self._encode = encode
        self.forms = forms
        self._clock = clock
        self._limits = LimitHeaders()

    def __repr__(self) -> str:
        return f"{self.service!r} at {self._base_url.rpartition('@')[2]}"

    def pace(self, headers: Mapping[str, str]) -> tuple[Pace, ...]:
        """The provider's limits as reported in a response's headers."""
        return self._limits.read(headers, self._clock.wall)

    def wall(self) -> float:
        """Seconds since 1970, for dates in headers."""
        return self._clock.wall()

    async def request(
        self, method: str, path: str, body: bytes | None = None, request: Request | None = None
    ) -> HttpResponse:
        """Send once and return a response with status 200 to 299. Raises `ExternalServiceError`.

        `request` is what `body` encodes; without it, a refusal cannot be retried in another form.
        """
        # `forms` compares with what the adapter encoded. The operator's fields are added afterwards, so that a refusal
        # of one of them teaches nothing about koo's own parameters.
        sent = body
        if self.extra is not None and body is not None:
            body = Sent(self.extra.into(body))
        try:
            response = await self._http.request(
                method, self._base_url + path, headers=self._headers, body=body
            )
        except TransportError as error:
            raise transport_error(self.service, error) from error
        if not 200 <= response.status < 300:
            raise self.refusal(response.status, response.headers, response.body, request, sent)
        return response

    async def check(self, path: str) -> None:
        """Request a document that is never billed. Raises `ExternalServiceError`, also for a 200 that is a web page or
        an error."""
        # A portal, or another server at this address, answers every path with its own page. Taken as a success, that
        # would hide a wrong URL, and release a key that the service has refused.
        response = await self.request("GET", path)
        if kind_of_document({}, response.body) == WEB_PAGE:
            raise self.unreadable(WEB_PAGE)
        # A long list of models is not decoded. A short one may be in a wrapper: {"code": 20000, "data": [...]}.
        if len(response.body) < ERROR_BYTES_MAX and not _lists_something(document_of(response.body)):
            parsed = self._read_error(200, response.headers, response.body)
            if parsed.shaped and parsed.message:
                raise self.error(parsed, billable=False)

    async def open(self, path: str, body: bytes, request: Request) -> HttpStream:
        """Send once and return the event stream; the caller must close it. Raises `ExternalServiceError`."""
        sent = body
        if self.extra is not None:
            body = Sent(self.extra.into(body))
        try:
            stream = await self._http.stream("POST", self._base_url + path, headers=self._headers, body=body)
        except TransportError as error:
            raise transport_error(self.service, error) from error
        if 200 <= stream.status < 300:
            return stream  # whatever its content type: events are recognised by their form
        # The error is raised inside the `try`, so that the connection is closed whatever reading the body does.
        try:
            raise self.refusal(
                stream.status, stream.headers, await _body_of(stream), request, sent, stream=True
            )
        except ClosedHere as error:
            raise transport_error(self.service, error) from error
        finally:
            await stream.aclose()

    def refusal(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        request: Request | None = None,
        sent: bytes | None = None,
        *,
        stream: bool = False,
    ) -> ExternalServiceError:
        """The error for a response outside 200 to 299; `request` was sent as `sent`."""
        parsed = self._read_error(status, headers, body)
        # None of these is billed, redirects included: the server may have done some work, but no vendor charges for an
        # error status.
        error = self._table.error(self.service, parsed, self._clock.wall())
        # An unstructured page over plain HTTP may come from the proxy. Without that hint, an operator would look for
        # the cause at the service.
        if self._way and not parsed.shaped:
            error.reason += self._way
        if request is not None and sent is not None and error.kind in OF_THE_FORM:
            may_pass = self.forms.learn(request, parsed, sent)
            # Compare with the bytes that would be sent now. If two calls are refused for the same parameter, only the
            # first one learns something, but both can be repeated. And without a difference a retry would only be
            # refused again.
            error.anew = may_pass and self._encode(request, stream=stream) != sent
        return error

    def error(self, parsed: ParsedError, *, billable: bool | None) -> ExternalServiceError:
        """The error inside a response or stream with a success status."""
        return self._table.error(self.service, parsed, self._clock.wall(), billable=billable)

    def unreadable(self, what: str) -> ExternalServiceError:
        """The error for a response with a success status that has `what` instead of an answer."""
        return make_error(
            self.service, Kind.BAD_ANSWER, f"its response cannot be read: {what}{self._way}", billable=True
        )

    def broken(self, error: TransportError) -> ExternalServiceError:
        """The error for a stream that broke off after its headers."""
        if isinstance(error, ClosedHere):
            return transport_error(self.service, error)
        if isinstance(error, AnswerTooDense):
            return self.unreadable(error.reason)
        return make_error(self.service, Kind.TRUNCATED_STREAM, error.reason, billable=True)

    def unfinished(self, reason: str = "") -> ExternalServiceError:
        """The error for a stream that ended without an end event."""
        return make_error(self.service, Kind.TRUNCATED_STREAM, reason, billable=True)

    def reread(self, response: HttpResponse, decoder: msgspec.json.Decoder[T]) -> T:
        """Decode leniently what the strict decoder could not read. Raises `ExternalServiceError`."""
        document = repaired(loads(in_utf8(response.body, response.headers)))
        told = fit(document, decoder.type) if isinstance(document, (dict, list)) else None
        if told is None:
            raise self.no_answer(response, kind_of_document(response.headers, response.body))
        return told

    def judge(
        self, response: HttpResponse, error: msgspec.Raw, text: str, reason: str | None, usage: Usage
    ) -> None:
        """Raise the failure that a response with status 200 reports: an error field, a failed end, or no content."""
        # An answer that also contains an error was billed. Without any text or tokens, the error came first.
        if is_something(error):
            billable = bool(text) or usage.total_tokens > 0
            raise self.told(response.headers, error, response.body, billable=billable)
        parsed = failure_of(reason)
        if parsed is not None:
            raise self.error(replace(parsed, headers=response.headers), billable=True)
        # An empty text is an answer if there is a stop reason, or if output tokens were billed (for reasoning, say).
        # Otherwise the document is probably something else with the same field names.
        if not text and not usage.output_tokens and reason is None:
            raise self.no_answer(response, "a response without content")

    def told(
        self, headers: Mapping[str, str], error: msgspec.Raw, document: bytes = b"", *, billable: bool
    ) -> ExternalServiceError:
        """The error from a document's `error` field, with or without an answer next to it."""
        # Not the whole document: the fields of an answer next to the error (`type`, `status`) have the names of an
        # error's fields.
        around = document_of(document)
        beside = {name: around[name] for name in BESIDE if name in around} if isinstance(around, dict) else {}
        body = msgspec.json.encode({**beside, "error": document_of(bytes(error))})
        return self.error(self._read_error(200, headers, body), billable=billable)

    def no_answer(self, response: HttpResponse, what: str) -> ExternalServiceError:
        """The error for a 200 without an answer: the reported error, or else one that says that the response is
        `what`."""
        parsed = self._read_error(response.status, response.headers, response.body)
        return self.error(parsed, billable=False) if parsed.shaped else self.unreadable(what)


NOTHING = msgspec.Raw(b"")
"""The default of a field that is missing in the response."""
_document: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def is_something(error: msgspec.Raw) -> bool:
    """Whether an `error` field contains an error: null, false, "", {} and objects of such values do not."""
    return error is not NOTHING and _says_something(document_of(bytes(error)))


def _says_something(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    return any(map(_says_something, value)) if isinstance(value, list) else bool(value)


def document_of(body: bytes) -> Any:
    """Decode a body as JSON; None for anything else, such as a proxy's error page or an empty body."""
    with suppress(*UNREADABLE):
        return _document.decode(body)
    document = loads(body)
    return None if document is NOT_JSON else repaired(document)


class _Head(msgspec.Struct):
    type: str = ""


_head = msgspec.json.Decoder(_Head)


def type_of(data: bytes) -> str:
    """The event's `type` field. Raises one of `UNREADABLE`."""
    return _head.decode(data).type


def _lists_something(document: Any) -> bool:
    found = [document.get(name) for name in ("data", "models")] if isinstance(document, dict) else []
    return any(isinstance(one, list) and one for one in found)


async def _body_of(stream: HttpStream) -> bytes:
    """The body of an error response; b"" if it cannot be read, because the status says enough."""
    try:
        return await stream.read()
    except ClosedHere:
        raise
    except TransportError:
        return b""


def kind_of_document(headers: Mapping[str, str], body: bytes) -> str:
    """Describe what arrived without quoting it."""
    if not body.strip():
        return "nothing"
    if "html" in headers.get("content-type", "").lower() or body.lstrip()[:1] == b"<":
        return WEB_PAGE
    return "an unknown format"


def bound_tokens(request: Request) -> int:
    """An upper bound of the prompt's tokens: its bytes, since no tokenizer makes more tokens than there are bytes.

    The bytes are counted in the form that the tokenizer sees. Some normalize to NFKC first, which can turn one
    character into eighteen.
    """
    return bound_text(request.prompt) + (bound_text(request.system) if request.system else 0) + FRAMING_TOKENS


def bound_text(text: str) -> int:
    """An upper bound of the tokens of a text, without what a vendor puts around it; linear in its length."""
    if text.isascii():  # O(1), so the common case costs nothing even for a megabyte
        return len(text)
    # Long texts are measured in a thread, and each step is one call that keeps the interpreter lock. In one step, the
    # event loop would wait until the whole text is measured; between slices it can run.
    return sum(_bytes(text[at : at + SLICE]) for at in range(0, len(text), SLICE))


def _bytes(text: str) -> int:
    size = len(text.encode("utf-8", "surrogatepass"))
    if is_normalized("NFKC", text):
        return size
    growing = "".join(_GROWS.findall(text))
    # Each distinct character is normalized once and multiplied by its count. Normalizing a megabyte of such characters
    # would take seconds.
    return size + sum(times * _folded(one) for one, times in Counter(growing).items()) if growing else size


@cache
def _folded(character: str) -> int:
    """Bytes of the NFKC form of a character."""
    return len(normalize("NFKC", character).encode())


def estimate_usage(request: Request, text: str) -> Usage:
    """Upper bounds of the tokens read and written, for a provider that does not report its usage."""
    return Usage(input_tokens=bound_tokens(request), output_tokens=bound_text(text), estimated=True)


def complete_usage(usage: Usage, request: Request, text: str, cost_usd: Decimal | None = None) -> Usage:
    """The usage as reported. If a half is missing and the cost is unknown, the half is estimated and the usage is
    marked as an estimate."""
    read, written = usage.read_tokens > 0, usage.output_tokens > 0
    # Servers report 0 or nothing for a half that they did not count. Booked as 0, that half would be free. A reported
    # cost makes the estimate unnecessary, but only if there is some count: a cost of 0 without any count may be a
    # default.
    if (read and (written or not text)) or (cost_usd is not None and (read or written)):
        return usage
    most = estimate_usage(request, text)
    return replace(
        usage,
        input_tokens=usage.input_tokens if read else most.input_tokens,
        output_tokens=usage.output_tokens if written else most.output_tokens,
        estimated=True,
    )
