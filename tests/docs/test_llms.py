"""`llms.txt` says what the documents say, and names each of them."""

from __future__ import annotations

import re

import koo
from docs.generate_llms import PAGE, ROOT, page

LINKED = re.compile(r"^- \[[^\]]+\]\(([^)]+)\): (.+)$", re.MULTILINE)


def test_it_is_as_new_as_the_documents() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"


def test_each_document_is_in_it_once_with_a_sentence_and_is_there() -> None:
    listed = [target for target, _ in LINKED.findall(PAGE.read_text(encoding="utf-8"))]
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert written <= set(listed) and len(set(listed)) == len(listed)
    assert [target for target in listed if not (ROOT / target).is_file()] == []


def test_the_names_that_it_imports_are_there() -> None:
    (names,) = re.findall(r"`from koo import ([\w, ]+)`", PAGE.read_text(encoding="utf-8"))
    assert [name for name in names.split(", ") if not hasattr(koo, name)] == []
