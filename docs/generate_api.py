"""Write `docs/api.md` from the docstrings of the public names: `python -m docs.generate_api`.

The description of a name is its docstring; this file contains only the layout of the page. It opens nothing and reads
no settings: lazily created objects are described without being created. `tests/docs/test_api.py` fails if the page is
out of date, or if a public name has no docstring.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ForwardRef, NamedTuple

import koo
from koo.checked import Checked
from koo.errors import KooError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
WIDTH = 100
VALUE_MAX = 40


class Group(NamedTuple):
    """Names of `koo` under one heading, with an introduction."""

    title: str
    names: tuple[str, ...]
    intro: str = ""


GROUPS = [
    Group(
        "The platform and its parts",
        ("Platform", "Database", "Guard", "Settings", "deadline", "run"),
        "An application has one of each. A `Platform` owns all the others, opens on first use, and closes when "
        "its event loop ends. Each attribute of `Settings` is a variable in [configuration.md](configuration.md), in "
        "lower case.",
    ),
    Group("Queries and answers", ("Query", "Answer", "Chunk", "Usage")),
    Group("Prices", ("price_usd",)),
    Group(
        "After a commit",
        ("on_commit",),
        "See also: [exactly-once.md](exactly-once.md).",
    ),
    Group(
        "Idempotent routes",
        ("IdempotentRoute", "idempotent"),
        "See also: [application.md](application.md).",
    ),
    Group("Errors as responses of a web framework", ("problem_answer", "ProblemAnswer")),
    Group(
        "Options",
        (
            "PlatformOptions",
            "ServiceOptions",
            "DatabaseOptions",
            "GuardOptions",
            "BreakerOptions",
            "RetryOptions",
            "LimitOptions",
        ),
        "Frozen, and checked when they are created. [configuration.md](configuration.md) lists each option with its "
        "default, its range and the reason for the default.",
    ),
    Group(
        "Errors",
        (
            "KooError",
            "ExternalServiceError",
            "ServiceRefused",
            "CircuitOpen",
            "RateLimited",
            "BudgetExceeded",
            "ServiceSaturated",
            "ServiceFailed",
            "ServiceTimeout",
            "StreamTruncated",
            "AuthenticationFailed",
            "CallerMistake",
            "InvalidRequest",
            "UnknownService",
            "PriceUnknown",
            "AllServicesFailed",
            "DatabaseError",
            "DatabaseUnavailable",
            "DatabaseTimeout",
            "PoolSaturated",
            "CommitOutcomeUnknown",
            "NotCommitted",
            "IdempotencyKeyReused",
            "IdempotencyKeyInUse",
            "ConfigurationError",
            "Kind",
        ),
        "[errors.md](errors.md) says what to do about each. All have `reason`, `kind`, `retry_after_s`, `attempts`.",
    ),
]
UNDER_NO_HEADING = {"__version__"}
INNER = {
    "Platform": {"assemble", "forget_parent", "own_operations", "parts"},
    "Database": {"forget_parent", "make_scope", "tick"},
    "FakeProvider": {"check", "complaints", "default"},
    "FakedService": {"complaints"},
    "FaultProxy": {"commit_cut", "hold_up", "pieces_of", "room_left"},
    "SkippingClock": {"monotonic", "sleep", "wall"},
    "StandingClock": {"monotonic", "sleep", "wall"},
    "VirtualClock": {"monotonic", "sleep", "wall"},
    "World": {"begin", "check", "end"},
    "Guard": {"begin", "evidence", "judge", "leave", "note_check", "tick"},
}
"""Members that only koo's own parts call. On the page they would hide what readers look for."""
WEB = ("create_app", "mount", "serve", "serve_beside", "monitoring_router", "ai_router", "metrics_text")
BACKEND = (
    "core.platform",
    "core.config",
    "core.database",
    "core.ai_error_handling",
    "services.hybrid_ai_manager",
    "api.monitoring",
    "api.ai",
)
"""Modules of `backend/`; the page lists the names that `koo` binds to one platform under these headings."""
MADE_WHEN_ASKED_FOR = {
    "core.platform.platform": "The one `koo.Platform` of this process: [`Platform`](#platform).",
    "core.config.settings": "The one `Settings` of this process, read on first use.",
    "core.database.db_manager": "The one `koo.Database` of this process: [`Database`](#database).",
    "core.database.SessionDep": "For FastAPI: a session that commits before the response is sent, so that a failed "
    "COMMIT is a 5xx and not a 200.",
    "api.monitoring.router": "A FastAPI router that serves `/monitoring/...`.",
    "api.ai.router": "A FastAPI router that serves `/ai/...`.",
}
"""Not inspected: that would read the environment or load FastAPI, and `api.ai.router` has FastAPI's docstring."""
DECORATOR = """\
Make an `async def f(session, ...)` one transaction that is run again from the start, in a new session, on a \
transient failure. The decorated function is called without the session.

`max_retries` counts retries after the first run (None: `DB_MAX_RETRIES`). `readonly` allows no writes; `isolation` \
is "READ COMMITTED", "REPEATABLE READ" or "SERIALIZABLE". A call with `idempotency_key="…"` runs once for that key; \
later ones return the stored result, which is JSON. Raises `CommitOutcomeUnknown` without a retry, and TypeError if \
it decorates anything but a coroutine function."""
"""The decorator is created by a function, which has the docstring, so it is described here."""
ADDRESS = re.compile(r"<.* at 0x[0-9a-f]+>")


# ── one name ──────────────────────────────────────────────────────────────────────────────────────────────────────


def doc_of(thing: Any) -> str:
    """A docstring as Markdown: its indented parts (code next to text) become code blocks."""
    written = thing.__doc__ if isinstance(thing, property | type) else inspect.getdoc(thing)
    text = inspect.cleandoc(written or "")
    if not text:
        raise ValueError(f"{thing!r} has no docstring")
    if is_dataclass(thing) and text.startswith(f"{getattr(thing, '__name__', '')}("):
        raise ValueError(f"{thing!r} has no docstring but the one that dataclasses make")
    return re.sub(r"(?:^    .*\n?(?:\n(?=    ))?)+", _as_block, text, flags=re.MULTILINE)


def _as_block(indented: re.Match[str]) -> str:
    code = textwrap.dedent(indented[0]).rstrip("\n")
    return f"```text\n{code}\n```\n"


def signature_of(thing: Any, name: str) -> str:
    """`name(parameters) -> result`, with one parameter per line if it is too long for one line."""
    # For a class, only what it declares itself: pydantic would add every setting as a parameter.
    signature = inspect.signature(vars(thing).get("__init__", thing) if isinstance(thing, type) else thing)
    parameters = list(_parameters(signature))
    result = "" if isinstance(thing, type) else _result(signature)
    line = f"{_prefix(thing)}{name}({', '.join(parameters)}){result}"
    if len(line) <= WIDTH:
        return line
    inner = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{_prefix(thing)}{name}(\n{inner}){result}"


def _prefix(thing: Any) -> str:
    if isinstance(thing, type):
        return ""
    waits = inspect.iscoroutinefunction(thing) or inspect.isasyncgenfunction(thing)
    return "async def " if waits else "def "


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    """The parameters as written, without `self`, with the markers `/` and `*`."""
    kinds = inspect.Parameter
    before: Any = None
    for name, one in signature.parameters.items():
        if name == "self":
            continue
        if before is kinds.POSITIONAL_ONLY and one.kind is not before:
            yield "/"
        if one.kind is kinds.KEYWORD_ONLY and before not in (kinds.KEYWORD_ONLY, kinds.VAR_POSITIONAL):
            yield "*"
        stars = "*" if one.kind is kinds.VAR_POSITIONAL else "**" if one.kind is kinds.VAR_KEYWORD else ""
        yield stars + name + _annotation(one) + _default(one)
        before = one.kind


def _annotation(one: inspect.Parameter) -> str:
    return "" if one.annotation is one.empty else f": {_words(one.annotation)}"


def _default(one: inspect.Parameter) -> str:
    if one.default is one.empty:
        return ""
    spaces = " " if one.annotation is not one.empty else ""
    return f"{spaces}={spaces}{_value(one.default)}"


def _value(default: Any) -> str:
    if isinstance(default, Enum):
        return f"{type(default).__name__}.{default.name}"
    shown = repr(default)
    # A memory address differs in each process, and a long value does not help the reader.
    return "…" if ADDRESS.fullmatch(shown) or shown == "<factory>" or len(shown) > VALUE_MAX else shown


def _result(signature: inspect.Signature) -> str:
    given = signature.return_annotation
    return "" if given is inspect.Signature.empty else f" -> {_words(given)}"


def _words(annotation: Any) -> str:
    if isinstance(annotation, ForwardRef):  # of a NamedTuple's fields
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def callable_entry(thing: Any, name: str, level: str) -> Iterator[str]:
    """A heading, the signature and the docstring."""
    yield f"{level} `{name}`"
    yield f"```python fragment\n{signature_of(thing, name.rpartition('.')[2])}\n```"
    yield DECORATOR if name == "transactional_with_retry" else doc_of(thing)


# ── a class ───────────────────────────────────────────────────────────────────────────────────────────────────────


def class_entry(one: type, name: str, level: str = "###") -> Iterator[str]:
    """A class with its members: fields as the constructor takes them, properties and methods by name."""
    yield f"{level} `{name}`"
    if issubclass(one, Enum):
        yield doc_of(one)
        yield "Values: " + ", ".join(f"`{member.value}`" for member in one) + "."
        return
    if issubclass(one, KooError):
        bases = " and ".join(f"`{base.__name__}`" for base in one.__bases__ if base is not Exception)
        yield doc_of(one) + (f" It is {_article(bases)} {bases}." if bases else "")
        return
    if issubclass(one, Checked):
        yield doc_of(one)
        yield "Fields: " + ", ".join(f"`{field.name}`" for field in fields(one)) + "."  # type: ignore[arg-type]
        return
    if issubclass(one, Exception):
        yield doc_of(one)
        return
    yield f"```python fragment\n{signature_of(one, name)}\n```"
    yield doc_of(one)
    yield from _members(one, name, level)


def _article(words: str) -> str:
    return "an" if words[1:2] in "AEIOU" else "a"


def _members(one: type, name: str, level: str) -> Iterator[str]:
    for member_name, member in vars(one).items():
        if member_name.startswith("_") or member_name in INNER.get(one.__name__, ()):
            continue
        if isinstance(member, property):
            yield f"**`{name}.{member_name}`**: {doc_of(member)}"
        elif isinstance(member, staticmethod):
            continue  # another name for a function that has its own entry
        elif (
            inspect.isfunction(member) and member.__module__ == one.__module__
        ):  # without pydantic's own members
            yield from callable_entry(member, f"{name}.{member_name}", f"{level}#")


# ── a module of the backend ───────────────────────────────────────────────────────────────────────────────────────


def module_entry(module: ModuleType) -> Iterator[str]:
    """A module's docstring, and each of its names."""
    yield f"### `{module.__name__}`"
    yield doc_of(module)
    for name in module.__all__:
        full = f"{module.__name__}.{name}"
        if full in MADE_WHEN_ASKED_FOR:
            yield f"#### `{name}`"
            yield MADE_WHEN_ASKED_FOR[full]
        else:
            yield from _name_entry(vars(module)[name], name)


def _name_entry(thing: Any, name: str) -> Iterator[str]:
    if isinstance(thing, type):
        yield f"#### `{name}`"
        yield f"[`{thing.__name__}`](#{thing.__name__.lower()}), as in `koo`."
    elif inspect.ismethod(thing):
        owner, _, method = thing.__func__.__qualname__.rpartition(".")
        yield f"#### `{name}`"
        yield f"The same as {OWNERS[owner].format(method)}, of this process."
    elif callable(thing):
        yield from callable_entry(thing, name, "####")
    else:
        yield f"#### `{name}`"
        yield doc_of(type(thing))
        yield from _members(type(thing), name, "####")


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def body() -> Iterator[str]:
    """The page, part by part."""
    yield "# API reference"
    yield "<!-- Written by docs/generate_api.py from the docstrings: change them. -->"
    yield (
        "All public names with their signatures and descriptions. The [complete guide](ENHANCED_ERROR_HANDLING.md) and "
        "the [examples](../examples/README.md) show how to use them. The HTTP endpoints are listed in the "
        "[guide](ENHANCED_ERROR_HANDLING.md#endpoints) and at `/docs` of a running server. Members that only koo "
        "itself calls are left out."
    )
    yield "## `koo`"
    yield doc_of(koo)
    for group in GROUPS:
        yield f"## {group.title}"
        if group.intro:
            yield group.intro
        for name in group.names:
            thing = getattr(koo, name)
            is_class = isinstance(thing, type)
            yield from class_entry(thing, name) if is_class else callable_entry(thing, name, "###")
    yield "## `koo.web`"
    yield doc_of(import_module("koo.web")).partition("\n\n")[0]
    yield "[examples/mounted.py](../examples/mounted.py) is an application with koo mounted into it."
    for name in WEB:
        yield from callable_entry(getattr(import_module("koo.web"), name), name, "###")
    testing = import_module("koo.testing")
    yield "## `koo.testing`"
    yield doc_of(testing)
    yield "[testing.md](testing.md) shows how to use it; the fakes, steps and servers are in `koo.testing.providers`."
    for name in testing.__all__:
        thing = getattr(testing, name)
        is_class = isinstance(thing, type)
        yield from class_entry(thing, name) if is_class else callable_entry(thing, name, "###")
    yield "## Names bound to one platform"
    yield (
        "These names use the one platform of the process. Import them from `koo`: `from koo import query_ai`. With an "
        "editable install the same objects are also in the modules below; `router` is only there. `core.exceptions` "
        "has the [errors](#errors) under their own names."
    )
    for module in BACKEND:
        yield from module_entry(import_module(module))


OWNERS = {"Platform": "[`Platform.{0}`](#platform{0})", "AIErrorHandler": "`ai_error_handler.{0}`"}
"""Where this page describes a method that has a name of its own in a module."""


def page() -> str:
    """The whole document."""
    return "\n\n".join(part.rstrip("\n") for part in body()) + "\n"


def pages() -> dict[Path, str]:
    """Each generated file with its text."""
    return {PAGE: page()}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
