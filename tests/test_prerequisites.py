"""What a bare machine lacks is named in one command, by `make` before it installs anything and by the documents."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"apt install ([\w .+-]+)")


def packages(text: str) -> set[str]:
    """The packages of the only command in `text` that installs some."""
    (names,) = COMMAND.findall(text)
    return set(names.split())


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A fresh checkout, and beside it a folder `bin` with the only programs that there are."""
    (tmp_path / "bin").mkdir()
    for program in ("make", "sh"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / "bin" / program).symlink_to(found)
    uname = tmp_path / "bin" / "uname"
    uname.write_text("#!/bin/sh\necho Linux\n")
    uname.chmod(0o755)
    shutil.copytree(ROOT / "pins", tmp_path / "pins")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(bare: Path, goal: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", goal],
        cwd=bare,
        env={"PATH": str(bare / "bin")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_make_test_names_all_that_is_missing_before_it_makes_anything(bare: Path) -> None:
    done = make(bare, "test")
    assert done.returncode == 2
    assert packages(done.stderr) == {"python3-venv", "curl", "libgomp1"}
    assert not (bare / ".venv").exists()


def test_make_run_does_without_what_only_the_tests_need(bare: Path) -> None:
    done = make(bare, "run")
    assert done.returncode == 2
    assert packages(done.stderr) == {"python3-venv", "libgomp1"}


@pytest.mark.parametrize("name", ["README.md", "docs/QUICK_START.md"])
def test_the_documents_name_the_same_and_make_itself(name: str, bare: Path) -> None:
    assert packages((ROOT / name).read_text()) == packages(make(bare, "test").stderr) | {"make"}
