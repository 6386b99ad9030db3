"""The settings of this process.

    from core.config import settings
    settings.database_pool_size, settings.ai_max_retries, settings.ai_default_daily_budget

`settings` is read when the name is first asked for: from the environment, then from the `.env` in `KOO_HOME`, else each
variable has its default. An attribute is the variable's name in small letters: `DATABASE_POOL_SIZE` is
`settings.database_pool_size`. Durations are seconds, money is `Decimal` USD, None is no limit; keys, tokens and URLs of
databases are `SecretStr`, so that nothing shows them by accident.

A value that cannot be right raises `koo.ConfigurationError`, whose sentence names the variable, what it holds and what
is allowed. `settings.explain()`, like `koo config`, tells where each value came from. All variables are listed in
`docs/configuration.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import koo
from koo import Settings

if TYPE_CHECKING:
    from koo import settings

__all__ = ["Settings", "settings"]


def __getattr__(name: str) -> Any:
    if name != "settings":
        raise AttributeError(f"module 'core.config' has no attribute {name!r}")
    globals()[name] = koo.settings
    return globals()[name]
