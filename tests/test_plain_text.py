"""Foreign text becomes one line of visible characters."""

from __future__ import annotations

import pytest

from koo.plain_text import plain


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("claude-4.5 “größe” 日本", "claude-4.5 “größe” 日本"),
        ("a\r\nBcc: all@example.com", "a Bcc: all@example.com"),
        ("\x1b[31mred\x1b[0m\a", "�[31mred�[0m�"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("pay\u200bpal\ufeff", "paypal"),
        ("one\u2028two\u2029three\x85four", "one two three four"),
        ("\ud800half", "�half"),
        ("  much \t space  ", "much space"),
        ("", ""),
    ],
)
def test_plain_text_has_no_invisible_characters_and_no_line_breaks(text: str, seen: str) -> None:
    assert plain(text) == seen
    assert plain(text).isprintable()


def test_a_long_text_is_cut_visibly() -> None:
    assert plain("x" * 1_000_000, 10) == "xxxxxxxxx…"
    assert len(plain("word " * 1000)) <= 500
    assert plain("x" * 10, 10) == "x" * 10
