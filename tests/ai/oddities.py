"""Odd answers of AI services as data: who sends them, the bytes, and what koo does.

One row is one sample of a kind. `tests/ai/test_oddities.py` sends each row to koo over a socket, beside the vendor's
own SDK, and holds what the row says; docs/compatibility.md is written from the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from koo.errors import Kind

Format = Literal["anthropic", "openai_compatible", "openai", "gemini", "perplexity", "local"]
"""The wire format, by the name of koo's adapter."""

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """One odd answer, and what becomes of it.

    `name` is a short phrase, unique among all rows; `sender` who was seen to send it; `what_koo_does` one sentence.
    `body` is what follows the headers, to a streamed request if `streamed`. `stays_open`: nothing follows it, and the
    connection is not closed either. koo's caller gets `text`; with a `kind` an error of that kind, after a stream's
    `text` where that began.
    """

    name: str
    sender: str
    format: Format
    what_koo_does: str
    body: bytes
    streamed: bool = False
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stays_open: bool = False
    text: str = "Paris."
    kind: Kind | None = None
    requests: int = 1
    """What reaches the server before koo's caller has its answer or its error, with two repeats allowed."""


def document(body: Mapping[str, Any], **changes: Any) -> bytes:
    """A whole answer; `changes` replace its top-level fields."""
    return json.dumps({**body, **changes}).encode()


def events(*frames: str | bytes | Mapping[str, Any]) -> bytes:
    """A stream: text and bytes as they stand, a mapping as the data of one event, named by its `type` if it has one."""
    return b"".join(map(_frame, frames))


def _frame(frame: str | bytes | Mapping[str, Any]) -> bytes:
    if isinstance(frame, Mapping):
        name = f"event: {frame['type']}\n" if isinstance(frame.get("type"), str) else ""
        return f"{name}data: {json.dumps(frame)}\n\n".encode()
    return frame.encode() if isinstance(frame, str) else frame


# ── good answers, which the rows change ───────────────────────────────────────────────────────────────────────────────

CHAT_USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
DONE = "data: [DONE]\n\n"


def chat(text: Any = "Paris.", finish: Any = "stop", **changes: Any) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": CHAT_USAGE,
        **changes,
    }  # fmt: skip


def chunk(text: Any = None, finish: Any = None, **changes: Any) -> dict[str, Any]:
    """A chunk of a streamed chat completion."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **changes
    }  # fmt: skip


ODDITIES: tuple[Oddity, ...] = (
    Oddity(
        name="counts with a decimal point",
        sender="gateways written in JavaScript and Lua",
        format="openai_compatible",
        what_koo_does="reads 12.0 as 12",
        body=document(chat(usage={"prompt_tokens": 12.0, "completion_tokens": 3.0, "total_tokens": 15.0})),
    ),
    Oddity(
        name="pings as comments",
        sender="OpenRouter",
        format="openai_compatible",
        what_koo_does="passes them over",
        streamed=True,
        content_type=EVENTS,
        body=events(
            ": OPENROUTER PROCESSING\n\n",
            chunk("Par"),
            ": ping\n\n",
            chunk("is.", "stop", usage=CHAT_USAGE),
            DONE,
        ),
    ),
)
