"""Each obstacle to the local model is named, with the one command that removes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from koo.ai import local_obstacle
from koo.ai.local_model import PACKAGE
from koo.ai.local_obstacle import ENGINE, engine_obstacle, import_obstacle, model_obstacle

INSTALL = "from where you installed koo, run pip install -U '/path/to/koo[local]', then koo model install"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it can be missing only on Linux")
NO_LIBGOMP = "libgomp.so.1: cannot open shared object file: No such file or directory"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed engine that must not be imported, and a separate file as the system's list of libraries."""
    package = tmp_path / ENGINE
    package.mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, ENGINE, raising=False)
    monkeypatch.setattr(local_obstacle, "LD_CACHE", tmp_path / "ld.so.cache")
    yield package / "__init__.py"
    assert ENGINE not in sys.modules


def test_an_engine_that_is_not_installed_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, ENGINE, None)
    assert engine_obstacle() == (f"not configured: its engine xllamacpp is not installed; {INSTALL}")


@linux
def test_a_missing_library_is_named_with_its_package_until_it_is_installed(engine: Path) -> None:
    engine.write_text(f"raise ImportError({NO_LIBGOMP!r})")
    local_obstacle.LD_CACHE.write_bytes(b"libc.so.6\0")
    missing = (
        "not configured: its engine needs libgomp.so.1, which this machine lacks; run apt install libgomp1"
    )
    assert engine_obstacle() == missing
    assert engine_obstacle() == missing
    # Installing a library rewrites the list.
    local_obstacle.LD_CACHE.write_bytes(b"libc.so.6\0libgomp.so.1\0")
    assert engine_obstacle() == ""


@linux
def test_an_engine_with_its_own_library_needs_no_system_library(engine: Path) -> None:
    engine.write_text("")
    assert engine_obstacle() == ""


@linux
def test_an_engine_that_failed_to_load_is_tried_even_if_the_usual_library_is_present(engine: Path) -> None:
    engine.write_text("raise ImportError('libfoo.so.7: cannot open shared object file: No such file')")
    local_obstacle.LD_CACHE.write_bytes(b"\0libgomp.so.1\0")
    assert engine_obstacle() == ""
    assert "needs libfoo.so.7, which this machine lacks; install the system package that contains it" in (
        engine_obstacle(doubted=True)
    )


def test_any_other_import_failure_means_reinstalling_the_engine() -> None:
    assert import_obstacle("ImportError: undefined symbol: llama_decode").endswith(
        f"is damaged or too old; {INSTALL}"
    )


def test_a_missing_model_or_an_invalid_file_is_an_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    assert "no model is installed; run koo model install (93 MB), or set AI_SERVICES__LOCAL__MODEL" in (
        model_obstacle(None)
    )
    assert "none.gguf does not exist; run koo model install" in model_obstacle(tmp_path / "none.gguf")
