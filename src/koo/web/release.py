"""Which koo this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of


def version() -> str:
    """The installed version."""
    try:
        return version_of("koo")
    except PackageNotFoundError:  # a source tree on the path, never installed
        return "0+unknown"
