"""`make`, before it installs anything, and the documents name all prerequisites of a bare machine in one command."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"apt install ([\w .+-]+)")


def packages(text: str) -> set[str]:
    """The packages of the only install command in `text`."""
    (names,) = COMMAND.findall(text)
    return set(names.split())


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A fresh checkout, and next to it a folder `bin` with the only available programs."""
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


def test_make_test_names_everything_missing_before_it_creates_anything(bare: Path) -> None:
    done = make(bare, "test")
    assert done.returncode == 2
    assert packages(done.stderr) == {"python3-venv", "curl", "libgomp1"}
    assert not (bare / ".venv").exists()


def test_make_run_does_not_need_the_programs_of_the_tests(bare: Path) -> None:
    done = make(bare, "run")
    assert done.returncode == 2
    assert packages(done.stderr) == {"python3-venv", "libgomp1"}


@pytest.mark.parametrize("name", ["README.md", "docs/QUICK_START.md"])
def test_the_documents_name_the_same_packages_and_make_itself(name: str, bare: Path) -> None:
    assert packages((ROOT / name).read_text()) == packages(make(bare, "test").stderr) | {"make"}
