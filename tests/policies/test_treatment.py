"""The promised treatment of each kind of error, and of exceptions that koo did not raise."""

from __future__ import annotations

import errno
import json
import socket
import ssl

import pytest

from koo.errors import (
    AllServicesFailed,
    AuthenticationFailed,
    BudgetExceeded,
    CircuitOpen,
    DatabaseUnavailable,
    ExternalServiceError,
    InvalidRequest,
    Kind,
    PoolSaturated,
    RateLimited,
    ServiceFailed,
    ServiceRefused,
    ServiceTimeout,
    StreamTruncated,
)
from koo.policies.treatment import TREATMENTS, classify_error, fault_of
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED, Verdict


class NotOurs(Exception):
    """An exception that koo does not know."""


def json_error() -> Exception:
    try:
        json.loads("{")
    except ValueError as error:
        return error
    raise AssertionError


FOREIGN: list[tuple[Exception, Verdict, bool]] = [
    # OSError and TimeoutError are failures, repeated if the operation is declared idempotent.
    (OSError("no route to host"), FAILURE, True),
    (ConnectionResetError("reset"), FAILURE, True),
    (ConnectionRefusedError("refused"), FAILURE, True),
    (BrokenPipeError("broken"), FAILURE, True),
    (socket.gaierror("unknown host"), FAILURE, True),
    (ssl.SSLError("handshake"), FAILURE, True),
    (TimeoutError("slow"), FAILURE, True),
    # The caller's own mistakes: neutral.
    (TypeError("one argument too many"), NEUTRAL, False),
    (ValueError("negative"), NEUTRAL, False),
    (json_error(), NEUTRAL, False),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), NEUTRAL, False),
    (LookupError("x"), NEUTRAL, False),
    (KeyError("x"), NEUTRAL, False),
    (IndexError("x"), NEUTRAL, False),
    (AttributeError("x"), NEUTRAL, False),
    # A resource that this machine lacks is not a failure of the dependency, and may be free a moment later.
    (OSError(errno.EMFILE, "Too many open files"), NEUTRAL, True),
    (OSError(errno.ENFILE, "Too many open files in system"), NEUTRAL, True),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), NEUTRAL, True),
    (MemoryError(), NEUTRAL, True),
    (RuntimeError("can't start new thread"), NEUTRAL, True),
    # Any other exception is a failure, and is not repeated.
    (NotOurs("x"), FAILURE, False),
    (RuntimeError("x"), FAILURE, False),
    (ArithmeticError("x"), FAILURE, False),
    (EOFError("x"), FAILURE, False),
    (AssertionError("x"), FAILURE, False),
    (ExceptionGroup("x", [OSError("x")]), FAILURE, False),
    # koo's own refusals (by a nested guard, for example) say nothing about this dependency.
    (CircuitOpen("b", "open"), NEUTRAL, False),
    (RateLimited("b", "koo's limit", kind=Kind.RATE_LIMITED), NEUTRAL, False),
    (BudgetExceeded("b", "spent"), NEUTRAL, False),
    (ServiceTimeout("b", "deadline", kind=Kind.DEADLINE), NEUTRAL, False),
    (DatabaseUnavailable("db", "open"), NEUTRAL, False),
    (PoolSaturated("db", "full"), NEUTRAL, False),
    (AllServicesFailed("no service answered", [ServiceFailed("a", "down")]), NEUTRAL, False),
    # koo's errors about the dependency count as what they report.
    (ServiceFailed("b", "unreachable", kind=Kind.CONNECTION), FAILURE, True),
    (ServiceTimeout("b", "slow"), FAILURE, True),
    (RateLimited("b", "429", 3.0, kind=Kind.THROTTLED), THROTTLED, True),
    (RateLimited("b", "spent", kind=Kind.QUOTA), THROTTLED, False),
    (AuthenticationFailed("b", "401"), NEUTRAL, False),
    (InvalidRequest("b", "400"), NEUTRAL, False),
]


@pytest.mark.parametrize(
    ("error", "verdict", "repeatable"), FOREIGN, ids=[repr(one[0])[:70] for one in FOREIGN]
)
def test_an_exception_of_a_users_own_operation_has_its_verdict_and_is_raised_unchanged(
    error: Exception, verdict: Verdict, repeatable: bool
) -> None:
    fault = classify_error(error)
    assert (fault.verdict, fault.repeatable) == (verdict, repeatable)
    assert fault.error is None, "it is raised unchanged"


PROMISED: list[tuple[Kind, type[ExternalServiceError], Verdict, bool]] = [
    (Kind.AUTH, AuthenticationFailed, NEUTRAL, False),  # key refused: never retried
    (Kind.PERMISSION, AuthenticationFailed, NEUTRAL, False),
    (Kind.THROTTLED, RateLimited, THROTTLED, True),  # waits as long as the provider requests
    (Kind.TIMEOUT, ServiceTimeout, FAILURE, True),  # timeout, connection: retried with backoff
    (Kind.CONNECTION, ServiceFailed, FAILURE, True),
    (Kind.QUOTA, RateLimited, THROTTLED, False),  # quota used up: never retried
    (Kind.BILLING, RateLimited, THROTTLED, False),
    (
        Kind.OVERLOADED,
        ServiceFailed,
        FAILURE,
        True,
    ),  # unavailable, overloaded: retried, counts for the breaker
    (Kind.SERVER_ERROR, ServiceFailed, FAILURE, True),
    (Kind.BAD_ANSWER, ServiceFailed, FAILURE, True),
    (Kind.TRUNCATED_STREAM, StreamTruncated, FAILURE, True),
    (Kind.STALLED, StreamTruncated, FAILURE, True),
    (Kind.CONFLICT, ServiceFailed, NEUTRAL, True),
    (Kind.UNKNOWN, ServiceFailed, FAILURE, False),
    (Kind.INVALID_REQUEST, InvalidRequest, NEUTRAL, False),
    (Kind.CONTEXT_LENGTH, InvalidRequest, NEUTRAL, False),
    (Kind.CONTENT_POLICY, InvalidRequest, NEUTRAL, False),
    (Kind.NOT_FOUND, InvalidRequest, NEUTRAL, False),
    (Kind.TOO_LARGE, InvalidRequest, NEUTRAL, False),
    (Kind.OUT_OF_RESOURCES, ServiceRefused, NEUTRAL, True),
]


@pytest.mark.parametrize(
    ("kind", "error", "verdict", "repeatable"), PROMISED, ids=[one[0].value for one in PROMISED]
)
def test_a_kind_is_treated_as_promised(
    kind: Kind, error: type[ExternalServiceError], verdict: Verdict, repeatable: bool
) -> None:
    treatment = TREATMENTS[kind]
    assert (treatment.error, treatment.verdict, treatment.repeatable) == (error, verdict, repeatable)
    assert not (treatment.repeatable and treatment.block), "a blocked key is not tried again immediately"


def test_every_kind_with_a_treatment_is_in_the_table_of_promises() -> None:
    assert {one[0] for one in PROMISED} == set(TREATMENTS)


def test_a_fault_carries_the_servers_hint_and_what_was_billed() -> None:
    error = RateLimited("b", "429", 7.5, kind=Kind.THROTTLED)
    assert fault_of(error).retry_after_s == 7.5
    cut = StreamTruncated("b", "cut off")
    assert fault_of(cut).billed and not fault_of(ServiceFailed("b", "down", kind=Kind.CONNECTION)).billed
    cut.billable = False
    assert not fault_of(cut).billed, "unless the provider reports it"


def test_only_a_refused_key_is_blocked_and_an_unreachable_host_counts_for_all_models() -> None:
    blocked = {kind: treatment.block for kind, treatment in TREATMENTS.items() if treatment.block}
    assert blocked == {Kind.AUTH: "service", Kind.PERMISSION: "model"}
    assert {kind for kind, treatment in TREATMENTS.items() if treatment.reach == "service"} == {
        Kind.CONNECTION,
        Kind.QUOTA,
        Kind.BILLING,
    }
