"""Read the rows of a table, and report a wrong value with its variable, the value and what was expected.

A message shows a secret only as "…", even if the secret was put into the wrong variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from koo.configuration.names import nearest
from koo.configuration.sources import ENV_FILE, Found
from koo.configuration.table import Row, Table
from koo.configuration.values import reveal
from koo.configuration.variables import FAMILIES, Name, Variables
from koo.errors import ConfigurationError
from koo.hidden import HIDDEN
from koo.paths import path_trouble

QUOTES = ("'", '"', "`", "“", "”", "‘", "’")
_UNREPLACED = re.compile(
    r"\$\{[A-Za-z_]\w*(?:[-:?+=][^}]*)?\}|^\$(?:[A-Za-z_]\w*|\([A-Za-z_]\w*\))$|^\{\{.*\}\}$"
)


def read_rows(
    merged: Mapping[Name, Found], home: Path, family: str = "", whose: str = ""
) -> tuple[dict[str, Any], frozenset[str]]:
    """The value of each row, set or default, and the names of the rows that were set.

    Without a family, the variables outside all families. Raises `ConfigurationError` with the variable's name.
    """
    table, what = FAMILIES[family] if family else (Variables, "koo")
    found = {
        name.attribute: one for name, one in merged.items() if (name.family, name.whose) == (family, whose)
    }
    many: dict[str, dict[str, Any]] = {name: {} for name, row in table.rows.items() if row.many}
    for name, one in found.items():
        setting, _, inner = name.partition("__")
        if setting in many and inner:
            many[setting][inner] = _read(table.rows[setting], one, home)
        elif name not in table.rows or name in many:
            raise _no_such_setting(table, what, name, one, home)
    single = {name: _read(row, found.get(name), home) for name, row in table.rows.items() if not row.many}
    return single | many, frozenset(name.partition("__")[0] for name in found)


def _read(row: Row, found: Found | None, home: Path) -> object:
    value = row.default if found is None else found.value
    try:
        if found is not None and found.source in (ENV_FILE, "environment"):
            _check_text(str(value), quotes_are_meant=row.many)
        return row.read(value, home)
    except (ValueError, OSError) as error:
        said = path_trouble(error) or f"expected {row.allowed}"
    # The error is raised outside of the `except` block. Inside it, the caught error would become this one's
    # `__context__`, and error reporters print the local variables of its frames, which contain the value. For the same
    # reason the value is removed from this frame.
    held = row.form.held(str(reveal(value)))
    value = HIDDEN
    variable = row.name.upper() if found is None else found.variable
    raise ConfigurationError("", f"{variable} is {held}; {said}{where(found, home)}")


def _check_text(text: str, *, quotes_are_meant: bool) -> None:
    """Raises ValueError for quotes or placeholders that another program should have processed, but did not."""
    # A shell removes quotes, but `docker run --env-file` and systemd keep them. A key in quotes would be rejected by
    # the provider, and the quotes are hard to see in an error that hides the key.
    if not quotes_are_meant and text[:1] in QUOTES and text[-1:] in QUOTES:
        raise ValueError("expected a value without quotes, which would become part of it here")
    # A template that was not filled in, or a reference that only a shell expands.
    if _UNREPLACED.search(text):
        raise ValueError(
            "koo does not expand ${NAME}, $NAME or {{ name }}: write the value itself, in a URL with %24 for $"
        )


def where(found: Found | None, home: Path) -> str:
    """The file that contains a refused value, for a message."""
    return f" (set in {home / ENV_FILE})" if found is not None and found.source == ENV_FILE else ""


def _no_such_setting(
    table: type[Table], what: str, name: str, found: Found, home: Path
) -> ConfigurationError:
    # The value of an unknown setting is shown only if it is a number: anything else may be a key.
    text = str(reveal(found.value))
    shown = f'"{text}"' if text.replace(".", "", 1).isdecimal() and len(text) < 20 else '"…"'
    known = [one.upper() for one in table.rows]
    meant = nearest(name.upper(), known)
    hint = f" (did you mean {meant}?)" if meant else ""
    sentence = f"{found.variable} is {shown}, but a {what} has no such setting{hint}"
    return ConfigurationError("", f"{sentence}; expected one of {', '.join(known)}{where(found, home)}")
