"""Where mail is sent: `smtp://user:password@mail.example:587`, read once, shown without its password.

A password never goes over a line that others can read. `smtps://` is TLS from the first byte. `smtp://` is STARTTLS,
which the server must offer: a server that does not, or one in the middle that hides it, gets no mail. On this machine
there is no line to read, so STARTTLS is used there only if it is offered. `?starttls=no` is for a relay of one's own
network without TLS; it excludes a password.
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
    """Raises `ValueError` with what is allowed, never with the URL."""
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
            "allowed with starttls=no is a URL without user and password: others could read them"
        )
    return MailServer(host, port or (465 if security == "tls" else 587), security, user, password)


def _security(scheme: str, query: str, host: str) -> Security:
    if scheme == "smtps":
        if query:
            raise ValueError("allowed after smtps:// is no starttls=no: it is TLS from the first byte")
        return "tls"
    if query:
        return "none"
    return "if offered" if is_loopback(host) else "starttls"
