"""Read the body of an error response from any vendor or gateway.

An error often has more than one author. Gateways wrap the error of the vendor behind them in a format of their own, and
servers that imitate a vendor send some errors in the format of their web framework. So there is one reader for all of
them. It collects names (codes, types, reasons), the message, the waits and the wrapped error wherever they appear:

    {"error": {"message", "type", "param", "code"}}               OpenAI, vLLM, llama.cpp (code: a string or a status)
    {"type": "error", "error": {"type", "details": {...}}}        Anthropic
    {"error": {"code", "status", "details": [{"reason"}, ...]}}   Google; its OpenAI endpoint puts that into a list
    {"error": {"code": 402, "message", "metadata": {...}}}        OpenRouter; `metadata.raw` is the vendor's own error
    {"error": "model 'x' not found", "code", "error_type"}        Ollama, xAI, TGI: a string, not an object
    {"error": {"message": "litellm.RateLimitError: … - {"error": {…}}"}}    an error inside a sentence
    {"object": "error", "message", "type", "code"}                older vLLM: flat; also with `detail`, `msg`, `Message`
    {"errors": [{"code", "message"}]}, {"error": [{…}]}           Cloudflare
    {"detail": [{"loc": ["body", "stream_options"], "msg"}]}      FastAPI, Mistral
    {"fault": {"faultstring", "detail": {"errorcode"}}}           Apigee
    {"__type": "…#ThrottlingException", "message"}                AWS, or in the header `x-amzn-errortype`
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import Any

from koo.ai.providers.faults import MESSAGE_MAX, ParsedError
from koo.ai.providers.loose import in_utf8
from koo.ai.providers.other_words import head_of
from koo.ai.providers.transport import document_of
from koo.ai.providers.waits import Headers, Stated

DEPTH_MAX = 4
"""Levels of wrapping to follow. Two gateways in a row wrap an error twice; deeper levels are not part of an error."""
LISTED_MAX = 8
"""How many items of a list to read. A longer list does not contain the details of one error."""
FIELDS_MAX = 200
"""Fields of one error to search for waits. A hostile body could contain a hundred thousand of them."""
PLAIN_TEXT_MAX = 1000
"""Characters of a plain-text error; a longer body is a web page."""
PERIODS = ("PerDay", "PerMinute")
"""Parts of the names of Google's quotas that state their period."""

_WRAPPERS = (
    "error",
    "errors",
    "fault",
    "detail",
    "details",
    "err",
    "base_resp",
    "metadata",
    "innererror",
    "message",
)
_MESSAGES = ("message", "Message", "msg", "faultstring", "error_message", "errorMessage", "status_msg", "error_msg",
             "errmsg", "error", "detail", "title")  # fmt: skip
_CODES = ("code", "error_code", "errorcode", "errorCode", "Code", "errcode")
GOOD_CODES = (0, 200, "0", "200", "", None, "ok", "OK", "Ok", "success", "Success", "SUCCESS")
"""Codes with which some gateways wrap a good response."""
_TYPES = ("type", "status", "error_type", "__type")
_STATUSES = ("code", "status", "status_code", "statusCode")
_MORE = ("error_type", "limit_source", "reason", "code", "type", "status")
_WAITS: dict[str, float] = dict.fromkeys(
    (
        "retryafter", "retryafterseconds", "retryaftersecs", "retryafters", "retrydelay", "retryin", "retryinseconds",
        "waitseconds", "waittime", "estimatedtime", "resetsin", "resetin", "resetinseconds", "resetsinseconds",
        "resetafter", "resetsafter", "secondsuntilreset", "resetsat", "resetat", "resettime", "resetson", "retryat",
    ),
    1.0,
) | dict.fromkeys(("retryafterms", "retryaftermilliseconds", "resetafterms", "resetsinms", "waitms"), 1e-3)  # fmt: skip
_COUNTS = {"n_prompt_tokens": "prompt_tokens", "n_ctx": "context_tokens"}
_REQUEST_IDS = ("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id")
_PHRASES = frozenset(status.phrase for status in HTTPStatus)
"""The standard phrases for statuses, which add nothing to the status."""
_EVENT = re.compile(r"(?:(?:id|event|retry)?:.*\n)*data:(.*)")
"""The refusal of a streamed request as an event, as some servers send it."""
_PAGE = re.compile(r"\s*<[a-zA-Z!?]")
_FIRST_NAME = re.compile(r"[`'\"]?([a-z_]+)[`'\":]")


def read_error(status: int, headers: Headers, body: bytes) -> ParsedError:
    """Parse an error's body. For a web page from a proxy or firewall the result is empty and not `shaped`."""
    body = in_utf8(body, headers)
    document = document_of(body)
    # Small bodies that are not JSON may be a plain sentence ("upstream connect error"). Truncated JSON and pages are
    # not: their text would be searched for phrases that belong to something else.
    if document is None and len(body) <= PLAIN_TEXT_MAX and body.lstrip()[:1] not in (b"{", b"["):
        text = body.decode("utf-8", "replace")
        document = None if _PAGE.match(text) else text
    return parse_error(status, headers, document)


def parse_error(status: int, headers: Headers, document: object) -> ParsedError:
    """Like `read_error`, for a decoded body."""
    # Google's OpenAI endpoint wraps the error in a list of one.
    if isinstance(document, list):
        document = document[0] if document else None
    facts = _Facts(is_success=status < 300)
    facts.gather(document, 0)
    request_id = next((known for name in _REQUEST_IDS if (known := headers.get(name))), facts.request_id)
    message = facts.sentences[0] if facts.sentences else ""
    amazons = headers.get("x-amzn-errortype", "").partition(":")[0]
    # OpenRouter forwards the vendor's headers inside the body. They describe the limit that was really hit, so they
    # override the gateway's own.
    if facts.headers:
        headers = {**{name.lower(): value for name, value in headers.items()}, **facts.headers}
    return ParsedError(
        # Inside a response with status 200, a numeric code is the status that the error would have had. Otherwise the
        # real status counts.
        status=facts.status if status < 300 and facts.status is not None else status,
        code=facts.code or facts.reason or amazons or None,
        type=facts.type,
        more=tuple(facts.more),
        message=message,
        outer=tuple(facts.sentences[1:]),
        param=facts.param or _first_name(message),
        request_id=request_id,
        headers=headers,
        stated=tuple(facts.stated),
        counts=facts.counts,
        shaped=facts.is_shaped,
    )


@dataclass(slots=True)
class _Facts:
    """The facts collected while walking through an error's document, from the outer wrapper inwards."""

    is_success: bool
    is_shaped: bool = False
    status: int | None = None
    code: str | None = None
    type: str | None = None
    reason: str | None = None
    more: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    depth: int = -1
    param: str | None = None
    request_id: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    stated: list[Stated] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def gather(self, document: object, depth: int) -> None:
        """Collect the facts of an error or of its wrapper."""
        if isinstance(document, str):
            self._take_message(document, depth)
        elif isinstance(document, list):
            for one in document[:LISTED_MAX]:
                self.gather(one, depth + 1)
        elif isinstance(document, Mapping) and depth <= DEPTH_MAX and self._is_error(document, depth):
            self._take(document, depth)

    def _is_error(self, document: Mapping[str, Any], depth: int) -> bool:
        """Whether the outermost document is an error."""
        # In a response with status 200, a `message` may be the model's answer. Read as an error's message, it could
        # contain "rate limit exceeded" and stop the service. So there has to be a field that only errors have.
        if depth or not self.is_success or document.get("error") or document.get("errors"):
            return True
        if document.keys() == {"detail"}:
            return True  # FastAPI
        failed = document.get("base_resp")
        if isinstance(failed, Mapping) and failed.get("status_code"):
            return True  # MiniMax
        flat = "error" in (document.get("object"), document.get("type"), document.get("status"))
        flat = flat or any(document.get(key, "") not in GOOD_CODES for key in _CODES)
        return flat and any(isinstance(document.get(key), str) for key in _MESSAGES)

    def _take(self, error: Mapping[str, Any], depth: int) -> None:
        # In some flat formats `type: "error"` describes the envelope and not the error.
        # Any named code, or a numeric one, shows that the sender knows a format for errors. That separates a vendor's
        # or gateway's own error from a proxy's JSON, and decides whether a 403 may block the key.
        names = [_name(error.get(key)) for key in (*_CODES, *_TYPES)]
        named = [name for name in names if name and name != "error"]
        self.is_shaped |= bool(named) or any(isinstance(error.get(key), int) for key in _CODES)
        self._take_names(error)
        for key, ours in _COUNTS.items():
            if isinstance(count := error.get(key), int):
                self.counts[ours] = count
        for key, value in islice(error.items(), FIELDS_MAX):
            self._take_wait(key, value)
        self.request_id = self.request_id or _text(error.get("request_id"))
        param = _text(error.get("param")) or _last_place(error.get("loc"))
        if param is not None and " " in param:  # some gateways put the vendor's sentence here
            self._take_message(param, depth)
        else:
            self.param = param or self.param
        for key in _MESSAGES:
            # Some gateways put a whole HTML page into `message`. It says nothing, and would make the error `shaped`.
            if isinstance(said := error.get(key), str) and said and not _PAGE.match(said):
                self.is_shaped = True
                self._take_message(said, depth)
        for key in _WRAPPERS:
            if isinstance(inner := error.get(key), (Mapping, list)) and inner:
                self.gather(inner, depth + 1)
        self._take_metadata(error, depth)

    def _take_names(self, error: Mapping[str, Any]) -> None:
        # The outer wrapper is read first and its names are kept; those of inner errors go to `more`. Tables search all
        # of them, so nothing is lost, and the error shown to people names the code of the service that was called.
        code = next((name for key in _CODES if (name := _name(error.get(key)))), None)
        kind = next((name for key in _TYPES if (name := _name(error.get(key))) and name != "error"), None)
        if self.code is None and code is not None:
            self.code, code = code, None
        if self.type is None and kind is not None:
            self.type, kind = kind, None
        self.more += [name for name in (code, kind) if name]
        for key in _MORE:
            name = _name(error.get(key))
            if name and name not in (self.code, self.type, *self.more):
                self.more.append(name)
        self.reason = self.reason or _name(error.get("reason"))
        if self.status is None:
            self.status = next((found for key in _STATUSES if (found := _status(error.get(key)))), None)
        self.more += _periods(error.get("violations"))

    def _take_wait(self, key: str, value: object) -> None:
        unit_s = _WAITS.get(re.sub("[^a-z]", "", key.lower()))
        if unit_s is not None and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            self.stated.append(Stated(str(value), unit_s))

    def _take_message(self, said: str, depth: int) -> None:
        """Collect a message, and the error that is written into it as JSON, if any."""
        inner = _inside(said)
        if inner is not None and depth < DEPTH_MAX:
            self.gather(inner, depth + 1)
        # The innermost message comes first: it is the vendor's own, and the tables are written for those. The wrappers'
        # messages follow.
        if depth > self.depth:
            self.sentences.insert(0, said)
            self.depth = depth
        else:
            self.sentences.append(said)

    def _take_metadata(self, error: Mapping[str, Any], depth: int) -> None:
        """Collect OpenRouter's metadata: the vendor's own error as text, its headers, and why a prompt was flagged."""
        if isinstance(told := error.get("headers"), Mapping):
            few = islice(told.items(), FIELDS_MAX)
            self.headers |= {str(name).lower(): str(value) for name, value in few}
        if isinstance(raw := error.get("raw"), str):
            self.gather(document_of(raw.encode()) or raw, depth + 1)
        if "reasons" in error or "flagged_input" in error:
            self.more.append("moderation")


def _name(value: object) -> str | None:
    """A code or type in letters, without AWS's namespace. Numeric codes have no common meaning and are dropped."""
    if not isinstance(value, str) or value.isdigit() or value in ("", "None") or value in _PHRASES:
        return None
    return value.rpartition("#")[2]


def _status(code: object) -> int | None:
    number = int(code) if isinstance(code, str) and code.isdigit() and len(code) == 3 else code
    return (
        number if isinstance(number, int) and not isinstance(number, bool) and 400 <= number < 600 else None
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _last_place(loc: object) -> str | None:
    """The last part of a FastAPI location, such as ["body", "stream_options"]."""
    return _text(loc[-1]) if isinstance(loc, list) and loc else None


def _first_name(message: str) -> str | None:
    """The parameter that a message begins with: "max_tokens: must be ...", "`temperature` is deprecated ..."."""
    found = _FIRST_NAME.match(message)
    return found[1] if found else None


def _periods(violations: object) -> list[str]:
    """The periods of Google's quotas that were exceeded."""
    ids = (
        [one.get("quotaId") for one in violations[:FIELDS_MAX] if isinstance(one, Mapping)]
        if isinstance(violations, list)
        else []
    )
    return [period for period in PERIODS if any(isinstance(name, str) and period in name for name in ids)]


def _inside(said: str) -> object:
    """The JSON document that a sentence contains after the names of the servers that forwarded it.

    JSON later in a sentence is ignored, because it may be a quoted prompt.
    """
    event = _EVENT.match(said)
    if event is not None:
        return document_of(event[1].encode())
    head = head_of(said[:MESSAGE_MAX])
    if not head.startswith(("{", "b'{", 'b"{', "[{")):
        return None
    try:
        return json.JSONDecoder().raw_decode(said, said.index("[" if head.startswith("[") else "{"))[0]
    except (ValueError, RecursionError):
        return None
