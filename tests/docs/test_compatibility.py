"""The page of odd responses contains exactly what the tests send."""

from __future__ import annotations

from docs.generate_compatibility import FORMATS, PAGE, page
from tests.ai.test_oddities import ALL


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "`make docs` writes it again"


def test_each_row_is_a_line_of_the_page() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for oddity in ALL:
        named = [line for line in lines if oddity.name.replace("|", "\\|") in line.split(" | ")[0]]
        assert any(oddity.sender in line and oddity.what_koo_does in line for line in named), oddity.name
    assert {oddity.format for oddity in ALL} <= FORMATS.keys()
