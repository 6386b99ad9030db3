"""A channel: something that accepts a message, or says in one sentence why it did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message. `key` stays the same when the same message is sent again.

    `subject` is one line, `text` several, both plain text. `document` is the same for programs. `thread` is common to
    the messages of one alert. `epoch` is that of its sender's lease, and grows with each new sender; None without the
    state store.
    """

    key: str
    thread: str
    subject: str
    text: str
    document: Mapping[str, Any]
    epoch: int | None = None


class NotTaken(Exception):
    """A message was not accepted; `reason` is half a sentence without secrets.

    `is_messages`: the receiver works, but refuses this message. `retry_after_s`: when it wants the next attempt.
    """

    def __init__(self, reason: str, *, is_messages: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_messages = is_messages
        self.retry_after_s = retry_after_s


class Channel(Protocol):
    """A way to notify a person. `name` identifies it in the state store, `place` says where it leads, without secrets.

    `warnings`: what a person should know about its setup.
    """

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    async def send(self, message: Message) -> str:
        """Send it; returns a note to log although it was accepted, or "". Raises `NotTaken`."""
        ...

    async def close(self) -> None:
        """Close its connections; it may be used again."""
        ...
