"""The resilience layer of a service that stands on a database and on AI providers: the public names.

Each is loaded when it is first used. `import koo` opens nothing, starts nothing and imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koo.ai.types import Answer, Chunk, Query, Usage
    from koo.bridge import run
    from koo.database.database import Database
    from koo.deadlines import Deadline as deadline  # noqa: N813 (used as a verb: `async with koo.deadline(2.5)`)
    from koo.errors import (
        AllServicesFailed,
        AuthenticationFailed,
        BudgetExceeded,
        CircuitOpen,
        CommitOutcomeUnknown,
        ConfigurationError,
        DatabaseUnavailable,
        ExternalServiceError,
        InvalidRequest,
        Kind,
        KooError,
        PoolSaturated,
        PriceUnknown,
        RateLimited,
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
    from koo.web.problems import ProblemAnswer, problem_answer

    __version__: str

_PLACES = {
    "AllServicesFailed": "koo.errors",
    "Answer": "koo.ai.types",
    "AuthenticationFailed": "koo.errors",
    "BreakerOptions": "koo.options",
    "BudgetExceeded": "koo.errors",
    "Chunk": "koo.ai.types",
    "CircuitOpen": "koo.errors",
    "CommitOutcomeUnknown": "koo.errors",
    "ConfigurationError": "koo.errors",
    "Database": "koo.database.database",
    "DatabaseOptions": "koo.options",
    "DatabaseUnavailable": "koo.errors",
    "ExternalServiceError": "koo.errors",
    "Guard": "koo.guard",
    "GuardOptions": "koo.options",
    "InvalidRequest": "koo.errors",
    "Kind": "koo.errors",
    "KooError": "koo.errors",
    "LimitOptions": "koo.options",
    "Platform": "koo.platform",
    "PlatformOptions": "koo.options",
    "PoolSaturated": "koo.errors",
    "PriceUnknown": "koo.errors",
    "ProblemAnswer": "koo.web.problems",
    "Query": "koo.ai.types",
    "RateLimited": "koo.errors",
    "RetryOptions": "koo.options",
    "ServiceOptions": "koo.options",
    "ServiceTimeout": "koo.errors",
    "Settings": "koo.settings",
    "StreamTruncated": "koo.errors",
    "UnknownService": "koo.errors",
    "Usage": "koo.ai.types",
    "deadline": "koo.deadlines",
    "problem_answer": "koo.web.problems",
    "run": "koo.bridge",
}
"""Where each name is; `deadline` is called `Deadline` there."""

__all__ = [
    "AllServicesFailed",
    "Answer",
    "AuthenticationFailed",
    "BreakerOptions",
    "BudgetExceeded",
    "Chunk",
    "CircuitOpen",
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "Database",
    "DatabaseOptions",
    "DatabaseUnavailable",
    "ExternalServiceError",
    "Guard",
    "GuardOptions",
    "InvalidRequest",
    "Kind",
    "KooError",
    "LimitOptions",
    "Platform",
    "PlatformOptions",
    "PoolSaturated",
    "PriceUnknown",
    "ProblemAnswer",
    "Query",
    "RateLimited",
    "RetryOptions",
    "ServiceOptions",
    "ServiceTimeout",
    "Settings",
    "StreamTruncated",
    "UnknownService",
    "Usage",
    "__version__",
    "deadline",
    "problem_answer",
    "run",
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


def _read_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slower than all the rest of this module

    try:
        return version("koo")
    except PackageNotFoundError:  # a source tree on the path, never installed
        return "0+unknown"
