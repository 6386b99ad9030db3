"""The peers' packages: where they are installed, which versions, and why one is missing.

Most run in koo's own environment. LiteLLM asks for an older openai than koo's tests use, so it and TensorZero have an
environment of their own inside `.venv`, which `make bench` makes, and run there in a process of their own.

Only the standard library here: this runs under both pythons.
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
"""By distribution: why `benchmarks.install` could not install it."""

TOGETHER = (
    "stamina", "tenacity", "purgatory", "limits", "prometheus_client", "interlock-cb",
    "anthropic", "openai", "pydantic-ai-slim", "aiohttp", "SQLAlchemy", "psycopg", "asyncpg",
)  # fmt: skip
ON_THEIR_OWN = ("litellm", "tensorzero")


class NotMeasured(Exception):
    """A peer is not here; the sentence says why."""


def load(module: str, distribution: str) -> Any:
    """A peer's module; `NotMeasured` where it cannot be imported.

    Any: types are checked where no peer is installed, too, and must be right in both cases.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if is_installed(distribution):
            raise NotMeasured(f"{distribution} cannot be imported: {error}") from error
        raise NotMeasured(why_missing(distribution)) from error


def why_missing(distribution: str) -> str:
    """A sentence for the table."""
    try:
        reasons: dict[str, str] = json.loads(REASONS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        reasons = {}
    return reasons.get(distribution, f"{distribution} is not installed")


def is_installed(distribution: str, *, apart: bool = False) -> bool:
    return _version(distribution, apart=apart) is not None


def versions() -> dict[str, str]:
    """The versions of the peers' packages that are here."""
    found = {name: _version(name, apart=False) for name in TOGETHER}
    found |= {name: _version(name, apart=True) for name in ON_THEIR_OWN}
    return {name: version for name, version in found.items() if version is not None}


def _version(distribution: str, *, apart: bool) -> str | None:
    folders = [str(path) for path in APART.glob("lib/python*/site-packages")] if apart else sys.path
    found = next(iter(Distribution.discover(name=distribution, path=folders)), None)
    return found.version if found else None
