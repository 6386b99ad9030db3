"""Tables for people and for pipes.

On a terminal a table is as wide as the window, and a long cell is wrapped below itself. In a window that is too narrow
for that, each row is a paragraph: the library would cut numbers ("$1" of "$10.00") and print names one letter per line.
A pipe has no window: each row
is one complete line, whatever COLUMNS says, so that `koo alerts | grep claude` finds it. Cells are plain text: square
brackets, which the library would read as markup, and escape sequences are printed as they were written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from koo.cli.text import one_line

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table
    from rich.text import Text

COLOURS = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "circuit_open": "red",
    "rate_limited": "yellow",
    "critical": "red",
    "warning": "yellow",
    "info": "blue",
}
"""Colours of words that name a state or a severity. Used only on a terminal, and never as the only sign."""
FOLDED_MIN = 20
"""A cell that may be folded has lines of at least this many letters, or it is hard to read."""
GAP = 2
"""Spaces between two columns."""
UNBOUNDED = 1_000_000
"""The width for output to a pipe, in columns. It is more than a row needs: all rows of a response together are at most
a few megabytes."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column with its heading. `right`: numbers. `coloured`: its cells are words of `COLOURS`. `whole`: never
    folded."""

    head: str
    right: bool = False
    coloured: bool = False
    whole: bool = False


def put_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, with one line per row in a pipe, and with paragraphs in a narrow window."""
    screen = console()
    if screen.width < _width_min(columns, rows):
        for row in rows:
            put_words(*_paragraph(columns, row))
        return
    with screen.capture() as captured:
        screen.print(table_of(columns, rows))
    # The library pads the last column of each row with spaces.
    put_rendered("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _width_min(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """The width that a table needs at least: columns that are never folded, and at least some letters of the others."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(one_line(cell)) for cell in cells)
        for cells in zip([c.head for c in columns], *rows, strict=True)
    ]
    least = [
        width if _is_whole(column) else min(width, FOLDED_MIN)
        for column, width in zip(columns, widths, strict=True)
    ]
    return sum(least) + GAP * (len(columns) - 1)


def _paragraph(columns: Sequence[Column], row: Sequence[str]) -> Iterator[str | Text]:
    """The name in the first cell, and the other cells that are not empty: "claude: state healthy, requests 6"."""
    name, *others = zip(columns, row, strict=True)
    filled = [(column, cell) for column, cell in others if cell]
    yield f"{name[1]}:" if filled else name[1]
    for place, (column, cell) in enumerate(filled, start=1):
        yield column.head
        comma = "," if place < len(filled) else ""
        yield coloured(cell).append(comma) if column.coloured else f"{cell}{comma}"


def _is_whole(column: Column) -> bool:
    return column.right or column.coloured or column.whole


def table_of(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """Return the table itself, to be drawn together with other things."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        justify: JustifyMethod = "right" if column.right else "left"
        table.add_column(Text(column.head), justify=justify, overflow="fold", no_wrap=_is_whole(column))
    for row in rows:
        cells = zip(columns, row, strict=True)
        table.add_row(
            *(coloured(cell) if column.coloured else Text(one_line(cell)) for column, cell in cells)
        )
    return table


def put_words(*words: str | Text) -> None:
    """Print one line of words, some of which may be coloured. A terminal wraps it at its edge."""
    from rich.text import Text

    parts = [word if isinstance(word, Text) else Text(one_line(word)) for word in words]
    screen = console()
    with screen.capture() as captured:
        screen.print(Text(" ").join(parts), soft_wrap=True)
    put_rendered(captured.get().rstrip("\n"))


def coloured(word: str, style: str | None = None) -> Text:
    """A word in its colour from `COLOURS`, or in `style`."""
    from rich.text import Text

    return Text(one_line(word), style=COLOURS.get(word, "") if style is None else style)


def put_rendered(text: str) -> None:
    """Print the library's output, including colours."""
    print(text, flush=True)


def console() -> Console:
    """The console to draw on: as wide as the window, and unbounded in a pipe."""
    from rich.console import Console

    # COLUMNS and FORCE_COLOR are read by the library; neither of them turns a pipe into a window.
    width = None if sys.stdout.isatty() else UNBOUNDED
    return Console(width=width, highlight=False, markup=False, emoji=False)
