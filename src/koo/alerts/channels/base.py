"""A channel accepts a message, or reports in one sentence why it did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message. `key` stays the same when the same message is sent again.

    `subject` is one line and `text` several, both in plain text. `document` has the same content for programs. All
    messages of one alert have the same `thread`. `epoch` is that of the sender's lease and grows with each new sender;
    it is None without the state store.
    """

    key: str
    thread: str
    subject: str
    text: str
    document: Mapping[str, Any]
    epoch: int | None = None


class NotTaken(Exception):
    """A message was not accepted; `reason` is half a sentence without secrets.

    `is_messages` means that the receiver works but refuses this message. `retry_after_s` is the pause that it requests.
    """

    def __init__(self, reason: str, *, is_messages: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_messages = is_messages
        self.retry_after_s = retry_after_s


class Channel(Protocol):
    """A way to notify people. `name` identifies it in the state store. `place` is its destination, without secrets.

    `warnings` are problems in its setup that a person should know about.
    """

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    async def send(self, message: Message) -> str:
        """Send a message; returns "", or a note to log although it was accepted. Raises `NotTaken`."""
        ...

    async def close(self) -> None:
        """Close the connections; the channel may be used again."""
        ...
