"""Lenient decoding: values of another type than the shape's, and halves of characters."""

from __future__ import annotations

import sys
from decimal import Decimal
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.ai.providers.loose import (
    LOOSE_BYTES_MAX,
    LOOSE_PARTS_MAX,
    LOST,
    NOT_JSON,
    Halves,
    fit,
    in_utf8,
    loads,
    whole_text,
)


class Part(msgspec.Struct):
    text: str | None = None


class Shape(msgspec.Struct, rename="camel"):
    word: str | None = None
    count_of_all: int | float | None = None
    cost: Decimal | None = None
    flag: bool | None = None
    content: str | list[Part] | None = None
    parts: list[Part] = []


@pytest.mark.parametrize(
    ("document", "shape"),
    [
        ({"word": 7}, Shape(word="7")),
        ({"word": True}, Shape(word="true")),
        ({"word": False}, Shape()),
        ({"word": {"type": "stop"}}, Shape(word="stop")),
        ({"word": []}, Shape()),
        ({"countOfAll": " 12 "}, Shape(count_of_all=12)),
        ({"countOfAll": [12]}, Shape(count_of_all=12)),
        ({"countOfAll": [1, 2]}, Shape()),
        ({"countOfAll": "many"}, Shape()),
        ({"countOfAll": float("nan")}, Shape()),
        ({"countOfAll": True}, Shape()),
        ({"countOfAll": 10**40}, Shape()),
        ({"cost": "0.25"}, Shape(cost=Decimal("0.25"))),
        ({"cost": {}}, Shape()),
        ({"flag": "true"}, Shape(flag=True)),
        ({"flag": 0}, Shape(flag=False)),
        ({"content": {"text": "a"}}, Shape(content=[Part("a")])),
        ({"content": ["a", None, 7]}, Shape(content=[Part("a")])),
        ({"content": 7}, Shape(content="7")),
        ({"parts": "a"}, Shape(parts=[Part("a")])),
        ({"parts": {"0": {"text": "a"}, "1": {"text": "b"}}}, Shape(parts=[Part("a"), Part("b")])),
        ({"parts": None, "new": [{}]}, Shape()),
        ([{"word": "a"}], Shape(word="a")),
        (7, None),
        (None, None),
        (NOT_JSON, None),
    ],
)
def test_a_value_is_converted_to_the_right_type_or_left_out(document: Any, shape: Shape | None) -> None:
    assert fit(document, Shape) == shape


def test_a_missing_required_field_is_not_invented() -> None:
    class Strict(msgspec.Struct):
        delta: Part

    assert fit({"delta": 7}, Strict) is None and fit({}, Strict) is None
    assert fit({"delta": "a"}, Strict) == Strict(Part("a"))


@pytest.mark.parametrize(
    ("data", "document"),
    [
        (b'\xef\xbb\xbf{"a": NaN}', {"a": pytest.approx(float("nan"), nan_ok=True)}),
        (b'data: {"a": "x\ny"}\0', {"a": "x\ny"}),
        (b'{"a": "\\ud83d"}', {"a": "\ud83d"}),
        (b"ping", NOT_JSON),
        (b"[" * 100_000, NOT_JSON),
        (b"1" * 5000, NOT_JSON),
        (b"", NOT_JSON),
    ],
)
def test_a_document_with_odd_bytes_is_read(data: bytes, document: Any) -> None:
    assert loads(data) == document


@pytest.mark.parametrize(
    ("data", "charset", "read"),
    [
        ('{"a": "café"}'.encode(), "iso-8859-1", {"a": "café"}),
        ('{"a": "café"}'.encode("latin-1"), '"ISO-8859-1"', {"a": "café"}),
        ('{"a": "巴黎"}'.encode("gbk"), "GBK", {"a": "巴黎"}),
        ('["巴黎"]'.encode("utf-16-le"), "utf-8", ["巴黎"]),
        ('{"a": "café"}'.encode("latin-1"), "utf-8", {"a": "caf\udce9"}),
        ('{"a": "café"}'.encode("latin-1"), "unicode_escape", {"a": "caf\udce9"}),
        ('{"a": "café"}'.encode("latin-1"), "gb-of-nowhere", {"a": "caf\udce9"}),
        (b'\0{"a": 1}', "utf-8", {"a": 1}),
    ],
)
def test_a_document_is_read_in_its_charset(data: bytes, charset: str, read: Any) -> None:
    """A wrong label does no harm, and a codec that is not a charset is never used."""
    assert loads(in_utf8(data, {"content-type": f"application/json; charset={charset}"})) == read


@given(st.text(), st.data())
def test_characters_split_over_two_texts_are_joined(text: str, data: st.DataObject) -> None:
    """This applies to JSON escapes, which are halves of a surrogate pair, and to bytes."""
    units = text.encode("utf-16-le")
    halves = [units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2)]
    octets = [bytes([octet]).decode("utf-8", "surrogateescape") for octet in text.encode()]
    for smallest in (halves, octets):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(smallest)), max_size=5)))
        portions = [smallest[a:b] for a, b in zip([0, *cuts], [*cuts, len(smallest)], strict=True)]
        joiner = Halves()
        assert "".join(joiner.join("".join(portion)) for portion in portions) + joiner.finish() == text


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=4), max_size=6))
def test_every_result_is_valid_text(texts: list[str]) -> None:
    joiner = Halves()
    for text in texts:
        joiner.join(text).encode()
    assert joiner.finish() in ("", "\ufffd")
    whole_text("".join(texts)).encode()


@pytest.mark.parametrize(
    ("part", "most"),
    [(b" ", LOOSE_BYTES_MAX - 3), (b"{},", LOOSE_PARTS_MAX - 1), (b"1,", 5 * LOOSE_PARTS_MAX)],
    ids=["bytes", "objects", "values"],
)
def test_a_document_that_is_too_large_for_lenient_decoding_is_unreadable(part: bytes, most: int) -> None:
    assert isinstance(loads(b"[" + part * most + b"1]"), list)
    assert loads(b"[" + part * (most + 1) + b"1]") is NOT_JSON


@pytest.mark.parametrize("odd", ["\udcff", "a\udcff\udc00"])
def test_a_long_text_of_halves_is_repaired_without_a_call_for_each(odd: str) -> None:
    """With a microsecond for each byte of a megabyte, the event loop would be blocked for a second."""
    calls = [0]

    def count(frame: FrameType, event: str, argument: object) -> None:
        calls[0] += event == "call"

    sys.setprofile(count)
    text = whole_text(odd * 10_000)
    sys.setprofile(None)
    assert calls[0] < 50 and text == odd.translate(dict.fromkeys(range(0xD800, 0xE000), LOST)) * 10_000
