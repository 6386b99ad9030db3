"""Parses the mail server's URL, such as `smtp://user:password@mail.example:587`; it is shown without the password.

A password is never sent over an unencrypted connection. `smtps://` means TLS from the first byte. `smtp://` means
STARTTLS, which the server must offer: no mail is sent to a server that does not offer it, or through an attacker who
removes the offer. On this machine traffic cannot be intercepted, so STARTTLS is used there only if it is offered.
`?starttls=no` is for a relay without TLS in your own network, and excludes a password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from koo.http.proxies import is_loopback

ALLOWED_SMTP = (
    "a URL such as smtp://user:password@mail.example:587 or smtps://user:password@mail.example:465 (in a user or "
    "password write / as %2F, @ as %40, : as %3A, ? as %3F, # as %23)"
)
Security = Literal["tls", "starttls", "if offered", "none"]


@dataclass(frozen=True, slots=True)
class MailServer:
    """A mail server. `user` is "" if it requires no login."""

    host: str
    port: int
    security: Security
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def read_smtp_url(text: str) -> MailServer:
    """Parse a URL. Raises `ValueError`, whose message says what is allowed and omits the URL."""
    # Whatever `urlsplit` raises is replaced: its messages contain parts of the URL, and so perhaps the password.
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if (
        parts.scheme not in {"smtp", "smtps"}
        or not host
        or port == 0
        or parts.path not in {"", "/"}
        or parts.fragment
        or parts.query not in {"", "starttls=no"}
        or not text.isascii()
        or not text.isprintable()
        or " " in text
    ):
        raise ValueError(f"expected {ALLOWED_SMTP}")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not (user + password).isprintable():
        raise ValueError(f"expected {ALLOWED_SMTP}")
    security = _security(parts.scheme, parts.query, host)
    if security == "none" and user and not is_loopback(host):
        raise ValueError(
            "with starttls=no the URL must have no user and password, because others could read them"
        )
    return MailServer(host, port or (465 if security == "tls" else 587), security, user, password)


def _security(scheme: str, query: str, host: str) -> Security:
    if scheme == "smtps":
        if query:
            raise ValueError("starttls=no is not allowed with smtps://, which is TLS from the first byte")
        return "tls"
    if query:
        return "none"
    return "if offered" if is_loopback(host) else "starttls"
