"""Numbers and times on the terminal: the same rules as on the page, with shared examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from koo.cli import words

EXAMPLES = json.loads((Path(__file__).parents[1] / "words.json").read_text())
NOW = 1795874711.0  # 2026-11-28T14:05:11Z


@pytest.mark.parametrize("one", EXAMPLES, ids=lambda one: f"{one['rule']}{one['given']}")
def test_a_number_reads_as_on_the_page(one: dict[str, object]) -> None:
    """`tests/web/test_page_modules.py` runs the same examples through the page's own script."""
    rule = getattr(words, str(one["rule"]))
    given = one["given"]
    assert isinstance(given, list)
    assert rule(*given) == one["reads"]


def test_a_time_has_its_zone_and_no_fraction() -> None:
    assert words.when("2026-11-28T14:07:06.058907+00:00") == "2026-11-28T14:07:06Z"
    assert words.when("2026-11-28T16:07:06+02:00") == "2026-11-28T14:07:06Z"
    assert words.when("soon") == "soon"
    assert words.moment(NOW + 42, NOW) == "2026-11-28T14:05:53Z (in 42 s)"


def test_a_time_in_a_sentence_has_the_same_format_and_the_time_until_then() -> None:
    said = words.plainly("used up until 2026-11-28T14:07:06.058907+00:00, then asked", NOW)
    assert said == "used up until 2026-11-28T14:07:06Z (in 2 min), then asked"
    assert words.plainly("it ended 2026-11-28T14:05:10Z", NOW) == "it ended 2026-11-28T14:05:10Z"
    assert words.plainly("no time at all", NOW) == "no time at all"
    assert words.time_in("until 2026-11-28T14:07:06+00:00") == NOW + 115
    assert words.time_in("no time at all") is None
