"""Runs all tests in a fresh environment of the Python that runs this: `python3.12 -m proofs.fresh [--oldest] [pytest's
…]`.

Without `--oldest` every package has the version and the hash of pins/. With it, koo's dependencies have exactly the
lower bounds of pyproject.toml, and the test tools their pinned versions. pip chooses all other versions, without
hashes, because a pinned starlette, for example, would conflict with the oldest fastapi.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path
from typing import Any

from proofs.pins import RUN, TEST, as_constraints, canonical, versions
from proofs.running import (
    ROOT,
    Counts,
    ProofFailed,
    TimeLimit,
    failed_lines,
    pip_install,
    read_counts,
    skipped_lines,
    write_page,
)

BOUND = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=([^,;\s]+)")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def lower_bounds(requirements: list[str]) -> dict[str, str]:
    """The oldest version that each requirement allows. Raises ProofFailed for one without a lower bound."""
    bounds = {}
    for requirement in requirements:
        found = BOUND.match(requirement)
        if found is None:
            raise ProofFailed(f"{requirement!r} in pyproject.toml has no lower bound")
        bounds[canonical(found[1])] = found[2]
    return bounds


def oldest_of_what_koo_runs_on(project: dict[str, Any]) -> dict[str, str]:
    """The lower bounds of the build tool, of koo and of its extra `local`."""
    runs_on = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["local"]]
    return lower_bounds([*project["build-system"]["requires"], *runs_on])


def pins_of_the_tools(project: dict[str, Any], koo_runs_on: dict[str, str]) -> dict[str, str]:
    """The pinned versions of packages that only the tests need."""
    pins = versions(RUN, TEST)
    tools = [
        line for line in project["project"]["optional-dependencies"]["test"] if not line.startswith("koo")
    ]
    return {name: pins[name] for name in lower_bounds(tools) if name in pins and name not in koo_runs_on}


def install(python: Path, constraints: Path | None, limit: TimeLimit) -> None:
    """Install this tree's koo, its model and its test tools, as the Makefile does.

    With `constraints`, pip chooses the versions within them. Raises ProofFailed if pip fails.
    """
    koo = ["--no-build-isolation", "--editable"]
    if constraints is None:
        pip_install(python, limit, ["--no-deps", "--require-hashes", "-r", str(RUN), "-r", str(TEST)])
        pip_install(python, limit, ["--no-deps", *koo, "."])
        return
    for wanted in (["hatchling"], [*koo, ".[test]"]):
        pip_install(python, limit, ["--constraint", str(constraints), *wanted])
    if limit.run([python, "-m", "koo.cli", "model", "install"]) != 0:
        raise ProofFailed("the model could not be installed")


def run_tests(python: Path, junit: Path, arguments: list[str], limit: TimeLimit) -> Counts:
    quick = ["-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
    limit.run([python, "-m", "pytest", *quick, f"--junitxml={junit}", *arguments])
    return read_counts(junit)


def try_it(chosen: dict[str, str] | None, arguments: list[str]) -> tuple[float, float, Counts]:
    """Install and test; returns the seconds of both, and the counts of the tests."""
    limit = TimeLimit()
    with tempfile.TemporaryDirectory(prefix="koo-proof-") as folder:
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True, symlinks=True)
        python = environment / "bin" / "python"
        constraints = None if chosen is None else Path(folder) / "constraints.txt"
        if chosen is not None and constraints is not None:
            constraints.write_text(as_constraints(chosen), encoding="utf-8")
        began = time.monotonic()
        install(python, constraints, limit)
        installed = time.monotonic()
        counts = run_tests(python, Path(folder) / "tests.xml", arguments, limit)
        return installed - began, time.monotonic() - installed, counts


def main(arguments: list[str]) -> int:
    if "--oldest" in arguments:
        arguments.remove("--oldest")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        oldest = oldest_of_what_koo_runs_on(project)
        chosen: dict[str, str] | None = oldest | pins_of_the_tools(project, oldest)
        title, page, target = "The oldest versions that pyproject.toml allows", "oldest", "prove-oldest"
    else:
        oldest, chosen = {}, None
        page, target = f"python-{PYTHON}", f"prove-python PYTHON=python{PYTHON}"
        title = f"Python {PYTHON}, with the pinned versions"
    if arguments:
        target += f' ARGS="{" ".join(arguments)}"'
    install_s, tests_s, counts = try_it(chosen, arguments)
    python = ".".join(map(str, sys.version_info[:3]))
    write_page(
        page,
        target,
        [
            f"# {title}",
            "",
            f"On Python {python} ({sys.platform}): installed in {install_s:.0f} s, tested in {tests_s:.0f} s.",
            "",
            f"**{counts.sentence()}**",
            "",
            *failed_lines(counts),
            *skipped_lines(counts),
            *(["", "| package | version |", "|---|---|"] if oldest else []),
            *(f"| {name} | {version} |" for name, version in sorted(oldest.items())),
        ],
    )
    return 1 if counts.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
