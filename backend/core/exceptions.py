"""What can go wrong, by whose fault.

* Refused by us, the service was not asked: `CircuitOpen`, `RateLimited`, `BudgetExceeded`, `ServiceSaturated`.
* Failed by them: `ServiceFailed`, and of it `ServiceTimeout`, `StreamTruncated`, `AuthenticationFailed`.
* The caller's own mistake: `InvalidRequest`, `UnknownService`, `PriceUnknown`.
* `AllServicesFailed`: each service that was asked refused or failed; `exceptions` holds the reason of each.

All of these are `ExternalServiceError`. The database has `DatabaseUnavailable`, `DatabaseTimeout`, `PoolSaturated` and
`CommitOutcomeUnknown`; errors of statements stay SQLAlchemy's own.

`str(error)` is one sentence that a person can act on. `error.service`, `error.kind`, `error.retry_after_s` (seconds, or
None where nobody knows) and `error.attempts` are there to program against. Kinds and statuses: `docs/errors.md`.
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
