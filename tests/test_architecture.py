"""Checks the rules of ARCHITECTURE.md by reading the imports of every file in `src/koo` and `backend`.

All imports count: at the top of a file, inside a function and under TYPE_CHECKING. A reader has to follow each one.

A failure says which file breaks which rule. Where the rule is what has to change, change the table here, and say why
in `docs/decisions/`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
KOO = ROOT / "src" / "koo"

# Downward only: a part may import from earlier rows, but not from other parts of its own row. Only the parts of the
# first row may import each other.
ROWS: list[set[str]] = [
    {
        "alert_options",
        "budget_options",
        "beats",
        "callbacks",
        "checked",
        "episodes",
        "errors",
        "failures",
        "forks",
        "hidden",
        "host",
        "log_options",
        "network_options",
        "once_options",
        "openings",
        "options",
        "own_files",
        "paths",
        "service_names",
        "shortages",
        "events",
        "clock",
        "notices",
        "plain_text",
        "workplace",
    },
    {"policies", "logs"},
    {"database_urls", "spans", "sqlite_url", "sqlstates"},
    {"server_words"},
    {"crossing", "lookups"},
    {"deadlines"},
    {"bridge"},
    {"refusals"},
    {"passage"},
    {"limit_gate"},
    {"gates"},
    {"scope"},
    {"attempt"},
    {"guard"},
    {"http", "storage.base"},
    {"monitoring"},
    {"ai", "database", "alerts", "storage"},
    {"configuration"},
    {"settings"},
    {"breakers"},
    {"alert_acts", "bookings", "sharing", "spending"},
    {"fleet", "history"},
    {"incidents", "savings"},
    {"composition"},
    {"telemetry"},
    {"breaker_acts", "upkeep"},
    {"residence"},
    {"platform"},
    {"default"},
    {"web"},
    {"cli"},
]
ROW = {part: number for number, row in enumerate(ROWS) for part in row}

# Where each third-party package may be imported. A path that ends with "/" means all files below it.
THIRD_PARTIES: dict[str, list[str]] = {
    "sqlalchemy": [
        "database/",
        "default/database.py",
        "storage/sql.py",
        "web/idempotency.py",
        "web/session_dep.py",
    ],
    "greenlet": ["database/greenlets.py"],
    "psycopg": ["database/drivers/psycopg.py"],
    "asyncpg": ["database/drivers/asyncpg.py"],
    "aiosqlite": ["database/drivers/aiosqlite.py"],
    "aiohttp": ["http/"],
    "yarl": ["http/"],
    "msgspec": ["ai/providers/", "web/reading.py", "testing/"],
    "genai_prices": ["ai/pricing.py"],
    "xllamacpp": ["ai/local_llama.py"],
    "prometheus_client": ["web/exposition.py"],
    "opentelemetry": ["telemetry/"],
    "pydantic": ["web/"],
    "pydantic_core": ["web/"],
    "dotenv": ["configuration/sources.py"],
    "fastapi": ["web/"],
    "starlette": ["web/"],
    "httptools": ["web/connection.py"],
    "uvicorn": ["web/"],
    "typer": ["cli/"],
    "rich": ["cli/"],
    "psutil": ["testing/"],
    "pytest": ["testing/pytest_plugin.py"],
    "typing_extensions": ["database/scope.py", "monitoring/breaker_shapes.py"],
}
BACKEND_MAY = {"koo", "core", "services", "api", "fastapi", "starlette", "uvicorn", "sqlalchemy"}

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500


class Import(NamedTuple):
    """One imported module, and the line of the import."""

    line: int
    module: str


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[Import]:
    """Everything that is imported anywhere in the file, including inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, (
                f"{path}:{node.lineno}: a relative import hides its direction"
            )
            # `from koo.storage import sql` imports a module too: each name is looked up below.
            yield from (Import(node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def part_of(module: str) -> str:
    """`koo.ai.types.Usage` → `ai`; `koo.storage.base.Ledger` → `storage.base`; `koo` alone → ``."""
    names = module.split(".")[1:]
    if names[:2] == ["storage", "base"]:
        return "storage.base"
    return names[0] if names else ""


def own_part(path: Path) -> str:
    return part_of(".".join(["koo", *path.relative_to(KOO).with_suffix("").parts]).removesuffix(".__init__"))


def koo_files() -> list[Path]:
    return sorted(KOO.rglob("*.py"))


def backend_files() -> list[Path]:
    return sorted((ROOT / "backend").rglob("*.py"))


def may_import(own: str, other: str) -> bool:
    if own == other or own in {
        "",
        "testing",
    }:  # `koo/__init__.py` lists everything; test tools may use everything.
        return True
    if own == "policies" and other == "clock":  # its time is an argument
        return False
    if own in {"web", "cli"} and other == "":  # the list of public names, which reads the version
        return True
    first_row = ROW[own] == ROW.get(other) == 0
    return first_row or ROW.get(other, 99) < ROW[own]


def module_of(path: Path, root: Path) -> str:
    """`src/koo/ai/types.py` → `koo.ai.types`; a package's `__init__` is the package."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def graph(root: Path) -> dict[str, set[str]]:
    """Each module below `root`, with the modules below `root` that it imports anywhere in its file."""
    files = {module_of(path, root): path for path in sorted(root.rglob("*.py"))}
    return {
        module: {_nearest(imported, files) for _, imported in imports(path)} - {"", module}
        for module, path in files.items()
    }


def _nearest(imported: str, files: Container[str]) -> str:
    """`koo.errors.Kind` → `koo.errors`; "" for any other module."""
    while imported and imported not in files:
        imported = imported.rpartition(".")[0]
    return imported


def circles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of modules in an import cycle, each sorted."""
    reached = {module: _reachable(module, edges) for module in edges}
    groups = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in edges
        if module in reached[module]
    }
    return sorted(sorted(group) for group in groups)


def _reachable(module: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [*edges[module]]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += edges[one]
    return found


def broken_imports(path: Path) -> Iterator[str]:
    own, place = own_part(path), path.relative_to(KOO).as_posix()
    for line, module in imports(path):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if top == "koo":
            if not may_import(own, part_of(module)):
                yield f"{place}:{line}: {own} may not import {module}"
        elif not any(_is_at(place, allowed) for allowed in THIRD_PARTIES.get(top, [])):
            yield f"{place}:{line}: {top} may only be imported in {THIRD_PARTIES.get(top, 'no file at all')}"


def _is_at(place: str, allowed: str) -> bool:
    return place.startswith(allowed) if allowed.endswith("/") else place == allowed


@pytest.mark.parametrize("path", koo_files(), ids=lambda path: path.relative_to(KOO).as_posix())
def test_imports_go_downward_and_third_party_packages_are_imported_only_in_their_places(path: Path) -> None:
    assert own_part(path) in {*ROW, "", "testing"}, f"give {own_part(path)!r} its place in ROWS"
    assert list(broken_imports(path)) == []


def test_no_modules_form_an_import_cycle() -> None:
    """Imports for types and late imports count too: each module can be read, and moved, without those above it."""
    assert circles(graph(KOO.parent)) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("at the top", "import pack.two"),
        ("of a name", "from pack.two import thing"),
        ("of a module", "from pack import two"),
        ("in a function", "def late():\n    from pack.two import thing"),
        ("for types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.two import thing"),
    ],
)
def test_an_import_cycle_is_found_however_it_is_written(tmp_path: Path, name: str, source: str) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    (pack / "one.py").write_text(source)
    (pack / "two.py").write_text("from pack import three")
    (pack / "three.py").write_text("from pack.one import something")
    (pack / "beside.py").write_text("import json\nfrom pack import one")
    assert circles(graph(tmp_path)) == [["pack.one", "pack.three", "pack.two"]]


def test_only_the_lists_of_public_names_import_by_string() -> None:
    """The rules above cannot see an import by string."""
    found = {
        path.relative_to(KOO).as_posix()
        for path in koo_files()
        if any(module.startswith("importlib.import_module") for _, module in imports(path))
        or "__import__" in path.read_text()
    }
    assert found == {"__init__.py", "testing/__init__.py", "web/__init__.py"}


def test_the_backend_only_binds_names_and_imports() -> None:
    strangers = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in backend_files()
        for line, module in imports(path)
        if module.split(".")[0] not in BACKEND_MAY | sys.stdlib_module_names
    ]
    assert strangers == []


# `local_server` reads no setting: it passes the environment on to its child, without koo's keys.
MAY_READ_THE_ENVIRONMENT = (KOO / "settings.py", KOO / "ai/local_server.py")


def test_only_settings_reads_the_environment() -> None:
    readers = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in [*koo_files(), *backend_files()]
        if path not in MAY_READ_THE_ENVIRONMENT
        for line in _reads_of_the_environment(path)
    ]
    assert readers == []


def _reads_of_the_environment(path: Path) -> Iterator[int]:
    names = {"environ", "environb", "getenv", "getenvb"}
    for node in ast.walk(tree(path)):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in names:
                yield node.lineno
            case ast.ImportFrom(module="os", names=imported) if any(
                alias.name in names for alias in imported
            ):
                yield node.lineno


def _length(lines: list[str]) -> int:
    """The number of lines without comment lines: a limit that counted them would be met by deleting comments."""
    return sum(not line.lstrip().startswith("#") for line in lines)


def test_functions_and_files_have_a_maximum_length() -> None:
    too_long = []
    for path in koo_files():
        text = path.read_text().splitlines()
        if (lines := _length(text)) > FILE_LINES_MAX:
            too_long.append(f"{path.relative_to(KOO)}: {lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = _length(text[node.lineno - 1 : node.end_lineno])
                if lines > FUNCTION_LINES_MAX:
                    too_long.append(f"{path.relative_to(KOO)}:{node.lineno}: {node.name} has {lines} lines")
    assert too_long == []


@pytest.mark.parametrize(
    ("own", "other", "allowed"),
    [
        ("policies", "errors", True),
        ("policies", "clock", False),
        ("policies", "guard", False),
        ("errors", "events", True),
        ("errors", "policies", False),
        ("ai", "guard", True),
        ("ai", "storage.base", True),
        ("ai", "storage", False),
        ("ai", "database", False),
        ("monitoring", "alerts", False),
        ("monitoring", "database", False),
        ("database", "monitoring", True),
        ("guard", "ai", False),
        ("guard", "testing", False),
        ("platform", "storage", True),
        ("cli", "web", True),
        ("web", "cli", False),
        ("testing", "ai", True),
    ],
)
def test_imports_between_layers_are_allowed_as_the_architecture_says(
    own: str, other: str, allowed: bool
) -> None:
    assert may_import(own, other) is allowed
