"""The proofs install the bounds in pyproject.toml, count the tests that ran, and cover the declared Pythons."""

from __future__ import annotations

import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from proofs.bare import RELEASES
from proofs.fresh import lower_bounds, oldest_of_what_koo_runs_on, pins_of_the_tools
from proofs.pins import BENCH, MODEL, RUN, TEST, canonical, lines_of, versions
from proofs.running import ProofFailed, TimeLimit, read_counts

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = ROOT / "docs" / "proofs"
PIN_FILES = (RUN, TEST, BENCH)
CLASSIFIER = "Programming Language :: Python :: "

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_good"/>
<testcase classname="tests.a" name="test_wrong"><failure message="no"/></testcase>
<testcase classname="tests.a" name="test_broken"><error message="no"/></testcase>
<testcase classname="tests.a" name="test_left_out"><skipped message="no browser: /opt/a/b does not exist"/></testcase>
</testsuite></testsuites>"""


def test_the_declared_pythons_are_those_that_are_tested() -> None:
    """The Pythons of the bare machines, and those with a page of `make prove-python` without failures."""
    named = [
        line.removeprefix(CLASSIFIER) for line in PROJECT["project"]["classifiers"] if CLASSIFIER in line
    ]
    proven = {
        page.stem.removeprefix("python-")
        for page in PAGES.glob("python-*.md")
        if re.search(r"\b0 failed", page.read_text(encoding="utf-8"))
    }
    assert named[0] == "3"
    assert set(named[1:]) <= proven | set(RELEASES.values())


def test_for_a_lower_bound_exactly_that_version_is_installed() -> None:
    bounds = lower_bounds(
        ["sqlalchemy[asyncio]>=2.1,<3", "uvloop>=0.21; sys_platform != 'win32'", "a_b.c>=1"]
    )
    assert bounds == {"sqlalchemy": "2.1", "uvloop": "0.21", "a-b-c": "1"}
    with pytest.raises(ProofFailed, match="typer"):
        lower_bounds(["typer"])


def test_koos_dependencies_have_bounds_and_test_tools_have_pins() -> None:
    oldest = oldest_of_what_koo_runs_on(PROJECT)
    assert {"aiohttp", "sqlalchemy", "xllamacpp", "hatchling"} <= oldest.keys()
    tools = pins_of_the_tools(PROJECT, oldest)
    assert {"pytest", "anthropic"} <= tools.keys()
    assert not oldest.keys() & tools.keys()


def test_the_pins_match_pyproject() -> None:
    """Each package is in one file and within its bounds, so `make` installs nothing else."""
    packaging = pytest.importorskip("packaging.requirements")
    extras, build = PROJECT["project"]["optional-dependencies"], PROJECT["build-system"]["requires"]
    run = [*PROJECT["project"]["dependencies"], *extras["local"], *build, MODEL]
    for wanted, files in (
        (run, (RUN,)),
        ([*extras["dev"], *extras["test"]], PIN_FILES[:2]),
        (extras["bench"], PIN_FILES),
    ):
        pinned = versions(*files)
        asked = [packaging.Requirement(line) for line in wanted if not line.startswith("koo")]
        assert [str(one) for one in asked if pinned.get(canonical(one.name), "") not in one.specifier] == []
    assert sum(len(versions(file)) for file in PIN_FILES) == len(versions(*PIN_FILES))


def test_pins_are_wheels_for_the_supported_systems_and_a_package_without_one_is_refused() -> None:
    def package(*files: str) -> dict[str, Any]:
        wheels = [{"name": file, "hashes": {"sha256": f"{at}"}} for at, file in enumerate(files)]
        return {"name": "x", "version": "1", "wheels": wheels}

    anywhere, old = "x-1-py3-none-any.whl", "x-1-cp39-cp39-manylinux_2_17_x86_64.whl"
    elsewhere, sound = "x-1-cp311-cp311-win_amd64.whl", "x-1-cp311-abi3-manylinux2014_x86_64.whl"
    arm = "x-1-cp311-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"
    assert list(lines_of(package(old, anywhere, elsewhere))) == ["x==1 \\", "    --hash=sha256:1"]
    assert len(list(lines_of(package(sound, arm)))) == 3
    with pytest.raises(ProofFailed, match="no wheel"):
        list(lines_of(package(sound)))


def test_the_counts_of_a_run_are_kept_without_folder_names(tmp_path: Path) -> None:
    junit = tmp_path / "tests.xml"
    with pytest.raises(ProofFailed):
        read_counts(junit)
    junit.write_text(JUNIT)
    counts = read_counts(junit)
    assert counts.sentence() == "1 passed, 2 failed, 1 skipped"
    assert counts.failed == ["tests.a::test_wrong", "tests.a::test_broken"]
    assert list(counts.skipped) == ["no browser: a path does not exist"]


def test_a_proof_that_hangs_ends_at_its_limit() -> None:
    began = time.monotonic()
    with pytest.raises(ProofFailed, match="did not end"):
        TimeLimit(0.2).run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert time.monotonic() - began < 30
