"""The rules for service names, which are used in paths, variables, metrics and alerts."""

from __future__ import annotations

import re
from collections.abc import Collection

from koo.errors import ConfigurationError

SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ALLOWED_SERVICE_NAME = "1 to 64 letters, digits, dots, - and _, with a letter or digit first"
RESERVED_NAMES = ("database", "all")
"""Names that mean something else to `koo reset` and in the state store."""


def check_service_name(name: object, built_in: Collection[str] = ()) -> None:
    """Raise `ConfigurationError` for a name that cannot be used in a path, a variable or an alert, or is built in."""
    if name in RESERVED_NAMES:
        raise ConfigurationError(
            "", f"a service cannot be named {name!r}, which is a reserved name; choose another one"
        )
    if not isinstance(name, str) or not SERVICE_NAME.fullmatch(name):
        shown = repr(name[:40]) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise ConfigurationError("", f"a service name is {shown}; expected {ALLOWED_SERVICE_NAME}")
    if name in built_in:
        raise ConfigurationError("register_service", f"{name!r} is a built-in service; choose another one")
