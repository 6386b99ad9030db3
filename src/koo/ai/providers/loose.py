"""Lenient decoding of responses that strict decoding failed on: one mechanism for all formats.

Strict decoding is fast: a `msgspec` decoder for the vendor's shapes. If it fails, the document is decoded again. Odd
bytes are tolerated (a byte order mark, NaN, half a character, control characters in a text), and the document is
fitted into the same shape field by field. A value of the wrong type is converted to the nearest value of the right
type, or the field is treated as missing. So a shape needs a default for every field that an answer can do without.

Half a character is kept as half a surrogate pair or as an escaped byte, because the other half may arrive with the next
chunk; `Halves` joins them. `whole_text` is for texts that nothing follows.

Lenient decoding runs in Python, takes about twenty times as long as strict decoding, and blocks the event loop. So it
is limited: a larger document counts as unreadable.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TypeVar

import msgspec
from msgspec import inspect

from koo.hidden import Sent
from koo.http.connector import is_dense

T = TypeVar("T", bound=msgspec.Struct)

PLAIN_FIELDS = ("text", "content", "parts", "message", "delta")
"""If a text arrives in place of an object, it becomes the first of these fields that the object's shape has."""
WORD_FIELDS = ("text", "value", "content", "type", "reason", "name", "message")
"""If an object arrives in place of a text, the first of these fields that it has is the text."""
LOST = "\ufffd"

LOOSE_BYTES_MAX = 1024 * 1024
"""Twice the size of the longest responses of today's models."""
LOOSE_PARTS_MAX = 10_000
"""The most objects and lists in a document. Five times as many values are allowed."""

_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]+)", re.IGNORECASE)
_CHARSETS = re.compile(
    r"(?:x-)?(?:iso|latin|us-ascii|windows|cp|gb|hz|big5|shift|s-?jis|euc|koi8|utf-?16|utf-?32)",
    re.IGNORECASE,
)
"""The names of charsets. Python's other codecs are not charsets, and some of them unpack a few bytes to gigabytes."""
_ALSO_WINDOWS = re.compile(r"iso-?8859-?1|latin-?1|us-ascii", re.IGNORECASE)
"""Labels that every browser reads as windows-1252, because most servers mean that by them."""

NOT_JSON = object()
_ABSENT = object()
_loads = json.JSONDecoder(strict=False).decode
_described = cache(inspect.type_info)  # cached because it takes longer than everything else here


def in_utf8(data: bytes, headers: Mapping[str, str]) -> bytes:
    """A document that is not UTF-8, converted by the charset of its content type or by its first bytes (UTF-16)."""
    guessed: str = json.detect_encoding(data)
    if guessed.startswith("utf-8"):
        with suppress(UnicodeDecodeError):
            data.decode()
            return data
        found = _CHARSET.search(headers.get("content-type", ""))
        if found is None or not _CHARSETS.match(found[1]):
            return data
        guessed = "cp1252" if _ALSO_WINDOWS.fullmatch(found[1]) else found[1]
    with suppress(LookupError, UnicodeError):
        text = data.decode(guessed).removeprefix("\ufeff")
        return Sent(text.encode()) if text.lstrip()[:1] in ("{", "[") else data
    return data


def loads(data: bytes) -> object:
    """Decode a document leniently; `NOT_JSON` if that is impossible or the document is too large."""
    if len(data) > LOOSE_BYTES_MAX or is_dense(data, LOOSE_PARTS_MAX):
        return NOT_JSON
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").strip("\ufeff\0 \t\r\n")
    # The decoder's error is suppressed and not chained: it quotes the document, and would become the `__context__` of
    # every error that is raised for it.
    with suppress(ValueError, RecursionError):
        # Some proxies take a whole `data: …` line for the data, and add the prefix a second time.
        return _loads(text.removeprefix("data:").lstrip())
    return NOT_JSON


def fit(document: object, shape: type[T]) -> T | None:
    """Fit a document into a shape; None if a field without a default is missing."""
    fitted = _fit(document, _described(shape))
    return fitted if isinstance(fitted, shape) else None


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fit(value: object, node: inspect.Type) -> object:
    """Convert a value to the type that `node` describes; `_ABSENT` if that is impossible."""
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
    """Convert a value to the member type that it has, else to the first possible one, else to None if allowed."""
    # The order matters for `str | list[Part]`: a list must be read as parts first, although its texts could also be
    # joined to a string. And a list that loses all its items in the conversion does not count as converted, but an
    # empty list does.
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
    # "1e999999999" is ten bytes as text, and a gigabyte of digits as an int. No count has more than 30 digits.
    if not number.is_finite() or number.adjusted() > 30:
        return _ABSENT
    if isinstance(node, inspect.DecimalType):
        return number
    return math.ceil(number) if isinstance(node, inspect.IntType) else float(number)


def _items(value: object) -> list[object]:
    """The items of a list, of an object with indexes as names (PHP encodes lists that way), or of a single value."""
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
"""The first bytes of a UTF-8 character at the end of a text, as escaped bytes."""


class Halves:
    """Joins characters that were split over two texts; a half without its other half becomes U+FFFD.

    Two kinds of halves occur. A server that cuts a text after UTF-16 units sends half a surrogate pair as a JSON
    escape. One that cuts after bytes sends incomplete UTF-8, which is decoded to escaped bytes (U+DC80 to U+DCFF).
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = ""

    def join(self, text: str) -> str:
        """Return the text with its halves joined; a half at its end is kept for the next call."""
        if not self._kept and _is_whole(text):
            return text
        text = _PAIR.sub(_one_of_two, self._kept + text)
        text, self._kept = _cut_at(_OPEN_PAIR, text)
        # One round trip in C joins all escaped bytes that form characters. A round trip for each character would take
        # half a second for a megabyte of invalid bytes. The order matters: a lone surrogate that is not an escaped byte
        # must be replaced first, because it cannot be encoded.
        text = _HALF.sub(LOST, text).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        if not self._kept:
            text, self._kept = _cut_at(_OPEN_BYTES, text)
        return _BYTE.sub(LOST, text)

    def finish(self) -> str:
        """Return U+FFFD if a half is left over."""
        kept, self._kept = self._kept, ""
        return LOST if kept else ""


def _one_of_two(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _cut_at(end: re.Pattern[str], text: str) -> tuple[str, str]:
    """Split off the end of the text that matches."""
    found = end.search(text, max(0, len(text) - 4))
    return (text, "") if found is None else (text[: found.start()], found[0])


def _is_whole(text: str) -> bool:
    """Whether the text contains no halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_text(text: str) -> str:
    """The text with halves of characters replaced by U+FFFD."""
    if _is_whole(text):
        return text
    halves = Halves()
    return halves.join(text) + halves.finish()


def repaired(document: object) -> object:
    """The document with halves of characters replaced in all its texts."""
    match document:
        case str():
            return whole_text(document)
        case list():
            return [repaired(item) for item in document]
        case dict():
            return {whole_text(name): repaired(value) for name, value in document.items()}
    return document
