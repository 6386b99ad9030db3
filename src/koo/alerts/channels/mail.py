"""E-mail, as plain text, passed to a mail server.

Headers are built by `email`, which encodes what is not ASCII and refuses a line break; names come from `plain`, which
leaves none. The text is `text/plain`: a mail program shows it unchanged. The messages of one alert refer to one id that
none of them has, so a mail program shows them as one conversation, whichever of them it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from koo.alerts.channels.base import Message
from koo.alerts.channels.smtp import Talk, said
from koo.alerts.channels.smtp_url import read_smtp_url
from koo.http.proxies import is_loopback
from koo.network_options import NetworkOptions
from koo.plain_text import plain


class Mail:
    """`KOO_ALERT_EMAIL`, by way of `KOO_SMTP_URL`."""

    name = "email"

    def __init__(
        self,
        smtp_url: str,
        to: tuple[str, ...],
        sender: str | None,
        network: NetworkOptions,
        wall: Callable[[], float],
    ) -> None:
        self._server = read_smtp_url(smtp_url)
        self._to = to
        self._sender = sender or self._server.user
        self._network = network
        self._wall = wall

    @property
    def place(self) -> str:
        many = f"{len(self._to)} addresses" if len(self._to) > 1 else "one address"
        return f"{many} by way of {self._server}"

    @property
    def warnings(self) -> tuple[str, ...]:
        if self._server.security == "none" and not is_loopback(self._server.host):
            return ("KOO_SMTP_URL says starttls=no: anyone on the way can read and change the mails",)
        return ()

    async def send(self, message: Message) -> str:
        """Raises `NotTaken`."""
        talk = Talk(self._server, self._network)
        refused = await talk.hand_over(self._sender, self._to, self._letter(message))
        if not refused:
            return ""
        code, words = next(iter(refused.values()))
        return f"{len(refused)} of {len(self._to)} addresses were refused (status {code}: {said(words)})"

    async def close(self) -> None:
        """A mail has a connection of its own."""

    def _letter(self, message: Message) -> bytes:
        letter = EmailMessage(policy=SMTP)
        letter["Subject"] = plain(message.subject, 200)
        letter["From"] = self._sender
        letter["To"] = ", ".join(self._to)
        letter["Date"] = format_datetime(datetime.fromtimestamp(self._wall(), UTC))
        letter["Message-ID"] = _id("message", message.key)
        letter["References"] = _id("alert", message.thread)
        letter["Auto-Submitted"] = "auto-generated"
        letter["X-Koo-Key"] = plain(message.key, 200)
        letter.set_content(message.text)
        return letter.as_bytes()


def _id(what: str, text: str) -> str:
    return f"<koo-{what}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]}@koo.invalid>"
