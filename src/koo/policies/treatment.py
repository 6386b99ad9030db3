"""What follows from each kind of error: one table for all services, as promised to users.

A provider's file only says which of its errors is of which kind. What follows from a kind (repeat it? count it for the
breaker? stop using the key?) is decided here, once. An exception that koo did not raise is judged by its type.
"""

from __future__ import annotations

from dataclasses import dataclass

from koo.errors import (
    AuthenticationFailed,
    ExternalServiceError,
    Failure,
    InvalidRequest,
    Kind,
    KooError,
    RateLimited,
    ServiceFailed,
    ServiceRefused,
    ServiceTimeout,
    StreamTruncated,
)
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED, Fault, Reach, Verdict
from koo.shortages import shortage_in


@dataclass(frozen=True, slots=True)
class Treatment:
    """`error`: the class raised; `billed`: work may have been paid for, so the hold is booked rather than released."""

    error: type[ExternalServiceError]
    verdict: Verdict
    repeatable: bool = False
    block: Reach | None = None
    reach: Reach = "model"
    billed: bool = False


TREATMENTS: dict[Kind, Treatment] = {
    Kind.CONNECTION: Treatment(ServiceFailed, FAILURE, repeatable=True, reach="service"),
    Kind.TIMEOUT: Treatment(ServiceTimeout, FAILURE, repeatable=True, billed=True),
    Kind.OVERLOADED: Treatment(ServiceFailed, FAILURE, repeatable=True),
    Kind.SERVER_ERROR: Treatment(ServiceFailed, FAILURE, repeatable=True),
    Kind.BAD_ANSWER: Treatment(ServiceFailed, FAILURE, repeatable=True, billed=True),
    Kind.TRUNCATED_STREAM: Treatment(StreamTruncated, FAILURE, repeatable=True, billed=True),
    Kind.STALLED: Treatment(StreamTruncated, FAILURE, repeatable=True, billed=True),
    Kind.THROTTLED: Treatment(RateLimited, THROTTLED, repeatable=True),
    Kind.QUOTA: Treatment(RateLimited, THROTTLED, reach="service"),
    Kind.BILLING: Treatment(RateLimited, THROTTLED, reach="service"),
    Kind.AUTH: Treatment(AuthenticationFailed, NEUTRAL, block="service"),
    Kind.PERMISSION: Treatment(AuthenticationFailed, NEUTRAL, block="model"),
    Kind.CONFLICT: Treatment(ServiceFailed, NEUTRAL, repeatable=True),
    Kind.UNKNOWN: Treatment(ServiceFailed, FAILURE),
    Kind.INVALID_REQUEST: Treatment(InvalidRequest, NEUTRAL),
    Kind.CONTEXT_LENGTH: Treatment(InvalidRequest, NEUTRAL),
    Kind.CONTENT_POLICY: Treatment(InvalidRequest, NEUTRAL),
    Kind.NOT_FOUND: Treatment(InvalidRequest, NEUTRAL),
    Kind.TOO_LARGE: Treatment(InvalidRequest, NEUTRAL),
    # A moment later another call may have given back what was missing.
    Kind.OUT_OF_RESOURCES: Treatment(ServiceRefused, NEUTRAL, repeatable=True),
}
"""Kinds that a provider's answer, or the lack of one, can have.

Kinds that only koo raises (circuit_open, deadline, ...) are not in it.
"""


NOT_REPEATED = frozenset({Kind.AUTH, Kind.QUOTA, Kind.BILLING})
"""Whatever a server's `x-should-retry` says: these do not pass by asking again."""


def fault_of(error: ExternalServiceError) -> Fault:
    """The fault for an error of one of these kinds; other kinds are NEUTRAL (our own refusals)."""
    treatment = TREATMENTS.get(error.kind)
    if treatment is None:
        return Fault(verdict=NEUTRAL, kind=error.kind, billed=error.billable is not False)
    return Fault(
        verdict=treatment.verdict,
        kind=error.kind,
        repeatable=_repeatable(error, treatment),
        retry_after_s=error.retry_after_s,
        anew=error.anew,
        reach=treatment.reach,
        block=treatment.block,
        billed=treatment.billed if error.billable is None else error.billable,
    )


def _repeatable(error: ExternalServiceError, treatment: Treatment) -> bool:
    """The server's own word on whether to repeat wins over the table."""
    said = None if error.detail is None else error.detail.get("should_retry")
    return treatment.repeatable if said is None or error.kind in NOT_REPEATED else bool(said)


def out_of_resources(service: str, error: BaseException) -> ServiceRefused:
    """The error for what this process lacks, as `error` says."""
    sentence = shortage_in(error) or "this machine lacks what the call needs"
    refusal = ServiceRefused(service, sentence, kind=Kind.OUT_OF_RESOURCES)
    refusal.billable = False
    return refusal


CALLERS = (TypeError, ValueError, LookupError, AttributeError)
"""Mistakes of the calling code: neutral, never repeated, unchanged."""

LOCAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors of this machine's files: the caller's mistakes too. A socket may raise some of them as well."""

UNREACHABLE = Fault(verdict=FAILURE, kind=Kind.CONNECTION, repeatable=True)
LATE = Fault(verdict=FAILURE, kind=Kind.TIMEOUT, repeatable=True)
MISTAKEN = Fault(verdict=NEUTRAL, kind=Kind.INVALID_REQUEST)
OURS = Fault(verdict=NEUTRAL)
ELSE = Fault(verdict=FAILURE)


def classify_error(error: Exception) -> Fault:
    """The table: koo's errors by kind; `TimeoutError` and a network's `OSError` are failures; the rest as promised."""
    if isinstance(error, ExternalServiceError):
        return fault_of(error)
    if isinstance(error, KooError):
        return OURS
    if isinstance(error, TimeoutError):
        return LATE
    short = shortage_in(error)
    if short is not None:
        return Fault(
            verdict=NEUTRAL,
            kind=Kind.OUT_OF_RESOURCES,
            repeatable=True,
            failure=Failure(Kind.OUT_OF_RESOURCES, short),
        )
    if isinstance(error, OSError):
        return MISTAKEN if isinstance(error, LOCAL) and not _of_socket(error) else UNREACHABLE
    return MISTAKEN if isinstance(error, CALLERS) else ELSE


def _of_socket(error: OSError) -> bool:
    """A file's error names the file; a socket's has only a number: a firewall's EACCES, a missing Unix socket."""
    return error.errno is not None and error.filename is None
