"""The second, lenient reading of an answer that the strict one cannot read: one mechanism for all formats.

The strict reading is a `msgspec` decoder over a vendor's shapes, and fast. Where it fails, the document is read once
more, whatever is odd about its bytes (a UTF-8 mark, NaN, half a character, control characters in a text), and fitted
into the same shape field by field: a value of the wrong type becomes the nearest thing of the right one, or the field
stays as if it had not come. So a shape must give a default to everything that an answer can do without.

Half a character is kept as half a surrogate pair, or as the escape of a byte, because its other half may come with the
next chunk: `Halves` joins them. `whole_text` is for texts that nothing follows.

What the lenient reading costs is bounded, because it is Python's and some twenty times slower than the strict one: the
loop stands still meanwhile. A document beyond the bounds counts as unreadable.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TypeVar

import msgspec
from msgspec import inspect

from koo.http.connector import is_dense

T = TypeVar("T", bound=msgspec.Struct)

PLAIN_FIELDS = ("text", "content", "parts", "message", "delta")
"""Where a bare text belongs that stands in place of an object: the first of these that the object's shape has."""
WORD_FIELDS = ("text", "value", "content", "type", "reason", "name", "message")
"""Where the text is in an object that stands in place of a bare one."""
LOST = "\ufffd"

LOOSE_BYTES_MAX = 1024 * 1024
"""Twice the longest answers of today's models."""
LOOSE_PARTS_MAX = 10_000
"""Objects and lists of a document, and a fifth of its values."""

NOT_JSON = object()
_ABSENT = object()
_loads = json.JSONDecoder(strict=False).decode
_described = cache(inspect.type_info)  # which takes longer than everything else here


def loads(data: bytes) -> object:
    """A document however oddly it is written, or `NOT_JSON`, which one beyond the bounds is too."""
    if len(data) > LOOSE_BYTES_MAX or is_dense(data, LOOSE_PARTS_MAX):
        return NOT_JSON
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").strip("\ufeff\0 \t\r\n")
    # Not raised: the decoder's error quotes the document, and would stay behind each error that is raised for it.
    with suppress(ValueError, RecursionError):
        # A proxy that reads an event's line as its data sends the prefix twice.
        return _loads(text.removeprefix("data:").lstrip())
    return NOT_JSON


def fit(document: object, shape: type[T]) -> T | None:
    """What of a document fits a shape; None where something is missing that has no default."""
    fitted = _fit(document, _described(shape))
    return fitted if isinstance(fitted, shape) else None


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fit(value: object, node: inspect.Type) -> object:
    """The value as the type that `node` describes, or `_ABSENT`."""
    match node:
        case inspect.UnionType():
            return _fit_one_of(value, node)
        case inspect.NoneType():
            return None if value is None else _ABSENT
        case inspect.StrType():
            return _word(value)
        case inspect.BoolType():
            return _truth(value)
        case inspect.IntType() | inspect.FloatType() | inspect.DecimalType():
            return _number(value, node)
        case inspect.ListType():
            fitted = (_fit(item, node.item_type) for item in _items(value))
            return [item for item in fitted if item is not _ABSENT and item is not None]
        case inspect.StructType():
            return _object(value, node)
        case inspect.RawType():
            return msgspec.Raw(json.dumps(value).encode())
    return _ABSENT


def _fit_one_of(value: object, union: inspect.UnionType) -> object:
    """As the member that it is already, else as the first one that it can become, else as None where that may be."""
    if value is not None:
        members = [member for member in union.types if not isinstance(member, inspect.NoneType)]
        for member in sorted(members, key=lambda member: not _is_one(value, member)):
            fitted = _fit(value, member)
            if fitted is not _ABSENT and (fitted != [] or value == []):
                return fitted
    return None if union.includes_none else _ABSENT


def _is_one(value: object, node: inspect.Type) -> bool:
    match node:
        case inspect.StrType():
            return isinstance(value, str)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.FloatType():
            return isinstance(value, float)
        case inspect.ListType():
            return isinstance(value, (list, dict))
        case _:
            return isinstance(value, dict)


def _word(value: object) -> object:
    match value:
        case str():
            return value
        case True:
            return "true"
        case int() | float() if value is not False and math.isfinite(value):
            return str(value)
        case list():
            words = [word for item in value if isinstance(word := _word(item), str)]
            return "".join(words) if words else _ABSENT
        case dict():
            words = [word for name in WORD_FIELDS if isinstance(word := _word(value.get(name)), str)]
            return words[0] if words else _ABSENT
    return _ABSENT


def _truth(value: object) -> object:
    if isinstance(value, str):
        return value.lower() == "true"
    return bool(value) if isinstance(value, (bool, int, float)) else _ABSENT


def _number(value: object, node: inspect.Type) -> object:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return _ABSENT
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return _ABSENT
    # A number beyond every count would be a gigabyte of digits as an int.
    if not number.is_finite() or number.adjusted() > 30:
        return _ABSENT
    if isinstance(node, inspect.DecimalType):
        return number
    return math.ceil(number) if isinstance(node, inspect.IntType) else float(number)


def _items(value: object) -> list[object]:
    """A list, or what stands in place of one: a single item, or an object whose names are the places (PHP's)."""
    match value:
        case list():
            return value
        case dict() if all(name.isdigit() for name in value):
            return list(value.values())
        case None | "" | bool() | int() | float():
            return []
    return [value]


def _object(value: object, node: inspect.StructType) -> object:
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, dict)), None)
    elif isinstance(value, str) and value:
        names = {field.encode_name for field in node.fields}
        plain = next((name for name in PLAIN_FIELDS if name in names), None)
        value = None if plain is None else {plain: value}
    if not isinstance(value, dict):
        return _ABSENT
    fields: dict[str, object] = {}
    for field in node.fields:
        fitted = _fit(value[field.encode_name], field.type) if field.encode_name in value else _ABSENT
        if fitted is not _ABSENT:
            fields[field.name] = fitted
        elif field.required:
            return _ABSENT
    return node.cls(**fields)


# ── half a character ──────────────────────────────────────────────────────────────────────────────────────────────────

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_BYTE = re.compile("[\udc80-\udcff]")
_OPEN_PAIR = re.compile(r"[\ud800-\udbff]\Z")
_OPEN_BYTES = re.compile(r"[\udcc2-\udcf4][\udc80-\udcbf]{0,2}\Z")
"""At the end of a text: the first bytes of a character."""


class Halves:
    """Joins characters whose halves came in two texts; what finds no other half becomes U+FFFD."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = ""

    def join(self, text: str) -> str:
        """The text with its halves joined; a half at its end is kept for the next one."""
        if not self._kept and _is_whole(text):
            return text
        text = _PAIR.sub(_one_of_two, self._kept + text)
        text, self._kept = _cut_at(_OPEN_PAIR, text)
        # All at once and in C: of a megabyte of bytes that are no text, one call for each would take half a second.
        text = _HALF.sub(LOST, text).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        if not self._kept:
            text, self._kept = _cut_at(_OPEN_BYTES, text)
        return _BYTE.sub(LOST, text)

    def finish(self) -> str:
        """What is left of a half that was kept."""
        kept, self._kept = self._kept, ""
        return LOST if kept else ""


def _one_of_two(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _cut_at(end: re.Pattern[str], text: str) -> tuple[str, str]:
    """The text without its end of this kind, and that."""
    found = end.search(text, max(0, len(text) - 4))
    return (text, "") if found is None else (text[: found.start()], found[0])


def _is_whole(text: str) -> bool:
    """Has it no half of a character?"""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_text(text: str) -> str:
    """A text with what stands for no character replaced."""
    if _is_whole(text):
        return text
    halves = Halves()
    return halves.join(text) + halves.finish()


def repaired(document: object) -> object:
    """A document whose texts are whole."""
    match document:
        case str():
            return whole_text(document)
        case list():
            return [repaired(item) for item in document]
        case dict():
            return {whole_text(name): repaired(value) for name, value in document.items()}
    return document
