"""A local model's input is text, even where it looks like the marks that a chat is built of.

llama.cpp writes a chat as one text (`<|im_start|>user\\n…<|im_end|>`) and then makes tokens of it. A model's marks in a
prompt become the same tokens as its own: a prompt could end its own turn, and continue as the assistant or the system.
So a prompt with a letter of such marks is tokenised twice, with marks and without. If both results are the same, it has
none, and takes the usual way. If not, koo puts the chat together: the template with its marks, each message without, as
numbers of tokens, which nothing parses a second time.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from koo.ai.providers.transport import Wire
from koo.hidden import Sent

_LETTERS = re.compile(r"[<>\[\]|｜]")
"""No mark of the usual vocabularies is without one of these."""
Messages = list[dict[str, str]]


async def tokens_of(wire: Wire, messages: Messages) -> list[int] | None:
    """The tokens of a chat; None if no message contains a mark. Raises `ExternalServiceError`."""
    for one in messages:
        text = one["content"]
        if _LETTERS.search(text) and await _cut(wire, text) != await _cut(wire, text, marks=True):
            return await _put_together(wire, messages)
    return None


async def _put_together(wire: Wire, messages: Messages) -> list[int]:
    # Random, so that no message can have one in it.
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
