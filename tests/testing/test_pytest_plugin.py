"""The fixtures that pytest finds by itself: they work in a project of somebody else's, and cost nothing unused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGIN = "koo.testing.pytest_plugin"


def run_pytest(folder: Path, *arguments: str) -> str:
    """pytest in a folder of its own, with no other plugin than ours."""
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-p",
        PLUGIN,
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    return done.stdout + done.stderr


def test_the_tests_of_the_page_pass_as_they_stand(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "test_orders.py").write_text(snippet)
    said = run_pytest(tmp_path, "-q")
    assert "2 passed" in said, said


def test_each_test_has_a_fresh_database_and_the_version_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nkoo_postgres_major = 16\n")
    (tmp_path / "test_fresh.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_fresh(koo_postgres, koo_postgres_url, n):\n"
        "    name = koo_postgres_url.rpartition('/')[2]\n"
        "    koo_postgres.sql('CREATE TABLE t (n int)', name)\n"
        "    assert koo_postgres.sql('SHOW server_version', name).startswith('16')\n"
        "    koo_postgres.kill()\n"
    )
    said = run_pytest(tmp_path, "-q")
    assert "2 passed" in said, said


def test_pytest_finds_it_by_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"koo": PLUGIN}
    assert import_module(PLUGIN).pytest_addoption


def test_loading_it_loads_nothing_that_a_fixture_needs() -> None:
    heavy = ("koo.testing.postgres", "psutil", "sqlalchemy", "asyncio", "koo.database")
    code = (
        f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(*(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in loaded if name.startswith(heavy)] == []
    assert len(loaded) < 10, loaded
