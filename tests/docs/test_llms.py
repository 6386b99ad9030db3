"""`llms.txt` is up to date with the documents and lists each of them."""

from __future__ import annotations

import re

import koo
from docs.generate_llms import PAGE, ROOT, page

LINKED = re.compile(r"^- \[[^\]]+\]\(([^)]+)\): (.+)$", re.MULTILINE)


def test_the_file_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"


def test_each_document_exists_and_is_listed_once_with_a_sentence() -> None:
    listed = [target for target, _ in LINKED.findall(PAGE.read_text(encoding="utf-8"))]
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert written <= set(listed) and len(set(listed)) == len(listed)
    assert [target for target in listed if not (ROOT / target).is_file()] == []


def test_the_imported_names_exist() -> None:
    (names,) = re.findall(r"`from koo import ([\w, ]+)`", PAGE.read_text(encoding="utf-8"))
    assert [name for name in names.split(", ") if not hasattr(koo, name)] == []
