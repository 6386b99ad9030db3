"""Text of strangers, made harmless to look at: what a provider, a server or a caller put into a name or an error.

It may hold line breaks that forge a header or a log line, escape sequences that act on a terminal, and characters that
are not seen: those that turn the direction of writing make an address look like another one.
"""

from __future__ import annotations

import unicodedata

MOST = 500
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Control, format (bidirectional and zero-width ones too), surrogate, private, unassigned; line and paragraph ends."""


def plain(text: object, most: int = MOST) -> str:
    """One line of at most `most` characters, without any that is not seen; white space becomes single spaces."""
    seen = str(text)[: most * 4]  # what is cut anyway need not be looked at
    if not (seen.isascii() and seen.isprintable()):
        seen = "".join(_visible(letter) for letter in seen)
    seen = " ".join(seen.split())
    return seen if len(seen) <= most else f"{seen[: most - 1]}…"


def _visible(letter: str) -> str:
    if letter.isspace():
        return " "
    kind = unicodedata.category(letter)
    return letter if kind not in _UNSEEN else ("" if kind == "Cf" else "�")
