"""What an exception means: the promised treatment of a user's own operation, and the judge of koo's own errors.

An error of koo's own says itself what it is (`fault_of`); one that koo did not raise is judged by its type.
"""

from __future__ import annotations

from koo.errors import ExternalServiceError, Kind, KooError
from koo.policies.treatment import fault_of
from koo.policies.verdict import FAILURE, NEUTRAL, Fault

CALLERS = (TypeError, ValueError, LookupError, AttributeError)
"""Mistakes of the code that calls: neutral, never repeated, unchanged."""

UNREACHABLE = Fault(verdict=FAILURE, kind=Kind.CONNECTION, repeatable=True)
LATE = Fault(verdict=FAILURE, kind=Kind.TIMEOUT, repeatable=True)
MISTAKEN = Fault(verdict=NEUTRAL, kind=Kind.INVALID_REQUEST)
OURS = Fault(verdict=NEUTRAL)
ELSE = Fault(verdict=FAILURE)


def classify_foreign(error: Exception) -> Fault:
    """The table: errors of koo by their kind, `TimeoutError` and `OSError` are failures, the rest as promised."""
    if isinstance(error, ExternalServiceError):
        return fault_of(error)
    if isinstance(error, KooError):
        return OURS
    if isinstance(error, TimeoutError):
        return LATE
    if isinstance(error, OSError):
        return UNREACHABLE
    return MISTAKEN if isinstance(error, CALLERS) else ELSE
