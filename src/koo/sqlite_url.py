"""Which options the URL of an SQLite file may have: none that would be ignored.

With `?mode=ro` on a plain path SQLAlchemy warns, and opens the file for writing; SQLite itself ignores a misspelt
option silently. Python's `sqlite3` has its own options, two of which koo sets.
"""

from __future__ import annotations

from collections.abc import Mapping

OF_DRIVER = frozenset({"cached_statements", "check_same_thread", "detect_types", "uri"})
"""Options of Python's `sqlite3`. Not `timeout` and `isolation_level`, which koo sets itself."""
OF_FILE = frozenset({"cache", "immutable", "mode", "modeof", "nolock", "psow", "vfs"})
"""Options that SQLite reads in the name of a `file:`, and nowhere else (https://sqlite.org/uri.html)."""
TRUE = frozenset({"true", "1", "yes", "on", "y", "t"})
"""What SQLAlchemy takes for true."""


def check_sqlite_url(database: str, options: Mapping[str, object]) -> None:
    """Raises `ValueError`, with what is allowed, for an option that would be ignored."""
    for name in sorted(options):
        if name not in OF_DRIVER | OF_FILE:
            known = ", ".join(sorted(OF_DRIVER | OF_FILE))
            raise ValueError(f"its option {name[:40]!r} would be ignored; known are {known}")
    is_file = database.startswith("file:")
    reads_name = str(options.get("uri", "")).lower() in TRUE
    if is_file != reads_name or (not is_file and not OF_FILE.isdisjoint(options)):
        raise ValueError(
            "SQLite reads options in this form only: sqlite:///file:/absolute/path?mode=ro&uri=true"
        )
