"""Reads PostgreSQL's messages as they pass through a proxy: where COMMIT is, and where the login ends."""

from __future__ import annotations

from collections.abc import Iterator

_ENCRYPTION = {80877103, 80877104}
"""SSLRequest and GSSENCRequest, to which a server replies with a single byte."""
_UNTYPED = {*_ENCRYPTION, 80877102}
"""SSLRequest, GSSENCRequest and CancelRequest: the packets without a type byte that may come before the
StartupMessage."""
_LOGIN_BYTES_MAX = 65_536
"""A server that has sent this many bytes without a ReadyForQuery is not PostgreSQL."""


class Messages:
    """Divides a client's bytes into PostgreSQL's frontend messages: (type, body)."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the messages that are complete now."""
        self._buffer += data
        while True:
            head = 1 if self._started else 0
            if len(self._buffer) < head + 4:
                return
            length = int.from_bytes(self._buffer[head : head + 4], "big")
            if len(self._buffer) < head + length or length < 4:
                return
            kind, body = self._buffer[:head], self._buffer[head + 4 : head + length]
            self._buffer = self._buffer[head + length :]
            if not self._started:
                self._started = int.from_bytes(body[:4], "big") not in _UNTYPED
            yield kind, body


class Login:
    """Finds the first ReadyForQuery in a server's messages."""

    def __init__(self) -> None:
        self._answers = b""
        self._single_bytes = 0

    def note_request(self, messages: list[tuple[bytes, bytes]]) -> None:
        """Count the requests for encryption: the server's reply to each is one byte without a header."""
        for kind, body in messages:
            self._single_bytes += not kind and int.from_bytes(body[:4], "big") in _ENCRYPTION

    def is_ready(self, data: bytes) -> bool:
        """Whether the login has ended, or the server is not PostgreSQL."""
        self._answers += data
        at = self._single_bytes
        while len(self._answers) >= at + 5:
            if self._answers[at : at + 1] == b"Z":
                return True
            at += 1 + int.from_bytes(self._answers[at + 1 : at + 5], "big")
        return len(self._answers) > _LOGIN_BYTES_MAX


def is_commit(message: tuple[bytes, bytes]) -> bool:
    """Whether a simple query (Q) or a Parse message (P, which starts with a name) commits, or ends with a COMMIT."""
    kind, body = message
    if kind == b"P":
        body = body.partition(b"\0")[2]
    elif kind != b"Q":
        return False
    words = body.strip(b" \n\0;").upper()
    last = words.rpartition(b";")[2].lstrip()
    return words.startswith((b"COMMIT", b"END")) or last == b"COMMIT"
