"""The resilience layer for a service that depends on a database and on AI providers: the public names.

Each name is loaded on first use. `import koo` opens nothing, starts nothing and imports nothing heavy. The functions
(`query_ai`, `transactional_with_retry`, …) act on the process's own platform, `koo.platform`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koo.ai.types import Answer, Chunk, Query, Usage
    from koo.ai.usage_price import price_usd
    from koo.bridge import run
    from koo.database.database import Database
    from koo.database.on_commit import on_commit
    from koo.deadlines import Deadline as deadline  # noqa: N813 (used as a verb: `async with koo.deadline(2.5)`)
    from koo.default.database import check_database_health, db_manager, get_session, transactional_with_retry
    from koo.default.monitoring import get_monitoring_dashboard, get_system_alerts, get_system_health
    from koo.default.operations import ai_error_handler, execute_ai_operation, guarded, stream_ai_operation
    from koo.default.platform import platform
    from koo.default.questions import (
        get_ai_service_health,
        get_all_ai_services_health,
        hybrid_ai_manager,
        perform_ai_health_check,
        query_ai,
        query_multiple_ai,
        reset_ai_service_errors,
        reset_all_ai_services_errors,
        stream_ai,
    )
    from koo.default.settings import settings
    from koo.errors import (
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
    from koo.guard import Guard
    from koo.options import (
        BreakerOptions,
        DatabaseOptions,
        GuardOptions,
        LimitOptions,
        PlatformOptions,
        RetryOptions,
        ServiceOptions,
    )
    from koo.platform import Platform
    from koo.settings import Settings
    from koo.web.idempotency import IdempotentRoute, idempotent
    from koo.web.problems import ProblemAnswer, problem_answer
    from koo.web.session_dep import SessionDep

    __version__: str

_PLACES = {
    "AllServicesFailed": "koo.errors",
    "Answer": "koo.ai.types",
    "AuthenticationFailed": "koo.errors",
    "BreakerOptions": "koo.options",
    "BudgetExceeded": "koo.errors",
    "CallerMistake": "koo.errors",
    "Chunk": "koo.ai.types",
    "CircuitOpen": "koo.errors",
    "CommitOutcomeUnknown": "koo.errors",
    "ConfigurationError": "koo.errors",
    "Database": "koo.database.database",
    "DatabaseError": "koo.errors",
    "DatabaseOptions": "koo.options",
    "DatabaseTimeout": "koo.errors",
    "DatabaseUnavailable": "koo.errors",
    "ExternalServiceError": "koo.errors",
    "Guard": "koo.guard",
    "GuardOptions": "koo.options",
    "IdempotencyKeyInUse": "koo.errors",
    "IdempotencyKeyReused": "koo.errors",
    "IdempotentRoute": "koo.web.idempotency",
    "InvalidRequest": "koo.errors",
    "Kind": "koo.errors",
    "KooError": "koo.errors",
    "LimitOptions": "koo.options",
    "NotCommitted": "koo.errors",
    "Platform": "koo.platform",
    "PlatformOptions": "koo.options",
    "PoolSaturated": "koo.errors",
    "PriceUnknown": "koo.errors",
    "ProblemAnswer": "koo.web.problems",
    "Query": "koo.ai.types",
    "RateLimited": "koo.errors",
    "RetryOptions": "koo.options",
    "ServiceFailed": "koo.errors",
    "ServiceOptions": "koo.options",
    "ServiceRefused": "koo.errors",
    "ServiceSaturated": "koo.errors",
    "ServiceTimeout": "koo.errors",
    "SessionDep": "koo.web.session_dep",
    "Settings": "koo.settings",
    "StreamTruncated": "koo.errors",
    "UnknownService": "koo.errors",
    "Usage": "koo.ai.types",
    "ai_error_handler": "koo.default.operations",
    "check_database_health": "koo.default.database",
    "db_manager": "koo.default.database",
    "deadline": "koo.deadlines",
    "execute_ai_operation": "koo.default.operations",
    "get_ai_service_health": "koo.default.questions",
    "get_all_ai_services_health": "koo.default.questions",
    "get_monitoring_dashboard": "koo.default.monitoring",
    "get_session": "koo.default.database",
    "get_system_alerts": "koo.default.monitoring",
    "get_system_health": "koo.default.monitoring",
    "guarded": "koo.default.operations",
    "hybrid_ai_manager": "koo.default.questions",
    "idempotent": "koo.web.idempotency",
    "on_commit": "koo.database.on_commit",
    "perform_ai_health_check": "koo.default.questions",
    "platform": "koo.default.platform",
    "price_usd": "koo.ai.usage_price",
    "problem_answer": "koo.web.problems",
    "query_ai": "koo.default.questions",
    "query_multiple_ai": "koo.default.questions",
    "reset_ai_service_errors": "koo.default.questions",
    "reset_all_ai_services_errors": "koo.default.questions",
    "run": "koo.bridge",
    "settings": "koo.default.settings",
    "stream_ai": "koo.default.questions",
    "stream_ai_operation": "koo.default.operations",
    "transactional_with_retry": "koo.default.database",
}
"""The module of each name; `deadline` is called `Deadline` there."""

__all__ = [
    "AllServicesFailed",
    "Answer",
    "AuthenticationFailed",
    "BreakerOptions",
    "BudgetExceeded",
    "CallerMistake",
    "Chunk",
    "CircuitOpen",
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "Database",
    "DatabaseError",
    "DatabaseOptions",
    "DatabaseTimeout",
    "DatabaseUnavailable",
    "ExternalServiceError",
    "Guard",
    "GuardOptions",
    "IdempotencyKeyInUse",
    "IdempotencyKeyReused",
    "IdempotentRoute",
    "InvalidRequest",
    "Kind",
    "KooError",
    "LimitOptions",
    "NotCommitted",
    "Platform",
    "PlatformOptions",
    "PoolSaturated",
    "PriceUnknown",
    "ProblemAnswer",
    "Query",
    "RateLimited",
    "RetryOptions",
    "ServiceFailed",
    "ServiceOptions",
    "ServiceRefused",
    "ServiceSaturated",
    "ServiceTimeout",
    "SessionDep",
    "Settings",
    "StreamTruncated",
    "UnknownService",
    "Usage",
    "__version__",
    "ai_error_handler",
    "check_database_health",
    "db_manager",
    "deadline",
    "execute_ai_operation",
    "get_ai_service_health",
    "get_all_ai_services_health",
    "get_monitoring_dashboard",
    "get_session",
    "get_system_alerts",
    "get_system_health",
    "guarded",
    "hybrid_ai_manager",
    "idempotent",
    "on_commit",
    "perform_ai_health_check",
    "platform",
    "price_usd",
    "problem_answer",
    "query_ai",
    "query_multiple_ai",
    "reset_ai_service_errors",
    "reset_all_ai_services_errors",
    "run",
    "settings",
    "stream_ai",
    "stream_ai_operation",
    "transactional_with_retry",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _read_version()
    elif name in _PLACES:
        value = getattr(import_module(_PLACES[name]), {"deadline": "Deadline"}.get(name, name))
    else:
        raise AttributeError(f"module 'koo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Names(ModuleType):
    """The class of this module: `koo.platform` and `koo.settings` are objects, although submodules have the same
    names."""

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets a submodule as an attribute of its package when it is first imported. After any import of
        # `koo.settings`, `from koo import settings` would return that module and no longer the settings object.
        if not (isinstance(value, ModuleType) and name in _PLACES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Names


def _read_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slower than the rest of this module

    try:
        return version("koo")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
