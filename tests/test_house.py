"""Rules for the repository itself: its public names, and no trace of a developer's machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import koo

ROOT = Path(__file__).parents[1]
PUBLIC_NAMES = ROOT / "tests" / "public_api.txt"

# Folders that exist only on one developer's machine. The pattern is assembled so that this file does not match it.
MACHINE_PATH = re.compile(r"(?<![\w.~>)}-])/" + r"(?:work|root|home/\w+|Users/\w+)/")
# A version list with package addresses works on one network and fails on the next.
ADDRESS = re.compile(
    r"://|^\s*-|--hash| @ |index-url|find-links|\b[\w-]+\.(?:org|com|io|net)\b", re.MULTILINE
)


# The markers that git leaves in a file with a merge conflict.
MERGE_MARK = re.compile(r"(?:<{7}|>{7}|\|{7})(?: .*)?|={7}")


def tracked_files() -> list[Path]:
    """The files that are or will be committed; skips the test without git (an unpacked archive)."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip(listed.stderr.strip())  # another user's checkout, which git refuses to read
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # an image or a font
        return ""


def test_the_public_names_are_the_listed_ones() -> None:
    """The public names are listed, so that every change to them is visible in a diff."""
    update = """python -c "import koo; print(*sorted(koo.__all__), sep='\\n')" > tests/public_api.txt"""
    now, listed = sorted(koo.__all__), PUBLIC_NAMES.read_text().split()
    new, gone = set(now) - set(listed), set(listed) - set(now)
    assert now == listed, f"new: {new or 'none'}, gone: {gone or 'none'}. If this is intended: {update}"


def test_each_public_name_exists(tmp_path: Path) -> None:
    """The names are loaded in a separate process, because some of them read the settings."""
    program = "import koo; print([name for name in koo.__all__ if not hasattr(koo, name)])"
    seen = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "KOO_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (seen.stdout, seen.stderr) == ("[]\n", "")


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_no_file_contains_merge_conflict_markers() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if MERGE_MARK.fullmatch(line)
    ]
    assert found == []


@pytest.mark.parametrize("line", ["<<<<<<< HEAD", "||||||| 1a2b3c", "=======", ">>>>>>> 1a2b3c (A change)"])
def test_each_merge_conflict_marker_is_found(line: str) -> None:
    assert MERGE_MARK.fullmatch(line)


PIN = re.compile(
    r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; [\w.'<>=! ]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
)


@pytest.mark.parametrize("name", ["run", "test", "bench", "apart"])
def test_each_pin_is_a_version_with_hashes_and_without_an_address(name: str) -> None:
    lines = (ROOT / "pins" / f"{name}.txt").read_text().splitlines(keepends=True)
    assert [line for line in lines if ADDRESS.search(line.replace("--hash=sha256:", ""))] == []
    assert PIN.sub("", "".join(line for line in lines if not line.startswith("#"))) == ""


def test_every_installed_package_is_pinned_by_hash() -> None:
    """Each `pip install` in the Makefile uses either a file of pins or exactly these arguments."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    assert set(re.findall(r"\$\(PIP\) install (.*)", makefile)) == {
        "--no-deps --require-hashes --requirement",
        "--no-deps --no-build-isolation --editable .",
    }
    assert "-m pip install" not in makefile
    assert '"--no-deps", "--require-hashes"' in (ROOT / "benchmarks" / "install.py").read_text()
