"""The peers' packages: where they are installed, in which versions, and why one is missing.

Most run in koo's own environment. LiteLLM requires an older openai than koo's tests use. So it and TensorZero have a
separate environment inside `.venv`, which `make bench` creates, and run there in separate processes.

This module runs under both Pythons, so it uses only the standard library.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

APART = Path(sys.prefix) / "peers"
APART_PYTHON = APART / "bin" / "python"
REASONS = Path(sys.prefix) / "peers.json"
"""Reasons why `benchmarks.install` could not install a distribution, by its name."""

TOGETHER = (
    "stamina", "tenacity", "purgatory", "limits", "prometheus_client", "interlock-cb",
    "anthropic", "openai", "pydantic-ai-slim", "aiohttp", "SQLAlchemy", "psycopg", "asyncpg",
)  # fmt: skip
ON_THEIR_OWN = ("litellm", "tensorzero")


class NotMeasured(Exception):
    """A peer is missing; the sentence says why."""


def load(module: str, distribution: str) -> Any:
    """Import a peer's module. Raises `NotMeasured` if that is impossible.

    The return type is Any because types are also checked on machines without the peers.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if is_installed(distribution):
            raise NotMeasured(f"{distribution} cannot be imported: {error}") from error
        raise NotMeasured(why_missing(distribution)) from error


def why_missing(distribution: str) -> str:
    """The reason as a sentence for the table."""
    try:
        reasons: dict[str, str] = json.loads(REASONS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        reasons = {}
    return reasons.get(distribution, f"{distribution} is not installed")


def is_installed(distribution: str, *, apart: bool = False) -> bool:
    return _version(distribution, apart=apart) is not None


def versions() -> dict[str, str]:
    """The versions of the installed peers."""
    found = {name: _version(name, apart=False) for name in TOGETHER}
    found |= {name: _version(name, apart=True) for name in ON_THEIR_OWN}
    return {name: version for name, version in found.items() if version is not None}


def _version(distribution: str, *, apart: bool) -> str | None:
    folders = [str(path) for path in APART.glob("lib/python*/site-packages")] if apart else sys.path
    found = next(iter(Distribution.discover(name=distribution, path=folders)), None)
    return found.version if found else None
