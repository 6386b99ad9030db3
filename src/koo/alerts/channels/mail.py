"""E-mail in plain text, handed to a mail server.

The standard library's `email` builds the headers. It encodes text that is not ASCII and refuses line breaks, which
`plain` has already removed. The body is `text/plain`, so a mail program shows it unchanged. All messages of one alert
refer to one id that no message has, so a mail program shows them as one conversation even if one of them is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from koo.alerts.channels.base import Message, NotTaken
from koo.alerts.channels.smtp import Talk, said
from koo.alerts.channels.smtp_url import read_smtp_url
from koo.http.proxies import is_loopback
from koo.network_options import NetworkOptions
from koo.plain_text import plain

LATE_MAX = 1000
"""How many messages' refused addresses are remembered; those of given-up messages are among them."""


class Mail:
    """The channel of `KOO_ALERT_EMAIL` and `KOO_SMTP_URL`."""

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
        self._late: dict[str, tuple[str, ...]] = {}
        """By message key: the addresses that the server refused for now (greylisting), while others got the mail."""

    @property
    def place(self) -> str:
        many = f"{len(self._to)} addresses" if len(self._to) > 1 else "one address"
        return f"{many} through {self._server}"

    @property
    def warnings(self) -> tuple[str, ...]:
        if self._server.security == "none" and not is_loopback(self._server.host):
            return ("KOO_SMTP_URL has starttls=no: anyone on the network path can read and change the mails",)
        return ()

    async def send(self, message: Message) -> str:
        """Send a mail. Raises `NotTaken`."""
        talk, to = Talk(self._server, self._network), self._late.get(message.key, self._to)
        refused = await talk.hand_over(self._sender, to, self._letter(message))
        self._late.pop(message.key, None)
        if not refused:
            return ""
        # A 4xx status asks for another attempt. Without one, a person whose server uses greylisting would never get the
        # first mail of an alert.
        late = {one: reply for one, reply in refused.items() if 400 <= reply[0] < 500}
        code, words = next(iter((late or refused).values()))
        if len(refused) == len(self._to):
            raise NotTaken(f"it refuses every address (status {code}: {said(words)})")
        if not late:
            return f"{len(refused)} of {len(self._to)} addresses were refused (status {code}: {said(words)})"
        self._late = dict([*self._late.items(), (message.key, tuple(late))][-LATE_MAX:])
        reason = (
            f"{len(late)} of {len(self._to)} addresses were refused for now (status {code}: {said(words)})"
        )
        raise NotTaken(reason, is_messages=True)

    async def close(self) -> None:
        """Do nothing: each mail uses a separate connection."""

    def _letter(self, message: Message) -> bytes:
        # 7-bit, because `sendmail` announces no 8-bit body: a server that offers no 8BITMIME may refuse one, or damage
        # it.
        letter = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
        letter["Subject"] = plain(message.subject, 200)
        letter["From"] = self._sender
        letter["To"] = ", ".join(self._to)
        letter["Date"] = format_datetime(datetime.fromtimestamp(self._wall(), UTC))
        # The id is derived from the key, so a message that is sent again after a lost reply has the same id, by which
        # mail servers and programs recognise the duplicate.
        letter["Message-ID"] = _id("message", message.key)
        letter["References"] = _id("alert", message.thread)
        letter["Auto-Submitted"] = "auto-generated"
        letter["X-Koo-Key"] = plain(message.key, 200)
        letter.set_content(message.text)
        return letter.as_bytes()


def _id(what: str, text: str) -> str:
    return f"<koo-{what}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]}@koo.invalid>"
