"""Turns an error into a `Failure`, which is shown next to a state, on pages and in alerts, and is logged.

More people see a `Failure` than the error itself, so its sentence is made safe here: one line of limited length,
without control characters or anything that looks like a key or a password. An error that koo recognises has a sentence
of koo's own. For any other error only the class is named, because its text comes from elsewhere and may quote a prompt.
"""

from __future__ import annotations

import re

from koo.errors import Failure, Kind, KooError
from koo.plain_text import plain

SENTENCE_MAX = 300
CODE_MAX = 80

_SECRET = re.compile(
    r"\b(?:sk|pk|rk|pplx|gsk|xai|hf|ghp|AIza)[-_]?[A-Za-z0-9_-]{12,}"  # keys, by providers' prefixes
    r"|(?<=://)[^/\s@]+(?=@)"  # user and password of a URL
    r"|(?i:(?<=bearer )|(?<=password=)|(?<=api_key=)|(?<=apikey=)|(?<=token=)|(?<=x-api-key: ))[^\s,;]+"
)


def failure_of(error: BaseException, kind: Kind) -> Failure:
    """The `Failure` of an error of any class. Never raises."""
    if not isinstance(error, KooError):
        return Failure(kind, safe(f"it raised {type(error).__name__}"))
    detail = error.detail or {}
    status, code = detail.get("status"), detail.get("code") or detail.get("type") or detail.get("sqlstate")
    return Failure(
        error.kind,
        safe(error.reason),
        # A failure inside a response that began with status 200: that status says nothing about it.
        status if isinstance(status, int) and status != 200 else None,
        safe(code, CODE_MAX) if isinstance(code, str) else None,
    )


def safe(text: str, most: int = SENTENCE_MAX) -> str:
    """One plain line of at most `most` characters, with "…" for anything that looks like a secret."""
    # The text is shortened last: half a key no longer looks like a key, and would not be masked.
    return plain(masked(plain(text, 2 * most)), most)


def masked(text: str) -> str:
    """The text, with "…" for anything that looks like a secret."""
    return _SECRET.sub("…", text)
