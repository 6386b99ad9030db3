"""Protect a local model's chat template against prompts that contain its special tokens.

llama.cpp writes a chat as one text (`<|im_start|>user\\n…<|im_end|>`) and then tokenizes it. A special token that is
written in a prompt becomes the same token as the template's own. So a prompt could end its own turn and continue as the
assistant or the system.

If a message contains a character that special tokens are written with, it is tokenized twice, with and without special
tokens. If both results are equal, the message contains none and is sent as usual. If not, koo assembles the chat
itself: the template is tokenized with special tokens, each message without, and the request consists of token numbers,
which nothing parses again.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from koo.ai.providers.transport import Wire
from koo.hidden import Sent

_LETTERS = re.compile(r"[<>\[\]|｜]")
"""Every special token of the usual vocabularies contains one of these characters."""
Messages = list[dict[str, str]]


async def tokens_of(wire: Wire, messages: Messages) -> list[int] | None:
    """The tokens of a chat; None if no message contains a special token. Raises `ExternalServiceError`."""
    for one in messages:
        text = one["content"]
        if _LETTERS.search(text) and await _cut(wire, text) != await _cut(wire, text, marks=True):
            return await _put_together(wire, messages)
    return None


async def _put_together(wire: Wire, messages: Messages) -> list[int]:
    # The template is filled with placeholders and split at them afterwards. They are random, so that the template's own
    # text cannot contain one.
    stands_for = {secrets.token_hex(16): one["content"] for one in messages}
    asked = [one | {"content": place} for one, place in zip(messages, stands_for, strict=True)]
    written = (await _ask(wire, "/apply-template", {"messages": asked}))["prompt"]
    tokens: list[int] = []
    for part in re.split(f"({'|'.join(stands_for)})", written):
        text = stands_for.get(part)
        tokens += await (_cut(wire, part, marks=True, begin=not tokens) if text is None else _cut(wire, text))
    return tokens


async def _cut(wire: Wire, text: str, *, marks: bool = False, begin: bool = False) -> list[int]:
    asked = {"content": text, "parse_special": marks, "add_special": begin}
    tokens: list[int] = (await _ask(wire, "/tokenize", asked))["tokens"]
    return tokens


async def _ask(wire: Wire, path: str, body: dict[str, Any]) -> Any:
    response = await wire.request("POST", path, Sent(json.dumps(body).encode()))
    return json.loads(response.body)
