"""The webhook: every message as JSON, for programs. `docs/notifications.md` documents its keys and its signature."""

from __future__ import annotations

import json
from collections.abc import Callable

from koo.alerts.channels.base import Message
from koo.alerts.channels.signature import read_secret, signed
from koo.alerts.channels.web import WebReceiver
from koo.network_options import NetworkOptions

VARIABLE = "KOO_ALERT_WEBHOOK"


class Webhook:
    """The channel of `KOO_ALERT_WEBHOOK`."""

    name = "webhook"

    def __init__(
        self, url: str, secret: str | None, network: NetworkOptions, wall: Callable[[], float]
    ) -> None:
        self._receiver = WebReceiver(url, VARIABLE, network, wall)
        self._key = None if secret is None else read_secret(secret)
        self._wall = wall

    @property
    def place(self) -> str:
        return self._receiver.place

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._receiver.warnings

    async def send(self, message: Message) -> str:
        """Post a message. Raises `NotTaken`."""
        body = json.dumps(message.document, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"webhook-id": message.key}
        if message.epoch is not None:
            # The epoch is in a header and not in the body, because the body must not change when another process sends
            # the same message again.
            headers["koo-epoch"] = str(message.epoch)
        if self._key is not None:
            headers |= signed(self._key, message.key, int(self._wall()), body)
        await self._receiver.post(body, headers)
        return ""

    async def close(self) -> None:
        await self._receiver.close()
