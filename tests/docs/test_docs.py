"""Every error, kind, option and event is documented, and every link has a target."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily

from koo import errors, events, options
from koo.checked import Checked
from koo.cli.app import app, query
from koo.cli.terminal import Exit
from koo.configuration.variables import BUILT_IN
from koo.errors import Kind
from koo.options import PlatformOptions
from koo.platform import Platform
from koo.web.app import create_app
from koo.web.exposition import NAMES
from koo.web.problems import STATUS
from tests.docs.markdown import ROOT, anchors, documents, links

DOCS = ROOT / "docs"
GUIDE = DOCS / "ENHANCED_ERROR_HANDLING.md"


def text_of_docs() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md")))


def named_in(text: str) -> set[str]:
    """All text in `code` quotes."""
    return set(re.findall(r"`([^`\n]+)`", text))


def classes_of(module: object, base: type) -> list[str]:
    return [
        name
        for name, one in inspect.getmembers(module, inspect.isclass)
        if issubclass(one, base) and one.__module__ == getattr(module, "__name__", "")
    ]


# ── completeness ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_built_in_service_is_named_where_services_are_listed(name: str) -> None:
    """The page of errors and the help of `koo query` name it, and the README's list for the `.env` names its key."""
    service = inspect.signature(query, eval_str=True).parameters["service"].annotation.__metadata__[0]
    assert name in re.split(r"\W+", service.help)
    known = re.search(r"no such service; known services: ([^\"]+)", (DOCS / "errors.md").read_text())
    assert known is not None and name in known[1].split(", ")
    key = BUILT_IN[name][1].upper()
    assert not key or f"`{key}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", classes_of(errors, errors.KooError))
def test_each_error_is_explained(name: str) -> None:
    assert name in named_in((DOCS / "errors.md").read_text())


@pytest.mark.parametrize("kind", list(Kind), ids=str)
def test_each_kind_is_explained(kind: Kind) -> None:
    kinds = (DOCS / "errors.md").read_text().split("## Kinds")[1].split("## Over HTTP")[0]
    assert f"\n| `{kind.value}` |" in kinds


OPTIONS = [
    f"{name}.{one.name}" for name in classes_of(options, Checked) for one in fields(getattr(options, name))
]


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_explained(name: str) -> None:
    owner, _, field = name.partition(".")
    text = text_of_docs()
    assert f"`{name}`" in text or field in _named_under(text, owner), f"{name} is in no document"


def _named_under(text: str, owner: str) -> set[str]:
    """All names in the section with this class as its heading."""
    section = re.search(rf"^#+ `?{owner}`?$.*?(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return named_in(section[0]) if section else set()


@pytest.mark.parametrize("name", classes_of(events, events.Event))
def test_each_event_is_explained(name: str) -> None:
    assert name in named_in(GUIDE.read_text().split("## Events")[1])


def test_the_severity_of_each_event_is_as_the_guide_says() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (critical|warning|info) \|", GUIDE.read_text(), re.MULTILINE)
    said = {name: severity for name, severity in rows if hasattr(events, name)}
    real = {
        name: getattr(events, name).severity for name in classes_of(events, events.Event) if name != "Event"
    }
    assert said == real


def test_each_kind_has_the_status_that_is_documented() -> None:
    table = (DOCS / "errors.md").read_text().split("## Over HTTP")[1]
    rows = re.findall(r"^\| (\d{3}) \|[^|]*\|([^|]*)\|$", table, re.MULTILINE)
    said = {kind: int(status) for status, kinds in rows for kind in named_in(kinds)}
    assert said == {kind.value: status for kind, status in STATUS.items()}


def test_a_default_in_a_sentence_is_the_settings_default() -> None:
    """Several pages repeat a default, as in "`KOO_LEDGER_DAYS` (400)"."""
    table = (DOCS / "configuration.md").read_text()
    defaults = dict(re.findall(r"^\| `([A-Z_]+)` \| `?(\d+)", table, re.MULTILINE))
    repeated = re.findall(r"`(?:\S+__)?([A-Z_]+)`(?: seconds)? \((\d+)(?: s)?\)", text_of_docs())
    assert len(repeated) >= 5
    assert [(name, value) for name, value in repeated if defaults.get(name) != value] == []


def test_each_endpoint_is_listed() -> None:
    """This includes the endpoints of the OpenAPI description and the few that are not in it."""
    table = GUIDE.read_text().split("## Endpoints")[1].split("## Metrics")[0]
    listed = set(re.findall(r"^\| (GET|POST|DELETE) `(/[^`]*)` \|", table, re.MULTILINE))
    paths = create_app(Platform(PlatformOptions())).openapi()["paths"]
    described = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert described <= listed
    assert listed - described <= {("GET", "/metrics"), ("GET", "/livez"), ("GET", "/readyz")}


def test_each_command_is_explained() -> None:
    table = GUIDE.read_text().split("## Command line")[1].split("## Metrics")[0]
    listed = {name for name in named_in(table) if name.startswith("koo ") and not name.startswith("koo --")}
    shown = [one for one in app.registered_commands if not one.hidden]
    commands = [one.callback.__name__ for one in shown if one.callback]
    for group in app.registered_groups:
        inner = group.typer_instance
        assert inner is not None
        commands += [
            f"{group.name} {one.name or one.callback.__name__}"
            for one in inner.registered_commands
            if one.callback
        ]
        if inner.registered_callback is not None:
            commands.append(str(group.name))
    unlisted = [name for name in commands if not any(f"{one} ".startswith(f"koo {name} ") for one in listed)]
    assert unlisted == []
    assert len(listed) == len(commands)


def test_each_exit_code_is_explained() -> None:
    table = GUIDE.read_text().split("## Command line")[1].split("## Metrics")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(Exit)


def test_each_metric_is_explained() -> None:
    """The documentation uses the name that Prometheus shows, and lists the labels."""
    table = GUIDE.read_text().split("For Prometheus")[1].split("## Events")[0]
    said = {
        name: named_in(labels)
        for names, labels in re.findall(r"^\|([^|]*`[^|]*)\|([^|]*)\|", table, re.MULTILINE)
        for name in named_in(names)
    }
    real = {
        f"{name}_total" if one.kind is CounterMetricFamily else name: set(one.labels)
        for name, one in NAMES.items()
    }
    assert said == real


# ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_link_has_a_target(path: Path) -> None:
    assert [f"{path.name}:{line}: {target}" for line, target in links(path) if _is_broken(path, target)] == []


def _is_broken(path: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return not target.startswith(("https://", "mailto:"))
    place, _, anchor = target.partition("#")
    file = (path.parent / place).resolve() if place else path
    # A link to a path outside of the repository works on only one machine.
    if not file.exists() or ROOT not in (file, *file.parents):
        return True
    return bool(anchor) and (file.suffix != ".md" or anchor not in anchors(file))


def test_each_document_can_be_reached_from_the_readme() -> None:
    """Readers do not find a page without a link to it."""
    seen: set[Path] = set()
    left = [ROOT / "README.md"]
    while left:
        path = left.pop()
        if path in seen or path.suffix != ".md" or not path.is_file():
            continue
        seen.add(path)
        for _, target in links(path):
            place = (path.parent / target.partition("#")[0]).resolve()
            left.append(place / "README.md" if place.is_dir() else place)
    unreached = {path for path in documents() if "examples" not in path.parts} - seen
    assert {path.relative_to(ROOT).as_posix() for path in unreached} == set()


def test_each_decision_is_listed_and_has_its_three_parts() -> None:
    folder = DOCS / "decisions"
    records = sorted(folder.glob("0*.md"))
    numbers = [record.name[:4] for record in records]
    # A record that a later one replaces may be deleted; its number is not used again.
    assert len(set(numbers)) == len(numbers) and all(re.fullmatch(r"\d{4}", number) for number in numbers)
    listed = {target for _, target in links(folder / "README.md")}
    for record in records:
        text = record.read_text()
        assert record.name in listed
        assert text.startswith(f"# {record.name[:4]} ")
        assert all(part in text for part in ("**Context.**", "**Decision.**", "**Consequences.**")), (
            record.name
        )


def test_the_architecture_lists_existing_files() -> None:
    """Each file in its tables exists, and each part of the package is in its tree."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    files = {f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("[bst]*/**/*.py")}
    named = {name for name in named_in(text) if re.fullmatch(r"[\w/]+\.py", name)}
    assert named and {name for name in named if not any(file.endswith(f"/{name}") for file in files)} == set()
    tree = text.partition("```text\n")[2].partition("```")[0]
    parts = {path.name for path in (ROOT / "src" / "koo").iterdir() if path.name != "py.typed"}
    assert {
        name for name in parts if not name.startswith("__") and not re.search(rf"\b{name}\b", tree)
    } == set()


BARE = re.compile(r"pip3? install(?:\s+-{1,2}[\w-]+)*\s+['\"]?koo(?![\w./-])")
"""Koo by its name alone; `/path/to/koo` and `koo.db` are others."""


def test_no_command_installs_koo_by_name_from_an_index() -> None:
    """On the public index the name belongs to another project, whose code a reader would run."""
    assert all(BARE.search(line) for line in ("pip install koo", "`pip install -U 'koo[testing]'`"))
    assert not any(
        BARE.search(line) for line in ("pip install /path/to/koo", "pip install '/src/koo[local]'")
    )
    folders = [ROOT / name for name in ("src", "docs", "examples", "backend")]
    files = [
        *ROOT.glob("*.*"),
        ROOT / "Makefile",
        *(one for folder in folders for one in folder.rglob("*.*")),
    ]
    read = [
        one
        for one in files
        if one.is_file() and one.suffix in ("", ".py", ".md", ".json", ".js", ".html", ".toml", ".txt")
    ]
    found = [(str(one), said[0]) for one in read for said in BARE.finditer(one.read_text(encoding="utf-8"))]
    assert found == []
