"""Errors, grouped by fault: koo refused the call, the dependency failed, or the caller made a mistake.

Every error is a small new object with the same few attributes to program against: `service`, `kind`, `retry_after_s`,
`attempts`. Its sentence is built only when it is read, because most refusals are counted and discarded. A sentence
never contains a prompt, a key, a password or a DSN. What the dependency reported is kept, cleaned, in `detail`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class Kind(StrEnum):
    """What happened, in one word. `koo.policies.treatment` defines how each kind is treated."""

    # koo refused the call
    CIRCUIT_OPEN = "circuit_open"
    RATE_LIMITED = "rate_limited"
    BUDGET_EXCEEDED = "budget_exceeded"
    SATURATED = "saturated"
    COOLING_DOWN = "cooling_down"
    KEY_REFUSED = "key_refused"
    DRAINING = "draining"
    STORE_UNAVAILABLE = "store_unavailable"
    OUT_OF_RESOURCES = "out_of_resources"
    # the dependency failed
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    BAD_ANSWER = "bad_answer"
    TRUNCATED_STREAM = "truncated_stream"
    STALLED = "stalled"
    THROTTLED = "throttled"
    QUOTA = "quota"
    BILLING = "billing"
    AUTH = "auth"
    PERMISSION = "permission"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"
    # the caller's mistake
    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH = "context_length"
    CONTENT_POLICY = "content_policy"
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    NOT_CONFIGURED = "not_configured"
    UNKNOWN_SERVICE = "unknown_service"
    PRICE_UNKNOWN = "price_unknown"
    # without fault: the caller's own deadline; several services failed
    DEADLINE = "deadline"
    ALL_FAILED = "all_failed"
    # databases
    CONTENTION = "contention"
    INTEGRITY = "integrity"
    READ_ONLY = "read_only"
    OUTCOME_UNKNOWN = "outcome_unknown"
    CANCELLED = "cancelled"


NAME_MAX = 64


class Cause(StrEnum):
    """Which of koo's own limits, or which state of a budget, refused a call: `kind` is the same for several of them."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    REQUESTS_PER_HOUR = "requests_per_hour"
    REQUESTS_PER_DAY = "requests_per_day"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    BUDGET_USED_UP = "budget_used_up"
    BUDGET_TOO_SMALL = "budget_too_small"


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of a call or check: `kind`, the HTTP `status` (None: no response with one arrived), a sentence, a
    time.

    `sentence` is one line without addresses, keys or prompts; `code` is the dependency's own code (an
    SQLSTATE, "api_error") or None; `at` is in wall seconds.
    """

    kind: Kind
    sentence: str
    status: int | None = None
    code: str | None = None
    at: float = 0.0

    @property
    def brief(self) -> str:
        """A short form: "status 500, api_error"; without a status, the sentence."""
        if self.status is None:
            return self.sentence
        return f"status {self.status}, {self.code}" if self.code else f"status {self.status}"


class KooError(Exception):
    """Base of everything koo raises on purpose.

    `service`: what it is about; `reason`: a sentence without secrets; `retry_after_s`: when to try again, in seconds,
    or None if unknown; `attempts`: calls that reached the dependency; `detail`: what it reported.
    `not_repeated`: why a call that might have been repeated was not; empty if no repeat was expected. `last_error`: for
    a refusal that is caused by earlier calls, the failure of the last of them. `cause`: for a refusal by koo's own
    limit or budget, which one; None if it is neither.
    """

    kind: Kind = Kind.UNKNOWN
    not_repeated: str = ""
    last_error: Failure | None = None
    cause: Cause | None = None

    def __init__(
        self,
        service: str,
        reason: str,
        retry_after_s: float | None = None,
        *,
        kind: Kind | None = None,
        cause: Cause | None = None,
        attempts: int = 0,
        detail: dict[str, Any] | None = None,
    ) -> None:
        self.service = service
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.attempts = attempts
        self.detail = detail
        if kind is not None:
            self.kind = kind
        if cause is not None:
            self.cause = cause

    def __str__(self) -> str:
        sentence = f"{self.service}: {self.reason}"
        if self.not_repeated:
            sentence += f", and is not repeated: {self.not_repeated}"
        if self.attempts > 1:
            sentence += f" (after {self.attempts} attempts)"
        if self.retry_after_s is not None and self.retry_after_s > 0:
            sentence += f"; try again in {describe_wait_s(self.retry_after_s)}"
        return sentence

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled between processes. The default would call __init__ with `args` and lose everything
        # else.
        return (_revive, (type(self), self.args, dict(self.__dict__)))


def _revive(cls: type[KooError], args: tuple[Any, ...], state: dict[str, Any]) -> KooError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


def name_of(given: object) -> str:
    """The service name that a caller passed, made safe for an error: printable on every terminal, never a prompt.

    A caller that swaps the service and the prompt would otherwise find the prompt in its log.
    """
    text = given if isinstance(given, str) else f"<{type(given).__name__}>"
    if len(text) > NAME_MAX or len(text.split()) > 1:
        return "…"
    return text.encode(errors="replace").decode() or '""'


def describe_s(seconds: float) -> str:
    """A duration for people: "0.4 s", "12 s", "5 min", "3 h 20 min", "2 days"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 86_400:.0f} days"


def describe_wait_s(seconds: float) -> str:
    """Like `describe_s`, rounded up: a caller that waits for this long must not return too early."""
    if not math.isfinite(seconds):
        return "an unknown time"
    # Rounded up to whole minutes, 121 s would become "3 min", and the caller would wait half as long again.
    if 120 <= seconds <= 300:
        return f"{math.ceil(seconds - 1e-6)} s"
    unit_s = 0.1 if seconds < 10 else 1 if seconds < 120 else 60 if seconds < 172_800 else 86_400
    return describe_s(math.ceil(seconds / unit_s - 1e-6) * unit_s)


class ConfigurationError(KooError):
    """An invalid setting. The sentence names the variable, its value and the allowed values."""

    kind = Kind.NOT_CONFIGURED

    def __str__(self) -> str:
        return f"{self.service}: {self.reason}" if self.service else self.reason


# ── external services ─────────────────────────────────────────────────────────────────────────────────────────────


class ExternalServiceError(KooError):
    """Base of everything `query_ai` raises on purpose.

    `billable`: whether the service may have done paid work although it failed; None: as is usual for the kind. `anew`:
    the refusal has shown which form the service accepts, so the same call may succeed immediately. `partial_text`: the
    text that a stream delivered before it broke off.
    """

    billable: bool | None = None
    anew: bool = False
    partial_text: str = ""


class ServiceRefused(ExternalServiceError):
    """koo refused the call: the service was not called. `instead`: the service that an operator's budget names in its
    place."""

    instead: str | None = None


class CircuitOpen(ServiceRefused):
    """The circuit breaker is open, or other calls are testing its recovery."""

    kind = Kind.CIRCUIT_OPEN


class RateLimited(ServiceRefused):
    """A limit is reached: koo's (`kind` rate_limited, no call) or the provider's (throttled, cooling_down, quota)."""

    kind = Kind.RATE_LIMITED


class BudgetExceeded(ServiceRefused):
    """A budget does not cover the worst case of this call."""

    kind = Kind.BUDGET_EXCEEDED


class ServiceSaturated(ServiceRefused):
    """All slots are taken, and the queue is full or the deadline is too near."""

    kind = Kind.SATURATED


class ServiceFailed(ExternalServiceError):
    """The service failed: unreachable, overloaded, a server error, or an unreadable response."""

    kind = Kind.SERVER_ERROR


class ServiceTimeout(ServiceFailed, TimeoutError):
    """No response in time: within an attempt (`kind` timeout), or before the whole call's deadline (`kind`
    deadline)."""

    kind = Kind.TIMEOUT


class StreamTruncated(ServiceFailed):
    """A stream that broke off or stalled after content was delivered. `partial_text` is that content."""

    kind = Kind.TRUNCATED_STREAM


class AuthenticationFailed(ServiceFailed):
    """The provider refused the key (or the account cannot pay): no query is sent until it works again."""

    kind = Kind.AUTH


class CallerMistake(ExternalServiceError):
    """The caller's own mistake: repeating the call unchanged cannot help."""

    kind = Kind.INVALID_REQUEST


class InvalidRequest(CallerMistake):
    """The request is invalid: empty, too long, an unknown model, or content the provider does not accept."""


class UnknownService(CallerMistake, LookupError):
    """No service of that name; the sentence lists the known ones."""

    kind = Kind.UNKNOWN_SERVICE


class PriceUnknown(CallerMistake):
    """The price of the model is unknown, so no budget can be enforced: set PRICE_AS, or both prices, for the
    service."""

    kind = Kind.PRICE_UNKNOWN


class AllServicesFailed(ExternalServiceError, ExceptionGroup[ExternalServiceError]):
    """Every service that was tried refused or failed. `exceptions` has each reason, in order."""

    kind = Kind.ALL_FAILED

    def __new__(cls, message: str, exceptions: Sequence[ExternalServiceError]) -> Self:
        # This is a copy: `args`, from which an error is pickled, would otherwise change with the caller's own list.
        return super().__new__(cls, message, tuple(exceptions))

    def __init__(self, message: str, exceptions: Sequence[ExternalServiceError]) -> None:
        waits = [e.retry_after_s for e in exceptions if e.retry_after_s is not None]
        attempts = sum(e.attempts for e in exceptions)
        names = ", ".join(e.service for e in exceptions)
        super().__init__(names, message, min(waits, default=None), attempts=attempts)

    def __str__(self) -> str:
        return f"{self.reason}: " + " | ".join(str(e) for e in self.exceptions)

    def derive(self, excs: Sequence[ExternalServiceError]) -> AllServicesFailed:  # type: ignore[override]
        return AllServicesFailed(self.reason, excs)


# ── databases ─────────────────────────────────────────────────────────────────────────────────────────────────────


class DatabaseError(KooError):
    """Base of what koo itself raises about a database; errors of statements stay SQLAlchemy's own.

    `server`: its `host`, `port` and `name`, never a user or a password. `answers_since`: since when (ISO 8601) koo's
    own probe has succeeded again, if callers are still refused. `logged`: the scope in which it occurred has logged it,
    so an outer scope does not log it again.
    """

    server: Mapping[str, object] | None = None
    answers_since: str | None = None
    logged = False


class DatabaseUnavailable(DatabaseError):
    """The database cannot be used now: an open breaker refuses, it is unreachable, or the deadline is too near."""

    kind = Kind.CIRCUIT_OPEN


class PoolSaturated(DatabaseError):
    """All connections are in use and none became free in time. The database itself may be healthy."""

    kind = Kind.SATURATED


class DatabaseTimeout(DatabaseUnavailable, TimeoutError):
    """The scope's deadline passed."""

    kind = Kind.DEADLINE


class CommitOutcomeUnknown(DatabaseError):
    """The connection was lost during COMMIT: the transaction may or may not have happened, so it was not run again.

    `key`: the key of its marker, if it had one: the row in `koo_markers` shows the outcome once the database is back.
    """

    kind = Kind.OUTCOME_UNKNOWN
    key: str | None = None


class NotCommitted(DatabaseError):
    """The connection was lost during COMMIT, and the transaction did not commit: nothing was written."""

    kind = Kind.CONNECTION


class IdempotencyKeyReused(DatabaseError):
    """The idempotency key belongs to another operation, or to the same one with other arguments."""

    kind = Kind.INVALID_REQUEST


class IdempotencyKeyInUse(DatabaseError):
    """An operation with this idempotency key is still running."""

    kind = Kind.CONFLICT
