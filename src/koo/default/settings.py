"""The settings of this process, read when the name is first accessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from koo.settings import Settings

if TYPE_CHECKING:
    settings: Settings

__all__ = ["settings"]


def __getattr__(name: str) -> Settings:
    if name != "settings":
        raise AttributeError(f"module 'koo.default.settings' has no attribute {name!r}")
    globals()[name] = read = Settings()
    return read
