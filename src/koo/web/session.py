"""A browser's session: a token is exchanged for a signed cookie that contains a role and an expiry time.

Nothing is stored. The cookie is signed with a key derived from the token that started it, so it ends with that token:
changing a token ends its sessions and no others. The holder of a read token cannot forge a cookie that allows more,
because that cookie needs a signature by a key derived from the other token.

The signature also covers the path prefix of the routes that may accept the cookie. Its name is derived from the key
too, because a browser has one cookie jar for all ports of a host: two servers there must not log each other's users
out.

Pure: the time is an argument. `security.py` decides what a session allows.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Literal, NamedTuple

LASTS_S = 12 * 3600
"""A long working day. A copied cookie stays valid that long too: nothing is stored, so nothing can be revoked."""
# Separates this key from any other use of the token. A change of the cookie's format needs a new number, which
# invalidates all older cookies.
PURPOSE = b"koo session 1"
# The pattern is strict on purpose: whatever does not match is ignored before anything is computed, and the role and the
# time cannot contain the newline that separates the signed fields.
_VALUE = re.compile(r"(write|read)\.([0-9]{1,12})\.([0-9a-f]{64})")
Role = Literal["write", "read"]


class Session(NamedTuple):
    """A session allows what the tokens of its role allow, until `ends_at` (wall-clock seconds)."""

    role: Role
    ends_at: int


class Sessions:
    """The sessions of one installation, started with one of its tokens."""

    def __init__(self, tokens: tuple[str, ...] = (), read_tokens: tuple[str, ...] = ()) -> None:
        self._tokens: tuple[tuple[str, Role], ...] = (
            *((token, "write") for token in tokens),
            *((token, "read") for token in read_tokens),
        )
        self._keys = tuple((_key(token), role) for token, role in self._tokens)

    @property
    def names(self) -> list[str]:
        """The names that their cookies may have."""
        return [_name(key) for key, _ in self._keys]

    def begin(self, token: str, audience: str, now: float) -> tuple[str, str, Role] | None:
        """Return the name and value of a new cookie, and its role; None if the token is unknown."""
        # All tokens are compared, each in constant time. Stopping at the first match would reveal by its duration
        # which of the configured tokens was sent.
        fits = [hmac.compare_digest(token.encode(), known.encode()) for known, _ in self._tokens]
        if not any(fits):
            return None
        key, role = self._keys[fits.index(True)]
        ends_at = int(now) + LASTS_S
        return _name(key), f"{role}.{ends_at}.{_signature(key, role, str(ends_at), audience)}", role

    def find(self, header: str, audience: str, now: float) -> Session | None:
        """Return the session in a Cookie header, or None if no cookie is valid."""
        # A browser may send several cookies of the same name (set for different paths), and also those of other
        # servers on this host. Trying each of them costs little, and one stale cookie does not hide a valid one.
        given = list(_cookies(header))
        for key, role in self._keys:
            for name, value in given:
                if name == _name(key) and (found := _read(value, key, role, audience, now)) is not None:
                    return found
        return None

    def has_cookie(self, header: str) -> bool:
        """Return whether one of koo's cookies is present, valid or not."""
        return any(name.startswith("koo_") for name, _ in _cookies(header))


def _read(value: str, key: bytes, role: Role, audience: str, now: float) -> Session | None:
    # The time comes from the client, so it is used only after the signature over it has been verified.
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
    # The audience is signed so that a cookie for one application, mounted below /team-a, is not accepted below /team-b
    # on the same host with the same token.
    return hmac.digest(key, f"{role}\n{ends_at}\n{audience}".encode(), sha256).hex()


def _cookies(header: str) -> Iterator[tuple[str, str]]:
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        yield name, value
