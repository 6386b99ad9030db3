"""The exceptions, by whose fault they are.

* koo refused the call, and the service was not called: `CircuitOpen`, `RateLimited`, `BudgetExceeded`,
  `ServiceSaturated`.
* The service failed: `ServiceFailed`, with its subclasses `ServiceTimeout`, `StreamTruncated` and
  `AuthenticationFailed`.
* The caller made a mistake: `InvalidRequest`, `UnknownService`, `PriceUnknown`.
* Every service of a fallback chain refused or failed: `AllServicesFailed`; `exceptions` has the reason of each.

All of these are `ExternalServiceError`. The database raises `DatabaseUnavailable`, `DatabaseTimeout`, `PoolSaturated`
and `CommitOutcomeUnknown`; errors of statements remain SQLAlchemy's own.

`str(error)` is one sentence that a person can act on. For programs there are `error.service`, `error.kind`,
`error.retry_after_s` (seconds, or None if unknown) and `error.attempts`. Kinds and statuses: `docs/errors.md`.
"""

from __future__ import annotations

from koo import (
    AllServicesFailed,
    AuthenticationFailed,
    BudgetExceeded,
    CallerMistake,
    CircuitOpen,
    CommitOutcomeUnknown,
    ConfigurationError,
    DatabaseError,
    DatabaseTimeout,
    DatabaseUnavailable,
    ExternalServiceError,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    InvalidRequest,
    Kind,
    KooError,
    NotCommitted,
    PoolSaturated,
    PriceUnknown,
    RateLimited,
    ServiceFailed,
    ServiceRefused,
    ServiceSaturated,
    ServiceTimeout,
    StreamTruncated,
    UnknownService,
)

__all__ = [
    "AllServicesFailed",
    "AuthenticationFailed",
    "BudgetExceeded",
    "CallerMistake",
    "CircuitOpen",
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "DatabaseError",
    "DatabaseTimeout",
    "DatabaseUnavailable",
    "ExternalServiceError",
    "IdempotencyKeyInUse",
    "IdempotencyKeyReused",
    "InvalidRequest",
    "Kind",
    "KooError",
    "NotCommitted",
    "PoolSaturated",
    "PriceUnknown",
    "RateLimited",
    "ServiceFailed",
    "ServiceRefused",
    "ServiceSaturated",
    "ServiceTimeout",
    "StreamTruncated",
    "UnknownService",
]
