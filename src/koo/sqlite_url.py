"""Checks the options in the URL of an SQLite file: an option that would be ignored is an error.

For `?mode=ro` on a plain path SQLAlchemy only warns, and opens the file for writing. SQLite itself silently ignores a
misspelt option. Python's `sqlite3` has options of its own, two of which koo sets.
"""

from __future__ import annotations

from collections.abc import Mapping

OF_DRIVER = frozenset({"cached_statements", "check_same_thread", "detect_types", "uri"})
"""Options of Python's `sqlite3`. `timeout` and `isolation_level` are not among them, because koo sets those itself."""
OF_FILE = frozenset({"cache", "immutable", "mode", "modeof", "nolock", "psow", "vfs"})
"""Options that SQLite reads only in a `file:` name (https://sqlite.org/uri.html)."""
TRUE = frozenset({"true", "1", "yes", "on", "y", "t"})
"""The values that SQLAlchemy reads as true."""


def check_sqlite_url(database: str, options: Mapping[str, object]) -> None:
    """Raise `ValueError`, with the allowed options, for an option that would be ignored."""
    for name in sorted(options):
        if name not in OF_DRIVER | OF_FILE:
            known = ", ".join(sorted(OF_DRIVER | OF_FILE))
            raise ValueError(f"its option {name[:40]!r} would be ignored; the known ones are {known}")
    is_file = database.startswith("file:")
    reads_name = str(options.get("uri", "")).lower() in TRUE
    if is_file != reads_name or (not is_file and not OF_FILE.isdisjoint(options)):
        raise ValueError(
            "SQLite reads options in this form only: sqlite:///file:/absolute/path?mode=ro&uri=true"
        )
