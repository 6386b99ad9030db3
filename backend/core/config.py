"""The settings of this process.

    from core.config import settings
    settings.database_pool_size, settings.ai_max_retries, settings.ai_default_daily_budget

The settings are read when the name `settings` is first used. The environment takes precedence over the `.env` in
`KOO_HOME`; other variables have their defaults. An attribute has the variable's name in lower case:
`DATABASE_POOL_SIZE` is `settings.database_pool_size`. Durations are seconds, money is `Decimal` USD, and None means no
limit. Keys, tokens and database URLs are `SecretStr`, so that they are never shown by accident.

An invalid value raises `koo.ConfigurationError`; its message names the variable, its value and the allowed values.
`settings.explain()`, like `koo config`, shows where each value comes from. All variables are listed in
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
