"""From what the other side said to an error of koo: the part that all vendors share.

Each vendor's file has a table of `Row`s, read from the top; the first that fits says what happened. Rows with a code or
type come first. Rows that look into a message also name the status and the type that they refine, so that words can
never contradict the status: messages echo prompts, and a prompt about "429" must not look like one. If nothing fits,
`BY_STATUS` decides.

The provider's own sentence is never shown: it may repeat the prompt. What is shown is ours, with the status, the code
and the request's id, which are short words that this file has checked.
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
"""A message of a megabyte is not a message."""

SENTENCES: dict[Kind, str] = {
    Kind.CONNECTION: "the connection failed",
    Kind.TIMEOUT: "it gave up after its own time limit",
    Kind.OVERLOADED: "it is overloaded",
    Kind.SERVER_ERROR: "it failed",
    Kind.BAD_ANSWER: "its answer cannot be read",
    Kind.TRUNCATED_STREAM: "the stream ended before its end",
    Kind.THROTTLED: "it limits our rate",
    Kind.QUOTA: "its quota for this account is used up",
    Kind.BILLING: "its account cannot pay: see the provider's billing page",
    Kind.AUTH: "it refuses the API key: set a valid one",
    Kind.PERMISSION: "the API key may not do this: see the key's permissions at the provider",
    Kind.CONFLICT: "the request conflicts with another one",
    Kind.INVALID_REQUEST: "it does not accept the request",
    Kind.CONTEXT_LENGTH: "the prompt is longer than the model can read: shorten it, or choose a larger model",
    Kind.CONTENT_POLICY: "it refuses the content by its policy",
    Kind.NOT_FOUND: "it does not know this model or path: see MODEL and BASE_URL",
    Kind.TOO_LARGE: "the request is larger than it accepts",
    Kind.UNKNOWN: "unexpected error: please report it",
    Kind.OUT_OF_RESOURCES: "this machine lacks what a call needs",
}
"""Our own words for each kind: no provider's sentence is repeated."""

BY_STATUS: dict[int, Kind] = {
    400: Kind.INVALID_REQUEST,
    401: Kind.AUTH,
    402: Kind.BILLING,
    403: Kind.PERMISSION,
    404: Kind.NOT_FOUND,
    407: Kind.CONNECTION,  # a proxy's answer, though koo was given none: something on the way asks for a login
    408: Kind.TIMEOUT,
    409: Kind.CONFLICT,
    413: Kind.TOO_LARGE,
    429: Kind.THROTTLED,
    503: Kind.OVERLOADED,
    504: Kind.TIMEOUT,
    529: Kind.OVERLOADED,
}
"""Other 5xx are the server's errors; other 3xx and 4xx (405, 415, 422, ...) are mistakes of the request or its URL."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,79}")
PARAMETERS = frozenset({
    "model", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "messages", "system", "input",
    "instructions", "stream", "stream_options", "store",
})  # fmt: skip
"""Names that we send ourselves, and so may repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedError:
    """What the other side said, as structured as it came.

    `code` is more specific than `type`; `more` holds what some vendors name elsewhere. `message` is only for the table,
    and so are the sentences that gateways put around it (`outer`). `counts` are numbers that an error's detail repeats,
    `stated` the waits that the body names in a field of their own. `shaped`: the body had the form of an error, so it
    came from a vendor or gateway and not from something on the way.
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
        """All its codes and types."""
        return (self.code, self.type, *self.more)


Until = Callable[[ParsedError, float], float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: all conditions that are given must hold.

    `name`: one of its codes and types. `begins` and `says`: the message begins with, or contains, one of these (lower
    case). `until` computes the wait if the kind has one of its own; `sentence` replaces the kind's. `guessed`: by words
    that are not the vendor's own.
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
        """The status comes first: a row that contradicts it, or only says that something failed, is not believed."""
        if self.kind in CATCH_ALL:
            return status <= 400
        may_mean = MAY_MEAN.get(status)
        return may_mean is None or self.kind in may_mean


CATCH_ALL = frozenset({Kind.SERVER_ERROR, Kind.INVALID_REQUEST})
"""Kinds that a status shows as well, except for those that say nothing themselves: 200 inside a stream, and 400."""


def _several(one_or_more: object) -> frozenset[object]:
    return frozenset(one_or_more) if isinstance(one_or_more, tuple) else frozenset((one_or_more,))


FORBIDDEN_ON_THE_WAY = Row(
    Kind.INVALID_REQUEST,
    status=403,
    shaped=False,
    sentence="a proxy or firewall on the way forbids the request",
)
"""In every vendor's table: a proxy's or firewall's "forbidden" page says nothing about the key."""

NEVER_PASSES = Row(
    Kind.TOO_LARGE,
    sentence="the request needs more tokens than it allows at once: shorten the prompt, or lower max_tokens",
)
"""Before every table: it carries the code of a limit, and would make all callers wait for what never passes."""


@dataclass(frozen=True, slots=True)
class FaultTable:
    """A vendor's rows. `vendor` is the name for errors if no service is known."""

    vendor: str
    rows: tuple[Row, ...]

    def find(self, parsed: ParsedError) -> Row:
        """The vendor's first row that fits, else other vendors' words; a catch-all row after both, the status last."""
        message = parsed.message[:MESSAGE_MAX].strip().lower()
        sentences = (parsed.message[:MESSAGE_MAX], *(said[:MESSAGE_MAX] for said in parsed.outer))
        if never_passes(sentences, parsed.status):
            return NEVER_PASSES
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
        """The error for it. `wall_s`: our clock, for dates."""
        row = self.find(parsed)
        wait_s = _asked_s(row, parsed, wall_s)
        kind = row.kind
        if kind is Kind.QUOTA and row.guessed and wait_s is not None and wait_s <= QUOTA_S_MIN:
            kind = Kind.THROTTLED
        detail = detail_of(parsed)
        reason = sentence_of(row.sentence or _about_the_answer(kind, parsed) or SENTENCES[kind], detail)
        return make_error(service, kind, reason, wait_s, detail=detail, billable=billable)


NO_ROOM = "prompt and max_tokens together do not fit into the model's context: lower max_tokens, or shorten the prompt"
_ABOUT_THE_ANSWER = re.compile(
    r"max_?(?:new_|completion_|output_)?tokens|(?:in|for) the completion|output tokens|in the output",
    re.IGNORECASE,
)


def _about_the_answer(kind: Kind, parsed: ParsedError) -> str:
    """Our words if the longest answer is what does not fit: a prompt of one line is not too long."""
    if kind not in (Kind.CONTEXT_LENGTH, Kind.INVALID_REQUEST):
        return ""
    if not _ABOUT_THE_ANSWER.search(parsed.message[:MESSAGE_MAX]):
        return ""
    if kind is Kind.CONTEXT_LENGTH:
        return NO_ROOM
    return "it does not accept this max_tokens: choose another"


QUOTA_S_MIN = 3600.0
"""Some call a limit per minute a quota: what is over in less than an hour is worth waiting for."""
PASSING = frozenset({Kind.THROTTLED, Kind.QUOTA, Kind.BILLING, Kind.OVERLOADED})
"""Kinds whose sentence may say when they pass."""


def _asked_s(row: Row, parsed: ParsedError, wall_s: float) -> float | None:
    """How long the other side asks us to stay away, by the most exact statement."""
    wait_s = row.until(parsed, wall_s) if row.until else None
    waits = (wait_of(text, parsed.headers, wall_s, unit_s) for text, unit_s in parsed.stated)
    wait_s = wait_s or next((stated_s for stated_s in waits if stated_s), None)
    wait_s = wait_s or retry_after_s(parsed.headers, wall_s)
    if wait_s is None and row.kind in PASSING:
        said = (said_s(said[:MESSAGE_MAX], wall_s) for said in (parsed.message, *parsed.outer))
        wait_s = next((seconds for seconds in said if seconds), None)
    if wait_s is None and row.kind in (Kind.THROTTLED, Kind.QUOTA):
        wait_s = resets_in_s(parsed.headers, wall_s, exhausted_only=row.kind is Kind.QUOTA)
    return wait_s


def kind_of_status(status: int) -> Kind:
    """What a status alone says. An error inside a success (200) is the server's."""
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
    """An error of the class that belongs to its kind."""
    reason = (reason or SENTENCES[kind])[:SENTENCE_MAX]
    error = TREATMENTS[kind].error(service, reason, wait_s, kind=kind, detail=detail)
    error.billable = billable
    return error


def transport_error(service: str, error: TransportError) -> ExternalServiceError:
    """There was no answer at all, or it broke off."""
    if isinstance(error, ClosedHere):
        return _closed_here(service, error)
    kind = Kind.BAD_ANSWER if error.stage == "answer" else Kind.CONNECTION
    if isinstance(error, ShortHere):
        kind = Kind.OUT_OF_RESOURCES
    # What never left cannot be billed; anything else may have been.
    detail: dict[str, Any] = {"phase": error.stage}
    if error.lasting:
        detail["should_retry"] = False
    return make_error(service, kind, error.reason, detail=detail, billable=error.stage != "connect")


def _closed_here(service: str, error: ClosedHere) -> ExternalServiceError:
    """Not a failure of either side; what was sent may be billed all the same."""
    closed = ServiceFailed(service, error.reason, kind=Kind.DRAINING, detail={"phase": error.stage})
    closed.billable = error.stage != "connect"
    return closed


def sentence_of(words: str, detail: Mapping[str, Any]) -> str:
    """Our words, and in brackets what a support team asks for."""
    facts = [f"status {detail['status']}"] if detail["status"] != 200 else []
    facts += [str(detail[key]) for key in ("code", "type") if detail[key] is not None]
    if detail.get("param"):
        facts.append(f"parameter {detail['param']}")
    if detail["request_id"]:
        facts.append(f"request {detail['request_id']}")
    return f"{words} ({', '.join(dict.fromkeys(facts))})" if facts else words


def detail_of(parsed: ParsedError) -> dict[str, Any]:
    """What the other side said, as checked short words."""
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
    """A short identifier unchanged, anything else as None: free text may hold a prompt or a key."""
    # A server may repeat anything that it was sent in any field: text that looks like a key is not an identifier
    # either.
    return text if text is not None and _WORD.fullmatch(text) and safe(text) == text else None


# ── waits that a row works out itself ─────────────────────────────────────────────────────────────────────────────────


def until_next_month(parsed: ParsedError, wall_s: float) -> float | None:
    """Monthly limits end at 00:00 UTC on the first day of the next month."""
    now = datetime.fromtimestamp(wall_s, UTC)
    first = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return sensible(first.timestamp() - wall_s)


def until_stated(parsed: ParsedError, wall_s: float) -> float | None:
    """The point in time that the message names: "You will regain access on 2026-12-01 at 00:00 UTC"."""
    return until_said_s(parsed.message[:MESSAGE_MAX], wall_s)
