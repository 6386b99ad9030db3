"""The errors with which each kind of dependency refuses, and which refusals follow from what the other side did."""

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
"""Refusals by our own limits: the other side's last error has nothing to do with them."""


@dataclass(frozen=True, slots=True)
class Family:
    """The errors with which one kind of dependency refuses."""

    circuit_open: type[KooError]
    limited: type[KooError]
    saturated: type[KooError]
    timeout: type[KooError]
    key_blocked: type[KooError]


SERVICES = Family(CircuitOpen, RateLimited, ServiceSaturated, ServiceTimeout, AuthenticationFailed)
DATABASES = Family(DatabaseUnavailable, PoolSaturated, PoolSaturated, DatabaseTimeout, DatabaseUnavailable)


def not_begun(service: str) -> ServiceRefused:
    """The refusal of a call that would only begin while koo is closing."""
    reason = "it was not started, because koo is closing"
    return ServiceRefused(service, reason, kind=Kind.DRAINING)
