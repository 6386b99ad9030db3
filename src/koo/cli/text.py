"""Untrusted text on a terminal and in a pipe: shown completely, but without control characters.

A provider names its model, a caller chooses its tag, a server writes its error message. Any of them may contain an
escape sequence, a line break or a character that reverses the rest of the line. `one_line` prints those as Python
escapes (`\\x1b`, `\\u202e`): a line stays one line, and the original can still be read. A model's response is the
result, so a pipe receives it unchanged; `shown` makes it harmless on a terminal.
"""

from __future__ import annotations

import re

NAME_LENGTH_MAX = 200
"""The API's limit on the length of a model's name."""
_TURNING = "\u202a-\u202e\u2066-\u2069"
_OBEYED = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_TURNING}]")
"""Characters that control a terminal: control characters except tab and line feed, and those that reorder text."""
_UNSEEN = re.compile(
    rf"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028\u2029{_TURNING}\u2060-\u2064\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Invisible characters. Joiners are excluded, because scripts and emoji need them."""


def one_line(text: str) -> str:
    """Return the text as one line without control characters and invisible characters."""
    return _UNSEEN.sub(_escape, text)


def name(text: str) -> str:
    """Like `one_line`, for a name chosen by someone else: at most 200 characters of it."""
    whole = one_line(text)
    return whole if len(whole) <= NAME_LENGTH_MAX else f"{whole[: NAME_LENGTH_MAX - 1]}…"


def shown(text: str) -> str:
    """Return text of several lines that a terminal shows without interpreting it."""
    return _OBEYED.sub("�", text)


def json_text(document: str) -> str:
    """Return an equivalent JSON document in which invisible characters in strings are escaped.

    `json.dumps` escapes only characters below the space; terminals also interpret some above it, such as 0x9B.
    """
    return _UNSEEN_IN_JSON.sub(_json_escape, document)


_UNSEEN_IN_JSON = re.compile(_UNSEEN.pattern.replace(r"\x00-\x1f", "", 1))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
