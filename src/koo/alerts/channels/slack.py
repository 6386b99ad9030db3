"""Slack's incoming webhook, and servers that accept the same format (Mattermost, Rocket.Chat, Discord's `/slack`).

In Slack a text can mention everyone (`<!channel>`), link anywhere under any name (`<https://…|bank>`) and embed an
image. All of these begin with `<`, so `<`, `>` and `&` are escaped as Slack specifies, and markup is switched off.
Other servers also interpret `@channel` and `[name](address)`. An invisible character inside these keeps them plain
text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from koo.alerts.channels.base import Message
from koo.alerts.channels.web import WebReceiver
from koo.network_options import NetworkOptions

VARIABLE = "KOO_ALERT_SLACK"
TEXT_MAX = 12_000
"""Slack allows 40,000 characters, but this is as much as people read."""
BREAK = "\u200b"
_CALLS = re.compile(r"@(?=channel|here|everyone|all\b|group)", re.IGNORECASE)


class Slack:
    """The channel of `KOO_ALERT_SLACK`."""

    name = "slack"

    def __init__(self, url: str, network: NetworkOptions, wall: Callable[[], float]) -> None:
        self._receiver = WebReceiver(url, VARIABLE, network, wall)

    @property
    def place(self) -> str:
        return self._receiver.place

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._receiver.warnings

    async def send(self, message: Message) -> str:
        """Post a message. Raises `NotTaken`."""
        # Each of these switches off one way in which a chat would change the text: markup, automatic mentions, and
        # previews, for which its server would fetch the addresses in an alert.
        body = {
            "text": harmless(f"[koo] {message.text}"),
            "mrkdwn": False,
            "parse": "none",
            "link_names": False,
            "unfurl_links": False,
            "unfurl_media": False,
        }
        await self._receiver.post(json.dumps(body).encode(), {"webhook-id": message.key})
        return ""

    async def close(self) -> None:
        await self._receiver.close()


def harmless(text: str) -> str:
    """Escape a text so that a chat shows it unchanged, without mentions and without links under another name."""
    if len(text) > TEXT_MAX:
        text = f"{text[:TEXT_MAX]}…"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _CALLS.sub(f"@{BREAK}", text).replace("](", f"]{BREAK}(")
