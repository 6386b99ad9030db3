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

from koo.alerts.channels.base import Message, NotTaken
from koo.alerts.channels.web import WebReceiver
from koo.network_options import NetworkOptions

VARIABLE = "KOO_ALERT_SLACK"
TEXT_MAX = 12_000
"""Slack allows 40,000 characters, but this is as much as people read."""
SHORT_MAX = 1800
"""Discord refuses more than 2000 characters, Rocket.Chat more than its `Message_MaxAllowedSize`."""
END_LINES = 4
"""The links and the sender, which a shortened text keeps."""
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
        text = f"[koo] {message.text}"
        try:
            await self._post(text, message.key)
        except NotTaken as error:
            # Without the shorter text, exactly the message about the largest outage would never arrive.
            if not error.is_messages or len(text) <= SHORT_MAX:
                raise
            await self._post(shortened(text, SHORT_MAX), message.key)
        return ""

    async def _post(self, text: str, key: str) -> None:
        # Each of these switches off one way in which a chat would change the text: markup, automatic mentions, and
        # previews, for which its server would fetch the addresses in an alert.
        body = {
            "text": harmless(shortened(text, TEXT_MAX)),
            "mrkdwn": False,
            "parse": "none",
            "link_names": False,
            "unfurl_links": False,
            "unfurl_media": False,
        }
        await self._receiver.post(json.dumps(body).encode(), {"webhook-id": key})

    async def close(self) -> None:
        await self._receiver.close()


def shortened(text: str, most: int) -> str:
    """Leave out the middle of a text that is longer than `most` characters."""
    if len(text) <= most:
        return text
    end = "\n".join(text.splitlines()[-END_LINES:])[-most // 2 :]
    return f"{text[: most - len(end)]}…\n{end}"


def harmless(text: str) -> str:
    """Escape a text so that a chat shows it unchanged, without mentions and without links under another name."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _CALLS.sub(f"@{BREAK}", text).replace("](", f"]{BREAK}(")
