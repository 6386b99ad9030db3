"""Turn a provider's error response into one of koo's errors: the part that all vendors share.

Each vendor's file has a table of `Row`s. It is read from the top, and the first row that fits decides. Rows with a code
or type come first. Rows that search a message also state the status and type that they refine, so that a message can
never contradict the status: messages quote prompts, and a prompt about "429" must not look like a rate limit. If no row
fits, `BY_STATUS` decides.

The provider's own message is never shown, because it may quote the prompt. koo shows its own sentence, followed by the
status, the code and the request's id, which this file has checked to be short identifiers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from koo.ai.providers.other_words import MAY_MEAN, kind_of, never_passes
from koo.ai.providers.waits import Stated, resets_in_s, retry_after_s, said_s, sensible, until_said_s, wait_of
from koo.errors import ExternalServiceError, Kind, ServiceFailed
from koo.failures import safe
from koo.http.client import ClosedHere
from koo.http.connector import ShortHere, TransportError
from koo.policies.treatment import TREATMENTS

SENTENCE_MAX = 300
MESSAGE_MAX = 2000
"""Characters of a message that are searched; the rest is ignored."""

SENTENCES: dict[Kind, str] = {
    Kind.CONNECTION: "the connection failed",
    Kind.TIMEOUT: "it timed out",
    Kind.OVERLOADED: "it is overloaded",
    Kind.SERVER_ERROR: "it failed",
    Kind.BAD_ANSWER: "its response cannot be read",
    Kind.TRUNCATED_STREAM: "the stream ended early",
    Kind.THROTTLED: "its rate limit was reached",
    Kind.QUOTA: "its quota for this account is used up",
    Kind.BILLING: "the account has a billing problem: see the provider's billing page",
    Kind.AUTH: "it rejects the API key: set a valid one",
    Kind.PERMISSION: "the API key lacks a permission: check the key's permissions at the provider",
    Kind.CONFLICT: "the request conflicts with another one",
    Kind.INVALID_REQUEST: "it does not accept the request",
    Kind.CONTEXT_LENGTH: "the prompt is longer than the model's context: shorten it, or choose a larger model",
    Kind.CONTENT_POLICY: "its content policy blocked the request",
    Kind.NOT_FOUND: "it has no such model or path: check MODEL and BASE_URL",
    Kind.TOO_LARGE: "the request is larger than it accepts",
    Kind.UNKNOWN: "unexpected error: please report it",
    Kind.OUT_OF_RESOURCES: "this machine has run out of a resource that the call needs",
}
"""koo's own sentence for each kind of error."""

BY_STATUS: dict[int, Kind] = {
    400: Kind.INVALID_REQUEST,
    401: Kind.AUTH,
    402: Kind.BILLING,
    403: Kind.PERMISSION,
    404: Kind.NOT_FOUND,
    407: Kind.CONNECTION,  # sent by a transparent proxy that requires a login, since koo knows of no proxy
    408: Kind.TIMEOUT,
    409: Kind.CONFLICT,
    410: Kind.NOT_FOUND,
    413: Kind.TOO_LARGE,
    424: Kind.SERVER_ERROR,  # what the server depends on has failed: a model runner, a vendor
    425: Kind.CONFLICT,
    429: Kind.THROTTLED,
    499: Kind.CONFLICT,  # a proxy gave up the request, as if its client had left
    503: Kind.OVERLOADED,
    504: Kind.TIMEOUT,
    529: Kind.OVERLOADED,
}
"""Any other 5xx is a server error; any other 3xx or 4xx (405, 415, 422, ...) is a mistake in the request or its URL."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,79}")
PARAMETERS = frozenset({
    "model", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "messages", "system", "input",
    "instructions", "stream", "stream_options", "store",
})  # fmt: skip
"""Names of parameters that may be shown, because koo sends them itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedError:
    """A provider's error response, with the structure that it arrived in.

    `code` is more specific than `type`; `more` contains codes and types from other fields. `message` is only for
    searches by the table, and so are the sentences that gateways put around it (`outer`). `counts` are numbers to
    repeat in the error's detail; `stated` are the waits from the body's own fields. `shaped`: the body has the form of
    an error, so it came from a vendor or a gateway and not from a proxy or firewall.
    """

    status: int
    code: str | None = None
    type: str | None = None
    more: tuple[str, ...] = ()
    message: str = field(default="", repr=False)
    outer: tuple[str, ...] = field(default=(), repr=False)
    param: str | None = None
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stated: tuple[Stated, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    shaped: bool = False

    @property
    def names(self) -> tuple[str | None, ...]:
        """All codes and types."""
        return (self.code, self.type, *self.more)


Until = Callable[[ParsedError, float], float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. It fits if all given conditions hold.

    `name` must be one of the error's codes and types. The message must begin with one of `begins` and contain one of
    `says` (lower case). `until` computes the wait, if this error has a special one; `sentence` replaces the kind's.
    `guessed`: the kind was derived from words that are not the vendor's own.
    """

    kind: Kind
    name: str | tuple[str, ...] = ()
    status: int | tuple[int, ...] = ()
    begins: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    shaped: bool | None = None
    until: Until | None = None
    sentence: str = ""
    guessed: bool = False

    def fits(self, parsed: ParsedError, message: str) -> bool:
        return (
            (parsed.status in _several(self.status) if self.status else self._may_mean(parsed.status))
            and (not self.name or not _several(self.name).isdisjoint(parsed.names))
            and (self.shaped is None or self.shaped is parsed.shaped)
            and (not self.begins or message.startswith(self.begins))
            and (not self.says or any(words in message for words in self.says))
        )

    def _may_mean(self, status: int) -> bool:
        """Whether the row agrees with the status. A row that contradicts it, or adds nothing to it, is skipped."""
        # A 429 whose type is `invalid_request_error` is still a rate limit. Only 200 and 400 need the type's help.
        if self.kind in CATCH_ALL:
            return status <= 400
        may_mean = MAY_MEAN.get(status)
        return may_mean is None or self.kind in may_mean


CATCH_ALL = frozenset({Kind.SERVER_ERROR, Kind.INVALID_REQUEST})
"""Kinds that add nothing to a status. They decide only if the status is 200 (inside a stream) or 400."""


def _several(one_or_more: object) -> frozenset[object]:
    return frozenset(one_or_more) if isinstance(one_or_more, tuple) else frozenset((one_or_more,))


FORBIDDEN_ON_THE_WAY = Row(
    Kind.INVALID_REQUEST,
    status=403,
    shaped=False,
    sentence="a proxy or firewall in between forbids the request",
)
"""Part of every vendor's table: a "forbidden" page from a proxy or firewall says nothing about the key."""

NEVER_PASSES = Row(
    Kind.TOO_LARGE,
    sentence="the request needs more tokens than the limit allows: shorten the prompt, or lower max_tokens",
)
"""Checked before every table. The error has the code of a rate limit, but waiting cannot help this request."""


@dataclass(frozen=True, slots=True)
class FaultTable:
    """A vendor's rows. `vendor` is the name for errors if no service is known."""

    vendor: str
    rows: tuple[Row, ...]

    def find(self, parsed: ParsedError) -> Row:
        """The row that decides: the vendor's own, else other vendors' words, else a catch-all row, else the status."""
        message = parsed.message[:MESSAGE_MAX].strip().lower()
        sentences = (parsed.message[:MESSAGE_MAX], *(said[:MESSAGE_MAX] for said in parsed.outer))
        if never_passes(sentences, parsed.status):
            return NEVER_PASSES
        # A catch-all row is only remembered. If it decided immediately, OpenAI's `invalid_request_error` would come
        # before the text of the gateway that sent it: "Insufficient credits" with status 400 would become the caller's
        # mistake.
        catch_all: Row | None = None
        for row in self.rows:
            if row.fits(parsed, message):
                if row.kind not in CATCH_ALL:
                    return row
                catch_all = catch_all or row
        kind = kind_of(parsed.names, sentences, parsed.status)
        if kind is not None:
            return Row(kind, guessed=True)
        return catch_all or Row(kind_of_status(parsed.status))

    def error(
        self, service: str, parsed: ParsedError, wall_s: float, *, billable: bool | None = False
    ) -> ExternalServiceError:
        """The error for a parsed response. `wall_s` is this machine's clock, used for dates."""
        row = self.find(parsed)
        wait_s = _asked_s(row, parsed, wall_s)
        kind = row.kind
        # Some vendors call a limit per minute a quota. If it were treated as one, koo would not call the service for an
        # hour or more, although the limit resets in a minute. A row from the vendor's own table is exact and stays as
        # it is.
        is_short = wait_s is not None and wait_s <= QUOTA_S_MIN
        if kind is Kind.QUOTA and row.guessed and (is_short or _is_per_minute(parsed.message[:MESSAGE_MAX])):
            kind = Kind.THROTTLED
        detail = detail_of(parsed)
        words = row.sentence or _about_the_request(kind, parsed) or _about_the_status(kind, parsed.status)
        reason = sentence_of(words or SENTENCES[kind], detail)
        return make_error(service, kind, reason, wait_s, detail=detail, billable=billable)


ELSEWHERE = "it redirects to another address: check BASE_URL"
SENTENCES_BY_STATUS: dict[tuple[Kind, int], str] = {
    **{(Kind.INVALID_REQUEST, status): ELSEWHERE for status in (301, 302, 303, 307, 308)},
    (Kind.INVALID_REQUEST, 405): "it accepts no such request at this address: check BASE_URL",
    (Kind.CONFLICT, 425): "it is not ready for the request yet",
    (Kind.CONFLICT, 499): "it cancelled the request",
}


def _about_the_status(kind: Kind, status: int) -> str:
    return SENTENCES_BY_STATUS.get((kind, status), "")


_PER_MINUTE = re.compile(r"(?:per|this|each|every)[ _-]?(?:second|minute)|\b[rt]p[ms]\b", re.IGNORECASE)
_PER_DAY = re.compile(r"per[ _-]?(?:day|month)|daily|monthly|\b[rt]pd\b", re.IGNORECASE)


def _is_per_minute(message: str) -> bool:
    """Whether a message about a quota names only short periods, after which it soon resets by itself."""
    return _PER_MINUTE.search(message) is not None and _PER_DAY.search(message) is None


ABOUT_MAX = 200
"""How many characters of a message are searched for what is wrong; later ones may quote the prompt."""
NO_ROOM = "prompt and max_tokens together do not fit into the model's context: lower max_tokens, or shorten the prompt"
_ABOUT_THE_ANSWER = re.compile(
    r"max_?(?:new_|completion_|output_)?tokens|(?:in|for) the completion|output tokens|in the output",
    re.IGNORECASE,
)


_ABOUT_THE_SYSTEM = re.compile(
    r"system (?:role|message|prompt|instruction)s?\b|developer instruction|roles must alternate",
    re.IGNORECASE,
)


def _about_the_request(kind: Kind, parsed: ParsedError) -> str:
    """A better sentence if `max_tokens` or `system` is what does not fit: "shorten the prompt" does not help a one-line
    prompt."""
    if kind not in (Kind.CONTEXT_LENGTH, Kind.INVALID_REQUEST):
        return ""
    if kind is Kind.INVALID_REQUEST and _ABOUT_THE_SYSTEM.search(parsed.message[:ABOUT_MAX]):
        return "it may not accept system instructions for this model: put them into the prompt"
    if not _ABOUT_THE_ANSWER.search(parsed.message[:MESSAGE_MAX]):
        return ""
    if kind is Kind.CONTEXT_LENGTH:
        return NO_ROOM
    return "it does not accept this value of max_tokens: choose another"


QUOTA_S_MIN = 3600.0
"""A quota that resets within an hour is treated as a rate limit."""
PASSING = frozenset({Kind.THROTTLED, Kind.QUOTA, Kind.BILLING, Kind.OVERLOADED})
"""Kinds whose message may say when they end."""


def _asked_s(row: Row, parsed: ParsedError, wall_s: float) -> float | None:
    """How long the provider asks koo to wait, by the most exact source: row, body, `Retry-After`, message, limits."""
    # A row's own computation comes first: Gemini's daily quota states a `retryDelay` of seconds, but ends at midnight.
    wait_s = row.until(parsed, wall_s) if row.until else None
    waits = (wait_of(text, parsed.headers, wall_s, unit_s) for text, unit_s in parsed.stated)
    wait_s = wait_s or next((stated_s for stated_s in waits if stated_s), None)
    wait_s = wait_s or retry_after_s(parsed.headers, wall_s)
    # A message is searched only after the structured sources, and only for these kinds: it may quote a prompt that
    # contains "try again in 3 days".
    if wait_s is None and row.kind in PASSING:
        said = (said_s(said[:MESSAGE_MAX], wall_s) for said in (parsed.message, *parsed.outer))
        wait_s = next((seconds for seconds in said if seconds), None)
    # Reset headers are sent with every response. For a quota only a used-up limit counts: the others reset within a
    # minute, and the next call would run into the quota again.
    if wait_s is None and row.kind in (Kind.THROTTLED, Kind.QUOTA):
        wait_s = resets_in_s(parsed.headers, wall_s, exhausted_only=row.kind is Kind.QUOTA)
    return wait_s


def kind_of_status(status: int) -> Kind:
    """The kind of error that a status alone means. An error inside a success (200) is a server error."""
    kind = BY_STATUS.get(status)
    if kind is not None:
        return kind
    if status < 300 or 500 <= status < 600:
        return Kind.SERVER_ERROR
    return Kind.INVALID_REQUEST if status < 500 else Kind.UNKNOWN


def make_error(
    service: str,
    kind: Kind,
    reason: str = "",
    wait_s: float | None = None,
    *,
    detail: dict[str, Any] | None = None,
    billable: bool | None = None,
) -> ExternalServiceError:
    """Make an error of the class that belongs to its kind."""
    reason = (reason or SENTENCES[kind])[:SENTENCE_MAX]
    error = TREATMENTS[kind].error(service, reason, wait_s, kind=kind, detail=detail)
    error.billable = billable
    return error


def transport_error(service: str, error: TransportError) -> ExternalServiceError:
    """The error for a response that did not arrive, or broke off."""
    if isinstance(error, ClosedHere):
        return _closed_here(service, error)
    kind = Kind.BAD_ANSWER if error.stage == "answer" else Kind.CONNECTION
    if isinstance(error, ShortHere):
        kind = Kind.OUT_OF_RESOURCES
    # A request that was never sent cannot be billed; any other may have been.
    detail: dict[str, Any] = {"phase": error.stage}
    if error.lasting:
        detail["should_retry"] = False
    return make_error(service, kind, error.reason, detail=detail, billable=error.stage != "connect")


def _closed_here(service: str, error: ClosedHere) -> ExternalServiceError:
    """The error for a call that closing koo cut off. It is not a failure of either side, but it may be billed."""
    closed = ServiceFailed(service, error.reason, kind=Kind.DRAINING, detail={"phase": error.stage})
    closed.billable = error.stage != "connect"
    return closed


def sentence_of(words: str, detail: Mapping[str, Any]) -> str:
    """koo's sentence, with the facts in brackets that a support team needs."""
    facts = [f"status {detail['status']}"] if detail["status"] != 200 else []
    facts += [str(detail[key]) for key in ("code", "type") if detail[key] is not None]
    if detail.get("param"):
        facts.append(f"parameter {detail['param']}")
    if detail["request_id"]:
        facts.append(f"request {detail['request_id']}")
    return f"{words} ({', '.join(dict.fromkeys(facts))})" if facts else words


def detail_of(parsed: ParsedError) -> dict[str, Any]:
    """The facts of an error response, reduced to checked identifiers."""
    detail: dict[str, Any] = {
        "status": parsed.status,
        "type": word(parsed.type),
        "code": word(parsed.code),
        "request_id": word(parsed.request_id),
    }
    detail.update(parsed.counts)
    if parsed.param in PARAMETERS:
        detail["param"] = parsed.param
    should_retry = parsed.headers.get("x-should-retry")
    if should_retry in ("true", "false"):
        detail["should_retry"] = should_retry == "true"
    return detail


def word(text: str | None) -> str | None:
    """Return a short identifier unchanged and None for anything else: free text may contain a prompt or a key."""
    # A server may echo in any field what it was sent. `safe` recognises text that looks like a key, which has the form
    # of an identifier too.
    return text if text is not None and _WORD.fullmatch(text) and safe(text) == text else None


# ── waits that a row computes itself ──────────────────────────────────────────────────────────────────────────────────


def until_next_month(parsed: ParsedError, wall_s: float) -> float | None:
    """Seconds until a monthly limit ends: 00:00 UTC on the first day of the next month."""
    now = datetime.fromtimestamp(wall_s, UTC)
    first = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return sensible(first.timestamp() - wall_s)


def until_stated(parsed: ParsedError, wall_s: float) -> float | None:
    """Seconds until the time in the message: "You will regain access on 2026-12-01 at 00:00 UTC"."""
    return until_said_s(parsed.message[:MESSAGE_MAX], wall_s)
