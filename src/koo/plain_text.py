"""Makes foreign text safe to display: text that a provider, a server or a caller put into a name or an error.

It may contain line breaks that forge a header or a log line, escape sequences that control a terminal, and invisible
characters. Those that change the writing direction can make one address look like another.
"""

from __future__ import annotations

import unicodedata

MOST = 500
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode's categories of control, format (bidirectional and zero-width too), surrogate, private and unassigned
characters, and of line and paragraph ends."""


def plain(text: object, most: int = MOST) -> str:
    """One line of at most `most` characters, without invisible ones. White space becomes single spaces."""
    seen = str(text)[: most * 4]  # no need to check what will be cut off
    if not (seen.isascii() and seen.isprintable()):
        seen = "".join(_visible(letter) for letter in seen)
    seen = " ".join(seen.split())
    return seen if len(seen) <= most else f"{seen[: most - 1]}…"


def _visible(letter: str) -> str:
    if letter.isspace():
        return " "
    kind = unicodedata.category(letter)
    return letter if kind not in _UNSEEN else ("" if kind == "Cf" else "�")
