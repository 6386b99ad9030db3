"""Write the types of the page's data from `koo.monitoring.shapes`: `python -m docs.generate_page_types`.

They are comments for an editor that checks the page (`// @ts-check`); a browser never requests the file.
`tests/web/test_page.py` checks that the page reads only existing keys, and fails if the file is out of date.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NotRequired, get_args, get_origin, get_type_hints

from koo.monitoring.alert_shapes import AlertHistory, Silences
from koo.monitoring.fleet_shapes import FleetStatus
from koo.monitoring.history_shapes import History
from koo.monitoring.incident_shapes import Incidents, OneIncident
from koo.monitoring.live_shapes import Saved
from koo.monitoring.notice_shapes import AlertDeliveries
from koo.monitoring.shapes import Dashboard, DatabaseMetrics
from koo.monitoring.spend_shapes import BookedCalls, Spend
from koo.web.answers import SessionView

FILE = Path(__file__).parents[1] / "src" / "koo" / "web" / "page" / "data" / "shapes.js"
READ = (
    Dashboard, DatabaseMetrics, AlertHistory, Silences, AlertDeliveries, FleetStatus, History, Spend, BookedCalls,
    Saved, SessionView, Incidents, OneIncident,
)  # fmt: skip
"""The shapes that the page requests."""
NAMES = {str: "string", int: "number", float: "number", bool: "boolean", NoneType: "null"}
GLUE = "\0"
HEAD = """\
// @ts-check
// The shapes of the server's answers, as `make docs` wrote them from koo/monitoring/shapes.py. Types only.
"""


def keys_of(shape: Any) -> dict[str, Any]:
    """The keys of a shape, including those of its bases, with their types."""
    return get_type_hints(shape, include_extras=True)


def is_shape(hint: Any) -> bool:
    """Whether it is one of koo's TypedDicts."""
    return isinstance(hint, type) and hasattr(hint, "__required_keys__")


def name_of(hint: Any) -> str:
    """A type in JSDoc's notation."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Annotated, NotRequired):
        return name_of(inner[0])
    if origin is Literal:
        return " | ".join(f'"{word}"' for word in inner)
    if origin is dict:
        return f"Record<string, {name_of(inner[1])}>"
    if origin is list:
        one = name_of(inner[0])
        return f"({one})[]" if " | " in one else f"{one}[]"
    if inner:
        return " | ".join(map(name_of, inner))
    return str(hint.__name__) if is_shape(hint) else NAMES[hint]


def shapes_in(hint: Any) -> Iterator[Any]:
    """The shapes that a type consists of, each after the ones that it needs."""
    if is_shape(hint):
        for inner in keys_of(hint).values():
            yield from shapes_in(inner)
        yield hint
    for inner in get_args(hint):
        yield from shapes_in(inner)


def typedef(shape: Any) -> str:
    """One shape as a comment."""
    required = shape.__required_keys__
    keys = (
        f"{key}{'' if key in required else '?'}: {name_of(hint)}," for key, hint in keys_of(shape).items()
    )
    glued = " ".join(key.replace(" ", GLUE) for key in keys)  # a line may end only between two keys
    wrapper = textwrap.TextWrapper(116, " *   ", " *   ", break_long_words=False, break_on_hyphens=False)
    lines = wrapper.wrap(glued)
    return "\n".join([" * @typedef {{", *lines, f" * }}}} {shape.__name__}"]).replace(GLUE, " ")


def page_types() -> str:
    """The whole file."""
    shapes = dict.fromkeys(one for read in READ for one in shapes_in(read))
    body = "\n *\n".join(map(typedef, shapes))
    return f"{HEAD}\n/**\n{body}\n */\n\nexport {{}};\n"


def main() -> None:
    FILE.write_text(page_types(), encoding="utf-8")


if __name__ == "__main__":
    main()
