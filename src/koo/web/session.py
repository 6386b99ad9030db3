"""A browser's session: a token, exchanged for a cookie that says a role and until when.

Nothing is stored. The cookie is signed with a key made of the token that began it, so it ends with that token: changing
a token ends the sessions that it began, and no others. The holder of a read token cannot make a cookie that allows
more, because that one is signed with a key made of the other token.

It also says where it is valid: below which prefix the routes lie that may take it. Its name is made of the key as well,
because a browser keeps one jar for all ports of a host: two servers there do not log one another's users out.

Pure: the time is an argument. What comes of a session is for `security.py` to say.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Literal, NamedTuple

LASTS_S = 12 * 3600
"""A long working day. A copied cookie is good for as long, since nothing is stored that could be taken back."""
PURPOSE = b"koo session 1"
_VALUE = re.compile(r"(write|read)\.([0-9]{1,12})\.([0-9a-f]{64})")
Role = Literal["write", "read"]


class Session(NamedTuple):
    """A session allows what the tokens of its role allow, until `ends_at` (wall seconds)."""

    role: Role
    ends_at: int


class Sessions:
    """The sessions of one installation: those that its tokens began."""

    def __init__(self, tokens: tuple[str, ...] = (), read_tokens: tuple[str, ...] = ()) -> None:
        self._tokens: tuple[tuple[str, Role], ...] = (
            *((token, "write") for token in tokens),
            *((token, "read") for token in read_tokens),
        )
        self._keys = tuple((_key(token), role) for token, role in self._tokens)

    @property
    def names(self) -> list[str]:
        """What their cookies may be called."""
        return [_name(key) for key, _ in self._keys]

    def begin(self, token: str, audience: str, now: float) -> tuple[str, str, Role] | None:
        """The name and the value of a new cookie, and what it is good for; None: the token is not known."""
        fits = [hmac.compare_digest(token.encode(), known.encode()) for known, _ in self._tokens]
        if not any(fits):
            return None
        key, role = self._keys[fits.index(True)]
        ends_at = int(now) + LASTS_S
        return _name(key), f"{role}.{ends_at}.{_signature(key, role, str(ends_at), audience)}", role

    def find(self, header: str, audience: str, now: float) -> Session | None:
        """The session in a Cookie header; None: there is none that holds."""
        given = list(_cookies(header))
        for key, role in self._keys:
            for name, value in given:
                if name == _name(key) and (found := _read(value, key, role, audience, now)) is not None:
                    return found
        return None

    def has_cookie(self, header: str) -> bool:
        """Is there one of ours, whether it holds or not?"""
        return any(name.startswith("koo_") for name, _ in _cookies(header))


def _read(value: str, key: bytes, role: Role, audience: str, now: float) -> Session | None:
    parts = _VALUE.fullmatch(value)
    if parts is None or parts[1] != role:
        return None
    if not hmac.compare_digest(parts[3], _signature(key, role, parts[2], audience)):
        return None
    return Session(role, int(parts[2])) if now < int(parts[2]) else None


def _key(token: str) -> bytes:
    return hmac.digest(token.encode(), PURPOSE, sha256)


def _name(key: bytes) -> str:
    return f"koo_{hmac.digest(key, b'name', sha256).hex()[:12]}"


def _signature(key: bytes, role: str, ends_at: str, audience: str) -> str:
    return hmac.digest(key, f"{role}\n{ends_at}\n{audience}".encode(), sha256).hex()


def _cookies(header: str) -> Iterator[tuple[str, str]]:
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        yield name, value
