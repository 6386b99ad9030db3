"""The error classes of refusals for each kind of dependency, and which refusals are caused by koo's own limits."""

from __future__ import annotations

from dataclasses import dataclass

from koo.errors import (
    AuthenticationFailed,
    CircuitOpen,
    DatabaseTimeout,
    DatabaseUnavailable,
    Kind,
    KooError,
    PoolSaturated,
    RateLimited,
    ServiceRefused,
    ServiceSaturated,
    ServiceTimeout,
)

OURS = frozenset({Kind.RATE_LIMITED, Kind.BUDGET_EXCEEDED, Kind.SATURATED, Kind.DEADLINE})
"""Refusals by koo's own limits: the dependency's last error is unrelated to them."""


@dataclass(frozen=True, slots=True)
class Family:
    """The error classes of one kind of dependency's refusals."""

    circuit_open: type[KooError]
    limited: type[KooError]
    saturated: type[KooError]
    timeout: type[KooError]
    key_blocked: type[KooError]


SERVICES = Family(CircuitOpen, RateLimited, ServiceSaturated, ServiceTimeout, AuthenticationFailed)
DATABASES = Family(DatabaseUnavailable, PoolSaturated, PoolSaturated, DatabaseTimeout, DatabaseUnavailable)


def not_begun(service: str) -> ServiceRefused:
    """The refusal of a call that had not started when koo began to close."""
    reason = "it was not started, because koo is closing"
    return ServiceRefused(service, reason, kind=Kind.DRAINING)
