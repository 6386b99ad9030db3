"""The fixtures that pytest finds without configuration work in other projects, and cost nothing if unused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from koo.testing import rules
from tests.cli.running import OLD_TEST_CLIENT

ROOT = Path(__file__).parents[2]
PLUGIN = "koo.testing.pytest_plugin"


def run_pytest(folder: Path, *arguments: str, plugins: tuple[str, ...] = ()) -> str:
    """Run pytest in a separate folder, with koo's plugin and only these others."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environ = {**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "KOO_HOME": str(folder)}
    loaded = [word for name in (PLUGIN, *plugins) for word in ("-p", name)]
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        OLD_TEST_CLIENT,
        "-m",
        "pytest",
        *loaded,
        "-p",
        "no:cacheprovider",
        "-q",
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    return done.stdout + done.stderr


SHOP = """
from koo import Answer, query_ai

async def suggest(what: str) -> Answer:
    return await query_ai("claude", f"Suggest {what}.", fallback=["local"])
"""
OUTAGE = """
from shop import suggest
{mark}
async def test_an_outage(koo):
    koo.claude.fails(529)
    assert (await suggest("shoes")).service == "local"
    koo.claude.answers("Boots.")
    koo.clock.advance(minutes=3)
    assert (await suggest("shoes")).text == "Boots."

{mark}
async def test_another_world(koo):
    assert koo.claude.attempts == 0 and (await suggest("shoes")).text == "Paris."
    assert koo.settled()
"""


def write(folder: Path, **files: str) -> None:
    for name, text in {"shop": SHOP, **files}.items():
        (folder / f"{name}.py").write_text(text)


def test_the_examples_of_the_documentation_pass_unchanged(tmp_path: Path) -> None:
    """All run in one process, so that each starts after another test has used a world."""
    page = (ROOT / "docs" / "testing.md").read_text()
    shop, *tests = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    write(tmp_path, shop=shop, **{f"test_{number}": test for number, test in enumerate(tests)})
    said = run_pytest(tmp_path, plugins=("anyio",))
    assert f"{11 + len(rules())} passed" in said, said


@pytest.mark.parametrize(
    ("plugins", "arguments", "mark"),
    [
        (("anyio",), (), "@__import__('pytest').mark.anyio"),
        (("asyncio",), ("-o", "asyncio_mode=strict"), "@__import__('pytest').mark.asyncio"),
        (("asyncio", "anyio"), ("-o", "asyncio_mode=auto"), ""),
        (("asyncio",), ("-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"), ""),
    ],
    ids=["anyio", "asyncio strict", "asyncio auto with anyio", "one loop for all tests"],
)
def test_the_plugin_works_with_every_asynchronous_plugin(
    tmp_path: Path, plugins: tuple[str, ...], arguments: tuple[str, ...], mark: str
) -> None:
    write(tmp_path, test_outage=OUTAGE.format(mark=mark))
    said = run_pytest(
        tmp_path, *arguments, "-o", "asyncio_default_fixture_loop_scope=function", plugins=plugins
    )
    assert "2 passed" in said, said


def test_without_an_asynchronous_plugin_koo_sync_and_own_loops_work(tmp_path: Path) -> None:
    write(
        tmp_path,
        test_sync="""
import asyncio
import koo as resilience
from shop import suggest

def test_an_outage(koo_sync):
    koo_sync.claude.fails(529)
    for _ in range(2):
        assert resilience.run(suggest("shoes")).service == "local"
    assert koo_sync.claude.state == "circuit_open"
    koo_sync.claude.answers("Boots.")
    koo_sync.clock.advance(minutes=3)
    assert resilience.run(suggest("shoes")).text == "Boots."

def test_a_deadline_after_a_skip(koo_sync):
    koo_sync.clock.advance(days=2)
    with resilience.deadline(600):
        assert resilience.run(suggest("shoes")).text == "Paris."

def test_loops_of_its_own(koo):
    for _ in range(2):
        assert asyncio.run(suggest("shoes")).text == "Paris."
    assert koo.claude.attempts == 2
""",
    )
    said = run_pytest(tmp_path)
    assert "3 passed" in said, said


def test_unused_steps_fail_the_test_itself(tmp_path: Path) -> None:
    write(
        tmp_path,
        test_strict="""
import pytest
import koo as resilience
from shop import suggest

def test_left_over(koo_sync):
    koo_sync.claude.fails(529, times=3)

def test_failed_anyway(koo_sync):
    koo_sync.claude.fails(529, times=3)
    assert 1 == 2

@pytest.mark.koo(strict=False)
def test_lax(koo_sync):
    koo_sync.claude.fails(529, times=3)

@pytest.mark.koo(settings={"AI_SERVICES__CLAUDE__MODEL": "claude-haiku-5-5"})
def test_settings(koo_sync):
    assert resilience.run(suggest("shoes")).model == "claude-haiku-5-5"
""",
    )
    said = run_pytest(tmp_path, "--strict-markers")
    assert "2 failed, 2 passed" in said and "error" not in said.splitlines()[-1], said
    assert "koo.claude: 3 step(s) of its script were not used: Failure(status=529" in said
    assert "assert 1 == 2" in said


def test_a_test_that_is_run_again_is_not_blamed_for_its_first_run(tmp_path: Path) -> None:
    """As pytest-rerunfailures runs it: the same item, whose first run failed in a fixture."""
    write(
        tmp_path,
        conftest="""
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    runtestprotocol(item, nextitem=nextitem, log=False)
    item._initrequest()
    runtestprotocol(item, nextitem=nextitem)
    return True
""",
        test_again="""
import pytest
import koo as resilience
from shop import suggest

runs = []

@pytest.fixture
def flaky(koo_sync):
    runs.append(koo_sync.claude.fails(529, times=1))
    if len(runs) == 1:
        raise OSError("a port is taken")

def test_again(flaky):
    resilience.run(suggest("shoes"))
    assert len(runs) == 2
""",
    )
    said = run_pytest(tmp_path)
    assert "1 passed" in said and "failed" not in said, said


def test_an_unknown_argument_of_the_marker_fails_with_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path, test_typo="import pytest\n@pytest.mark.koo(setings={})\ndef test_typo(koo): pass\n")
    said = run_pytest(tmp_path)
    assert "@pytest.mark.koo has no argument 'setings'; did you mean 'settings'?" in said
    assert "Traceback" not in said and "1 error" in said, said


def test_a_project_that_does_not_use_the_plugin_is_unaffected(tmp_path: Path) -> None:
    """Such a project keeps its own fixture `koo`, its own asynchronous fixtures, and the errors of its tests."""
    write(
        tmp_path,
        conftest="""
import pytest, pytest_asyncio

@pytest.fixture
def koo():
    return "mine"

@pytest_asyncio.fixture
async def later():
    yield 7
""",
        test_own="""
import sys, pytest

@pytest.mark.asyncio
async def test_own(koo, later):
    assert (koo, later) == ("mine", 7)
    assert not [name for name in sys.modules if name.startswith(("koo.testing.world", "koo.platform"))]

def test_fails():
    raise KeyError("own")
""",
    )
    options = ("asyncio_mode=strict", "asyncio_default_fixture_loop_scope=function")
    said = run_pytest(tmp_path, *(word for one in options for word in ("-o", one)), plugins=("asyncio",))
    assert "1 failed, 1 passed" in said and "KeyError: 'own'" in said and "pytest_plugin" not in said, said


def test_each_test_has_a_fresh_database_and_the_version_can_be_set(tmp_path: Path) -> None:
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
    said = run_pytest(tmp_path)
    assert "2 passed" in said, said


def test_pytest_finds_the_plugin_without_configuration() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"koo": PLUGIN}
    assert import_module(PLUGIN).pytest_addoption


def test_loading_the_plugin_loads_no_module_of_the_fixtures() -> None:
    heavy = ("koo.testing.postgres", "psutil", "sqlalchemy", "asyncio", "koo.database")
    code = (
        f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(*(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in loaded if name.startswith(heavy)] == []
    assert len(loaded) < 10, loaded
