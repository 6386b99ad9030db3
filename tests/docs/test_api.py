"""`docs/api.md` is up to date with the docstrings and contains every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import koo
from docs.generate_api import (
    BACKEND,
    GROUPS,
    INNER,
    MADE_WHEN_ASKED_FOR,
    PAGE,
    UNDER_NO_HEADING,
    WEB,
    doc_of,
    page,
)
from koo import testing, web
from tests.docs.markdown import ROOT, blocks

HEADINGS = set(re.findall(r"^#{2,5} `([\w.]+)`$", page(), re.MULTILINE))


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"


def test_types_are_written_as_in_the_source() -> None:
    assert re.findall(r".*(?:ForwardRef|<class|~\w).*", page()) == []


def test_every_public_name_has_a_place() -> None:
    placed = [name for group in GROUPS for name in group.names]
    bound = {name for module in BACKEND for name in import_module(module).__all__} - {*placed, "router"}
    assert sorted([*placed, *bound, *UNDER_NO_HEADING]) == sorted(koo.__all__)
    assert sorted([*WEB, "METRICS_TYPE"]) == sorted(web.__all__)
    assert {*placed, *bound, *WEB, *testing.__all__} <= HEADINGS


@pytest.mark.parametrize("module", BACKEND)
def test_every_name_of_the_backend_is_listed(module: str) -> None:
    assert {module, *import_module(module).__all__} <= HEADINGS


def test_lazily_created_names_are_public() -> None:
    for full in MADE_WHEN_ASKED_FOR:
        module, _, name = full.rpartition(".")
        assert name in import_module(module).__all__


def test_every_omitted_name_exists() -> None:
    """A name that is removed from the code has to be removed from this list too."""
    for owner, names in INNER.items():
        one = getattr(koo if owner in koo.__all__ else testing, owner)
        assert [name for name in names if not hasattr(one, name)] == []


def test_a_public_name_without_a_docstring_stops_the_generator() -> None:
    def silent() -> None: ...

    with pytest.raises(ValueError, match="no docstring"):
        doc_of(silent)


def test_the_page_does_not_depend_on_this_run() -> None:
    """A memory address, a folder or a default from the environment would differ in the next run."""
    text = page()
    assert re.search(r"0x[0-9a-f]{6}|PosixPath|/home/|object at", text) is None
    assert len(blocks(PAGE)) > 50


def test_generating_the_page_reads_no_setting(tmp_path: Path) -> None:
    """Otherwise a developer's own `.env` could stop `make docs` or get into the page."""
    script = "from docs.generate_api import page; print(page(), end='')"
    env = {
        "PATH": os.environ["PATH"],
        "KOO_HOME": str(tmp_path),
        "DATABASE_POOL_SIZE": "-1",
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == page()


def test_no_entry_refers_only_to_itself() -> None:
    entries = re.findall(r"^#+ `(\w+)`\n\nThe same as .*`(.+?)`", page(), re.MULTILINE)
    assert entries and [name for name, same in entries if name == same] == []
