"""Finds all texts in a call's arguments, whatever objects contain them, so that they can be counted.

Two kinds of content are not text. A picture counts as the most tokens that any vendor makes of one. For everything else
that is not text (a document, audio), and for what cannot be read without consuming it (an iterator), the length stays
unknown.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from koo.ai.usage_names import get, module_of

PICTURES = ("image_url", "input_image", "image")
MEDIA = (
    "input_audio", "audio", "file", "input_file", "document", "video", "video_url", "input_video", "container_upload",
    "item_reference", "compaction",
)  # fmt: skip
PICTURE_TOKENS = 16_384
"""The largest picture is OpenAI's: 10,000 patches at `detail: original`, multiplied by the factor of its smaller models
(its page on images, November 2026). Anthropic and Google count a few thousand tokens at most."""
DEAR_PICTURES, DEAR_PICTURE_TOKENS = "4o-mini", 49_152
"""This family counts a picture as 33 times the tokens of other models, so that a picture costs the same on all."""
TOOL_TOKENS = 2048
"""What a vendor may add to a prompt with tools: about 800 tokens as far as is known, as many again for a tool of the
vendor's own, and a reserve."""
NODE_TOKENS = 4
"""What may surround one value in a prompt: quotes, separators, the marks of a role."""
DIGITS_MAX = 20
"""Tokens for each number in a list of numbers: some tokenizers make a token of each digit."""
NODES_MAX = 100_000
"""The most values that are visited, which takes 0.1 s. A structure may be larger, or contain itself."""
REST_TOKENS = 10_000_000
"""Added for a structure with more values than that: more than any model reads."""
FIELDS = ("__struct_fields__", "__dataclass_fields__", "__dict__")
"""Attributes in which an object or its class lists its fields."""
NOT_GIVEN = ("NotGiven", "Omit", "NOT_GIVEN", "Unset")


class Reading(NamedTuple):
    """The content of a prompt: its `texts`, and the `tokens` of everything else. `is_open`: some length is unknown."""

    texts: list[str]
    tokens: int
    is_open: bool
    has_media: bool
    keeps_1h: bool


def read_prompt(said: object, model: str) -> Reading:
    """Collect all texts in a call's arguments, and count everything else that becomes tokens."""
    picture = DEAR_PICTURE_TOKENS if DEAR_PICTURES in model else PICTURE_TOKENS
    texts: list[str] = []
    tokens, is_open, has_media, keeps_1h, nodes = 0, False, False, False, 0
    # This uses a stack instead of recursion: a prompt nested a thousand levels deep must not end in a RecursionError.
    # Objects that have already been seen are not skipped, because a text that is passed twice is billed twice. So the
    # number of values is what ends the walk over a structure that contains itself.
    rest: list[object] = [said]
    while rest:
        value, nodes = rest.pop(), nodes + 1
        if nodes > NODES_MAX:
            tokens += REST_TOKENS
            break
        if value is None or isinstance(value, bool):
            continue
        tokens += NODE_TOKENS
        if isinstance(value, str):
            texts.append(value)
            # Anthropic's `cache_control: {"ttl": "1h"}`. It may be anywhere in the prompt, so any such string counts.
            keeps_1h = keeps_1h or value == "1h"
        elif isinstance(value, (int, float, Decimal)):
            tokens += len(str(value))
        elif isinstance(value, (list, tuple, set, frozenset)):
            if set(map(type, value)) == {int}:  # a list of token numbers, which embeddings accept
                tokens += DIGITS_MAX * len(value)
            else:
                rest.extend(value)
        elif (kind := _medium(value)) is not None:
            has_media = True
            tokens += picture if kind == "picture" else 0
            is_open = is_open or kind != "picture"
        elif isinstance(value, Mapping):
            texts.extend(key for key in value if isinstance(key, str))
            rest.extend(value.values())
            tokens += TOOL_TOKENS if "tools" in value else NODE_TOKENS * len(value)
        elif (inner := _opened(value)) is not None:
            rest.append(inner)
        else:
            is_open = True
    return Reading(texts, tokens, is_open, has_media, keeps_1h)


def _medium(part: object) -> str | None:
    """The kind of a part that is not text: "picture", or "more" for other media. None if it is text."""
    if isinstance(part, (bytes, bytearray, memoryview)) or callable(get(part, "read")):
        return "more"
    if module_of(part) == "PIL":
        return "picture"
    kind = get(part, "type")
    if kind in PICTURES and isinstance(kind, str):
        return "picture"
    if kind in MEDIA and isinstance(kind, str):
        source = get(part, "source")
        return None if get(source, "type") in ("text", "content") else "more"
    for name in ("inline_data", "inlineData"):
        if is_given(inline := get(part, name)):
            mime = get(inline, "mime_type") or get(inline, "mimeType")
            return "picture" if isinstance(mime, str) and mime.startswith("image/") else "more"
    is_file = any(is_given(get(part, name)) for name in ("file_data", "fileData", "file_uri"))
    return "more" if is_file or (type(part).__name__ == "File" and is_given(get(part, "uri"))) else None


def _opened(value: object) -> object:
    """The readable content of an object; None if it has none that can be read. An iterator can be read only once."""
    if isinstance(value, type):
        schema = getattr(value, "model_json_schema", None)
        if callable(schema):
            return schema()
        return [value.__name__, inspect.getdoc(value), str(inspect.get_annotations(value))]
    if inspect.isroutine(value):
        return [value.__name__, inspect.getdoc(value), str(inspect.signature(value))]
    if hasattr(value, "__next__") or hasattr(value, "__anext__"):
        return None
    if type(value).__name__ in NOT_GIVEN:
        return []
    return dict(fields_of(value)) if any(hasattr(value, name) for name in FIELDS) else None


def fields_of(thing: object) -> Iterator[tuple[str, Any]]:
    """A mapping's items, or an object's fields including those that its class does not declare."""
    if isinstance(thing, Mapping):
        yield from ((key, value) for key, value in thing.items() if isinstance(key, str))
        return
    names = next((names for one in FIELDS if (names := get(thing, one))), ())
    if isinstance(names, (tuple, Mapping)):
        yield from ((name, get(thing, name)) for name in names if not name.startswith("_"))
    more = get(thing, "__pydantic_extra__")
    if isinstance(more, Mapping):
        yield from more.items()


def is_given(value: object) -> bool:
    """Whether the value is a real argument, not an SDK's marker for an argument that is not given."""
    return value is not None and type(value).__name__ not in NOT_GIVEN
