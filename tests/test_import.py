"""`import koo` opens nothing, starts nothing and loads nothing heavy; each public name is loaded on first use."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import koo

ROOT = Path(__file__).parents[1]

WATCHED = """
import json, sys, threading
happened = []
def hook(event, args):
    opened_to_write = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if opened_to_write or event.split(".")[0] in {"socket", "subprocess", "sqlite3"} or event.startswith("os.mk"):
        happened.append([event, repr(args)[:200]])
sys.dont_write_bytecode = True
before = set(sys.modules)
sys.addaudithook(hook)
import koo
%s
json.dump({
    "happened": happened,
    "threads": [one.name for one in threading.enumerate()],
    "modules": sorted(name for name in set(sys.modules) - before),
}, sys.stdout)
"""
HEAVY = {
    "sqlalchemy",
    "pydantic",
    "pydantic_settings",
    "aiohttp",
    "fastapi",
    "asyncio",
    "typer",
    "rich",
    "genai_prices",
}


def watch(then: str = "", *, seconds: float = 60) -> dict[str, Any]:
    """Run `import koo` and this code in a fresh interpreter, and record the effects."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED % then],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds,
        cwd=ROOT,
    )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_importing_does_nothing_but_import() -> None:
    seen = watch()
    assert seen["happened"] == [] and seen["threads"] == ["MainThread"]
    assert HEAVY & {name.partition(".")[0] for name in seen["modules"]} == set()
    assert [name for name in seen["modules"] if name.startswith("koo")] == ["koo"]


def test_errors_and_options_load_without_heavy_imports() -> None:
    seen = watch("koo.KooError, koo.CircuitOpen, koo.PlatformOptions(), koo.Query(service='x', prompt='y')")
    assert seen["happened"] == [] and seen["threads"] == ["MainThread"]
    assert (HEAVY - {"asyncio"}) & {name.partition(".")[0] for name in seen["modules"]} == set()


def test_reading_settings_loads_no_database_server_client_or_validator_and_writes_nothing() -> None:
    seen = watch("koo.Settings(environ={}).platform_options()")
    assert [one for one in seen["happened"] if one[0] != "socket.__new__"] == [] and seen["threads"] == [
        "MainThread"
    ]
    assert {"sqlalchemy", "aiohttp", "fastapi", "genai_prices", "pydantic"} & set(seen["modules"]) == set()


def test_the_names_bound_to_the_platform_load_no_database_and_no_server_and_open_nothing() -> None:
    seen = watch("koo.platform, koo.query_ai, koo.stream_ai, koo.ai_error_handler, koo.get_system_health")
    assert [one for one in seen["happened"] if one[0] != "socket.__new__"] == []
    assert seen["threads"] == ["MainThread"]
    assert {"sqlalchemy", "fastapi", "pydantic", "genai_prices"} & set(seen["modules"]) == set()


def test_a_submodule_never_replaces_a_public_name() -> None:
    """koo itself imports `koo/platform.py` and `koo/settings.py`, and Python would set these modules as attributes."""
    import koo.platform
    import koo.settings

    assert isinstance(koo.platform, koo.Platform)
    assert isinstance(koo.settings, koo.Settings)
    assert sys.modules["koo.settings"].Settings is koo.Settings


def test_a_name_stays_the_same_object_and_is_looked_up_once() -> None:
    assert koo.KooError is koo.KooError
    assert "KooError" in vars(koo)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'koo' has no attribute 'nothing'"):
        koo.nothing  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("koo")
    except importlib.metadata.PackageNotFoundError:
        installed = "0+unknown"
    assert koo.__version__ == installed


def test_every_public_name_is_listed_for_completion() -> None:
    assert set(koo.__all__) <= set(dir(koo))


def test_type_checkers_and_python_find_the_same_names_in_the_same_places() -> None:
    """`__all__`, the table of places, and the imports for type checkers are three lists of the same names."""
    source = ast.parse((ROOT / "src" / "koo" / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == vars(koo)["_PLACES"]
    assert sorted(koo.__all__) == sorted([*seen, "__version__"])
