"""Reads the rows of a table, and phrases the error of a wrong value: variable, what it holds, what is allowed.

For a secret the sentence shows no more than "…", even if the secret is in a wrong place.
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

QUOTES = ("'", '"', "`", "“", "”", "‘", "’")
_UNREPLACED = re.compile(
    r"\$\{[A-Za-z_]\w*(?:[-:?+=][^}]*)?\}|^\$(?:[A-Za-z_]\w*|\([A-Za-z_]\w*\))$|^\{\{.*\}\}$"
)


def read_rows(
    merged: Mapping[Name, Found], home: Path, family: str = "", whose: str = ""
) -> tuple[dict[str, Any], frozenset[str]]:
    """The value of each row, found or default, and the names of those that were found.

    Without a family: the variables that are in none. Raises `ConfigurationError`, naming the variable.
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
    except ValueError as error:
        said = str(error) or f"allowed is {row.allowed}"
    # Raised out here: the caught error, whose frames hold the value, would otherwise become this one's context.
    held = row.form.held(str(reveal(value)))
    value = HIDDEN
    variable = row.name.upper() if found is None else found.variable
    raise ConfigurationError("", f"{variable} holds {held}; {said}{where(found, home)}")


def _check_text(text: str, *, quotes_are_meant: bool) -> None:
    """Raises ValueError for text that another program should have processed first, but did not.

    `docker run --env-file` and systemd keep quotes that a shell removes, and koo does not expand names.
    """
    if not quotes_are_meant and text[:1] in QUOTES and text[-1:] in QUOTES:
        raise ValueError("allowed is a value without quotes around it: here they would be part of it")
    if _UNREPLACED.search(text):
        raise ValueError(
            "koo does not expand ${NAME}, $NAME or {{ name }}: write the value itself, in a URL $ as %24"
        )


def where(found: Found | None, home: Path) -> str:
    """Which file a refused value is in."""
    return f" (set in {home / ENV_FILE})" if found is not None and found.source == ENV_FILE else ""


def _no_such_setting(
    table: type[Table], what: str, name: str, found: Found, home: Path
) -> ConfigurationError:
    # For a setting that does not exist only a number is shown: anything else may be a key.
    text = str(reveal(found.value))
    shown = f'"{text}"' if text.replace(".", "", 1).isdecimal() and len(text) < 20 else '"…"'
    known = [one.upper() for one in table.rows]
    meant = nearest(name.upper(), known)
    hint = f" (did you mean {meant}?)" if meant else ""
    sentence = f"{found.variable} holds {shown}, but a {what} has no such setting{hint}"
    return ConfigurationError("", f"{sentence}; allowed are {', '.join(known)}{where(found, home)}")
