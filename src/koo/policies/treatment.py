"""How each kind of error is treated: one table for all services, as promised to users.

A provider's module only maps its errors to kinds. The treatment of a kind (whether to repeat the call, count it for the
breaker, or stop using the key) is decided here, once. An exception that koo did not raise is judged by its type.
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
    """`error`: the class to raise; `billed`: the call may be billed, so its hold is booked instead of released."""

    error: type[ExternalServiceError]
    verdict: Verdict
    repeatable: bool = False
    block: Reach | None = None
    reach: Reach = "model"
    billed: bool = False


# `billed`: after a timeout, an unreadable response or a broken stream, the provider may have done the work and will
# bill it. If the hold were released instead of booked, a budget could be exceeded by failed calls alone. `reach`: a
# host that cannot be reached, or an account without credit, fails for all of a service's models.
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
    # A moment later, another call may have released what was missing.
    Kind.OUT_OF_RESOURCES: Treatment(ServiceRefused, NEUTRAL, repeatable=True),
}
"""The kinds of error that a provider's response, or its absence, can have.

Kinds that only koo itself raises (circuit_open, deadline, ...) are not in the table.
"""


NOT_REPEATED = frozenset({Kind.AUTH, Kind.QUOTA, Kind.BILLING})
"""Kinds that are never repeated, even if the server's `x-should-retry` says so: a repeat cannot succeed."""


def fault_of(error: ExternalServiceError) -> Fault:
    """The fault for an error of a kind in the table; any other kind is one of koo's own refusals, and NEUTRAL."""
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
    """Whether a repeat may succeed. The server's own statement about that takes precedence over the table."""
    said = None if error.detail is None else error.detail.get("should_retry")
    return treatment.repeatable if said is None or error.kind in NOT_REPEATED else bool(said)


def out_of_resources(service: str, error: BaseException) -> ServiceRefused:
    """The error for a resource that this process lacks, as `error` names it."""
    sentence = shortage_in(error) or "this machine lacks a resource that the call needs"
    refusal = ServiceRefused(service, sentence, kind=Kind.OUT_OF_RESOURCES)
    refusal.billable = False
    return refusal


CALLERS = (TypeError, ValueError, LookupError, AttributeError)
"""Mistakes of the calling code: neutral, never repeated, unchanged."""

LOCAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors about files of this machine, which are the caller's mistakes too. Sockets may raise some of them as well."""

UNREACHABLE = Fault(verdict=FAILURE, kind=Kind.CONNECTION, repeatable=True)
LATE = Fault(verdict=FAILURE, kind=Kind.TIMEOUT, repeatable=True)
MISTAKEN = Fault(verdict=NEUTRAL, kind=Kind.INVALID_REQUEST)
OURS = Fault(verdict=NEUTRAL)
ELSE = Fault(verdict=FAILURE)


def classify_error(error: Exception) -> Fault:
    """The fault for any exception: koo's errors by kind, `TimeoutError` and network errors as failures, and the
    caller's mistakes (`CALLERS`, `LOCAL`) as neutral."""
    if isinstance(error, ExternalServiceError):
        return fault_of(error)
    if isinstance(error, KooError):
        return OURS
    if isinstance(error, TimeoutError):
        return LATE
    # This is checked before `OSError`: an exhausted resource of this machine (no free file descriptor, no memory) is an
    # `OSError` too, and must not open the breaker of a service that was never reached.
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
    """Whether an `OSError` comes from a socket: an error about a file names the file, one about a socket does not."""
    return error.errno is not None and error.filename is None
