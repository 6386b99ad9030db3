"""What a service may be called: one word for paths, variables, metrics and alerts."""

from __future__ import annotations

import re

from koo.errors import ConfigurationError

SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ALLOWED_SERVICE_NAME = "1 to 64 letters, digits, dots, - and _, with a letter or digit first"
RESERVED_NAMES = ("database", "all")
"""What `koo reset` and the processes on one store call something else."""


def check_service_name(name: object) -> None:
    """Raises `ConfigurationError` for a name that no path, variable or alert could carry."""
    if name in RESERVED_NAMES:
        raise ConfigurationError(
            "", f"a service cannot be called {name!r}, which means something else to koo; choose another name"
        )
    if not isinstance(name, str) or not SERVICE_NAME.fullmatch(name):
        shown = repr(name[:40]) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise ConfigurationError("", f"the name of a service is {shown}; allowed is {ALLOWED_SERVICE_NAME}")
