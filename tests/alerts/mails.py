"""A real mail server (aiosmtpd) on a real socket, with TLS, STARTTLS and a login if a test wants them."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import warnings
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Self, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

HOST = "127.0.0.1"
USER, PASSWORD = "koo@example.com", "p@ss/w:rd"


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for `localhost` and 127.0.0.1. A client that trusts the file trusts the server."""

    file: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        file, key = folder / "mail.pem", folder / "mail.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", key, "-out", file, "-days", "30", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
            check=True, capture_output=True,
        )  # fmt: skip
        return cls(file, key)

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.file, self.key)
        return context


class MailServer:
    """Accepts mails. It rejects the addresses in `refuses`, and for now, with `for_now`, those in `refuses_for_now`.
    `says` is its reply to a mail instead of 250."""

    def __init__(
        self,
        certificate: Certificate | None = None,
        *,
        starttls: bool = False,
        asks_for_login: bool = False,
    ) -> None:
        self.mails: list[EmailMessage] = []
        self.to: list[list[str]] = []
        self.logins: list[str] = []
        self.was_secure: list[bool] = []
        self.refuses: set[str] = set()
        self.refuses_for_now: set[str] = set()
        self.for_now = "451 4.7.1 greylisted, try again later"
        self.says: str | None = None
        self._talks: list[SMTP] = []
        self._certificate = certificate
        self._starttls = starttls
        self._asks_for_login = asks_for_login

    async def __aenter__(self) -> Self:
        context = self._certificate.context() if self._certificate is not None else None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: self._protocol(context if self._starttls else None),
            HOST,
            0,
            ssl=None if self._starttls else context,
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def _protocol(self, context: ssl.SSLContext | None) -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # aiosmtpd warns that a login without STARTTLS can be read; here that is fine, or TLS is on
            made = SMTP(
                self,
                hostname="mail.example",
                tls_context=context,
                authenticator=self._knows if self._asks_for_login else None,
                auth_required=self._asks_for_login,
                auth_require_tls=self._starttls,
            )
        self._talks.append(made)
        return made

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for talk in self._talks:
            if isinstance(talk.transport, asyncio.Transport):
                with suppress(AttributeError):  # Python 3.11.2, for TLS that is closed already
                    talk.transport.abort()
        await self._server.wait_closed()

    def _knows(self, _server: Any, _session: Any, _envelope: Any, _how: str, given: Any) -> AuthResult:
        login = cast("LoginPassword", given)
        self.logins.append(login.login.decode())
        knows = (login.login.decode(), login.password.decode()) == (USER, PASSWORD)
        return AuthResult(success=knows, handled=False)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's own name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.refuses:
            return f"550 5.1.1 <{address}> is not known here"
        if address in self.refuses_for_now:
            return self.for_now
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.says is not None:
            return self.says
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content, policy=default))
        self.to.append(envelope.rcpt_tos)
        behind_tls = server.transport is not None and server.transport.get_extra_info("sslcontext")
        self.was_secure.append(bool(session.ssl or behind_tls))
        return "250 taken"
