"""Finds the keys of the server's responses that the page reads, and those that do not exist.

A small reader of the page's scripts, used because Python's registries have no type checker for JavaScript. It follows
a parameter with a type of `data/shapes.js` through `a.b.c`, `const x = a.b` and `const { x } = a.b` to the end of its
function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from docs.generate_page_types import is_shape
from koo.monitoring import (
    alert_shapes,
    fleet_shapes,
    history_shapes,
    incident_shapes,
    live_shapes,
    notice_shapes,
    shapes,
    spend_shapes,
)
from koo.web import answers

SHAPES: dict[str, Any] = {
    name: shape
    for module in (
        alert_shapes,
        answers,
        fleet_shapes,
        history_shapes,
        incident_shapes,
        live_shapes,
        notice_shapes,
        spend_shapes,
        shapes,
    )
    for name, shape in vars(module).items()
}
"""What the page may read, by name."""

PARAMETER = re.compile(r"@param \{([^}]+)\} (\w+)")
SOURCE = r"import\(\"(?:\.\./data|\.)/shapes\.js\"\)"
ALIAS = re.compile(rf"@typedef \{{({SOURCE}[^}}]+)\}} (\w+)")
IMPORTED = re.compile(rf"{SOURCE}\.(\w+)")
CHAIN = re.compile(r"(?<![\w.\"])(\w+)((?:\??\.\w+)+)")
ASSIGNED = re.compile(r"(?:const|,) (\w+) = (\w+(?:\??\.\w+)+)(?=[;,])")
UNPACKED = re.compile(r"const \{ ([\w, ]+) \} = (\w+(?:\??\.\w+)*);")


class Read(NamedTuple):
    """One key that is read from one shape."""

    shape: str
    key: str
    exists: bool


def reads_of(script: str) -> Iterator[Read]:
    """Return every key that a script reads from a value of known shape."""
    aliases = {alias: IMPORTED.findall(type_) for type_, alias in ALIAS.findall(script)}
    for block in re.split(r"(?=/\*\*)", script):
        comment, _, code = block.partition("*/")
        known: dict[str, list[Any]] = {}
        for type_, name in PARAMETER.findall(comment):
            names = IMPORTED.findall(type_) or aliases.get(type_, [])
            known[name] = [SHAPES[one] for one in names]
        for name, chain in ASSIGNED.findall(code):
            _, known[name] = _follow(known, chain)
        for names, chain in UNPACKED.findall(code):
            for name in names.split(", "):
                reads, known[name] = _follow(known, f"{chain}.{name}")
                yield from reads
        for root, keys in CHAIN.findall(code):
            yield from _follow(known, root + keys)[0]


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _follow(known: dict[str, list[Any]], chain: str) -> tuple[list[Read], list[Any]]:
    """The keys that `a.b.c` reads, as far as it passes through shapes, and the possible shapes at its end."""
    root, *keys = chain.replace("?", "").split(".")
    reads, hints = [], known.get(root, [])
    for key in keys:
        found = [(one, get_type_hints(one).get(key)) for one in hints if is_shape(one)]
        reads += [Read(one.__name__, key, hint is not None) for one, hint in found]
        hints = [part for _, hint in found for part in (get_args(hint) if _is_union(hint) else [hint])]
    return reads, hints
