"""From what the other side said to an error of koo: the part that all vendors share.

Each vendor's file has a table of `Row`s, read from the top; the first that fits says what happened. Rows with a code or
type come first. Rows that look into a message also name the status and the type that they refine, so that words can
never contradict the status: messages echo prompts, and a prompt about "429" must not look like one. Where nothing fits,
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

from koo.ai.providers.headers import hinted_s, resets_in_s, retry_after_s, sensible
from koo.errors import ExternalServiceError, Kind, ServiceFailed
from koo.http import ClosedHere, TransportError
from koo.policies.treatment import TREATMENTS

SENTENCE_MAX = 300

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
}
"""Our own words for each kind: no sentence of a provider is repeated."""

BY_STATUS: dict[int, Kind] = {
    400: Kind.INVALID_REQUEST,
    401: Kind.AUTH,
    402: Kind.BILLING,
    403: Kind.PERMISSION,
    404: Kind.NOT_FOUND,
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

    `code` is more specific than `type`; `more` holds what some vendors name elsewhere. `message` is for the table's
    eyes only. `counts` are numbers that an error's detail repeats. `until_wall_s`: when the body says that it will
    pass. `shaped`: the body had the vendor's own form, so it was the vendor who spoke and not something on the way.
    """

    status: int
    code: str | None = None
    type: str | None = None
    more: tuple[str, ...] = ()
    message: str = ""
    param: str | None = None
    request_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    until_wall_s: float | None = None
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

    `name`: one of its codes and types. `begins` and `says`: the message begins with, or holds, one of these (lower
    case). `until` works out the wait where the kind has one of its own; `sentence` replaces the kind's.
    """

    kind: Kind
    name: str | tuple[str, ...] = ()
    status: int | tuple[int, ...] = ()
    begins: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    shaped: bool | None = None
    until: Until | None = None
    sentence: str = ""

    def fits(self, parsed: ParsedError, message: str) -> bool:
        return (
            (not self.status or parsed.status in _several(self.status))
            and (not self.name or not _several(self.name).isdisjoint(parsed.names))
            and (self.shaped is None or self.shaped is parsed.shaped)
            and (not self.begins or message.startswith(self.begins))
            and (not self.says or any(words in message for words in self.says))
        )


def _several(one_or_more: object) -> frozenset[object]:
    return frozenset(one_or_more) if isinstance(one_or_more, tuple) else frozenset((one_or_more,))


FORBIDDEN_ON_THE_WAY = Row(
    Kind.INVALID_REQUEST, status=403, shaped=False, sentence="something on the way forbids the request"
)
"""In every vendor's table: a page of a proxy or firewall that forbids is not the vendor's word about the key."""


@dataclass(frozen=True, slots=True)
class FaultTable:
    """A vendor's rows. `vendor` is the name for errors where no service is known."""

    vendor: str
    rows: tuple[Row, ...]

    def find(self, parsed: ParsedError) -> Row:
        """The first row that fits, else the status'."""
        # A message of a megabyte is not a message.
        message = parsed.message[:2000].strip().lower()
        for row in self.rows:
            if row.fits(parsed, message):
                return row
        return Row(kind_of_status(parsed.status))

    def error(
        self, service: str, parsed: ParsedError, wall_s: float, *, billable: bool | None = False
    ) -> ExternalServiceError:
        """The error that it is. `wall_s`: our clock, for dates."""
        row = self.find(parsed)
        wait_s = row.until(parsed, wall_s) if row.until else None
        if wait_s is None and parsed.until_wall_s is not None:
            wait_s = sensible(parsed.until_wall_s - wall_s)
        if wait_s is None:
            wait_s = retry_after_s(parsed.headers, wall_s)
        if wait_s is None and row.kind is Kind.THROTTLED:
            wait_s = hinted_s(parsed.message[:2000]) or resets_in_s(parsed.headers, wall_s)
        detail = detail_of(parsed)
        reason = sentence_of(row.sentence or SENTENCES[row.kind], detail)
        return make_error(service, row.kind, reason, wait_s, detail=detail, billable=billable)


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
    """Nobody spoke at all, or what they said broke off."""
    if isinstance(error, ClosedHere):
        return _closed_here(service, error)
    kind = Kind.BAD_ANSWER if error.stage == "answer" else Kind.CONNECTION
    # What never left cannot be billed; anything else may have been.
    return make_error(
        service, kind, error.reason, detail={"phase": error.stage}, billable=error.stage != "connect"
    )


def _closed_here(service: str, error: ClosedHere) -> ExternalServiceError:
    """Nobody's failure; what was sent may be billed all the same."""
    closed = ServiceFailed(service, error.reason, kind=Kind.DRAINING, detail={"phase": error.stage})
    closed.billable = True
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
    """A short identifier as it is, anything else as None: free text may hold a prompt or a key."""
    return (
        text if text is not None and _WORD.fullmatch(text) and not text.startswith(("sk-", "pplx-")) else None
    )


# ── waits that a row works out itself ─────────────────────────────────────────────────────────────────────────────────

_ON_DATE = re.compile(r"\b(20\d\d-\d\d-\d\d)(?:[t ]+(?:at )?(\d\d:\d\d))?", re.IGNORECASE)


def until_next_month(parsed: ParsedError, wall_s: float) -> float | None:
    """Monthly limits end at 00:00 UTC on the first day of the next month."""
    now = datetime.fromtimestamp(wall_s, UTC)
    first = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return sensible(first.timestamp() - wall_s)


def until_stated(parsed: ParsedError, wall_s: float) -> float | None:
    """The point in time that the message names: "You will regain access on 2026-12-01 at 00:00 UTC"."""
    found = _ON_DATE.search(parsed.message[:2000])
    if found is None:
        return None
    try:
        point = datetime.fromisoformat(f"{found[1]}T{found[2] or '00:00'}:00+00:00")
    except ValueError:
        return None
    return sensible(point.timestamp() - wall_s)
