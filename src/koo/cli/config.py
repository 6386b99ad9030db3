"""`koo config`: the settings in force, and where each came from."""

from __future__ import annotations

from koo.cli.terminal import Exit, put, put_json, say
from koo.settings import Settings


def config(*, as_json: bool, only_set: bool) -> Exit:
    """Show every variable, its value (secrets masked), and its source."""
    settings = Settings()
    settings.platform_options()  # raises if variables contradict each other, which no single one shows
    rows = [row for row in settings.explain() if not only_set or row.source != "default"]
    if as_json:
        put_json(
            {
                "home": str(settings.koo_home),
                "settings": [row._asdict() for row in rows],
                "unknown_variables": [str(unknown) for unknown in settings.unknown_variables],
            }
        )
        return Exit.OK
    say(f"KOO_HOME is {settings.koo_home}")
    width = max((len(row.variable) for row in rows), default=0)
    for row in rows:
        put(f"{row.variable:<{width}}  {row.value or '(not set)'}  [{row.source}]")
    return Exit.OK
