"""Text of strangers on a terminal and in a pipe: it is shown, and neither obeyed nor cut.

A provider names its model, a caller its tag, a server its error. Any of them may hold an escape sequence, a line break
or a character that turns the rest of the line around. `one_line` writes those as Python would (`\\x1b`, `\\u202e`): a
line stays one line, and what was there can still be read. An answer of a model is what was asked for, so a pipe gets it
as it is; `shown` makes it harmless where a terminal would obey it.
"""

from __future__ import annotations

import re

NAME_LENGTH_MAX = 200
"""As long as the API lets a model's name be."""
_TURNING = "\u202a-\u202e\u2066-\u2069"
_OBEYED = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_TURNING}]")
"""What a terminal obeys: controls but for tab and line feed, and what reorders the text after it."""
_UNSEEN = re.compile(
    rf"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028\u2029{_TURNING}\u2060-\u2064\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that cannot be seen. The joiners are not among them, because scripts and emoji need them."""


def one_line(text: str) -> str:
    """The text as one line without anything that is obeyed or cannot be seen."""
    return _UNSEEN.sub(_escape, text)


def name(text: str) -> str:
    """As `one_line`, for a name that a stranger chose: at most 200 characters of it."""
    whole = one_line(text)
    return whole if len(whole) <= NAME_LENGTH_MAX else f"{whole[: NAME_LENGTH_MAX - 1]}…"


def shown(text: str) -> str:
    """Text of several lines that a terminal shows and does not obey."""
    return _OBEYED.sub("�", text)


def json_text(document: str) -> str:
    """A JSON document of the same meaning: inside its strings what is not seen is written as an escape.

    `json.dumps` escapes only what is below the space; a terminal obeys some of what is above, as 0x9B.
    """
    return _UNSEEN_IN_JSON.sub(_json_escape, document)


_UNSEEN_IN_JSON = re.compile(_UNSEEN.pattern.replace(r"\x00-\x1f", "", 1))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
