"""Generate the tables of README.md from the newest result: the goals, then koo and its peers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS, is_met

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER / "README.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table with contenders as rows. `columns` maps headings to figures `who: name`; `koo` is the reference row."""

    title: str
    subject: str
    columns: dict[str, str]
    koo: str = "koo"
    more_is_better: bool = False


BUDGETS = ("one budget", "two budgets", "four budgets")
COMPARISONS = (
    Comparison(
        "A guarded call that succeeds, µs over a bare await",
        "guard",
        {"µs": "over a bare await, us"},
        koo="koo, everything on",
    ),
    Comparison(
        "A refusal by an open breaker, µs over raising and catching an exception",
        "guard",
        {"µs": "refusal by an open breaker, us"},
    ),
    Comparison(
        "A refusal by a limit, µs over raising and catching an exception",
        "guard",
        {"µs": "refusal by a limit, us"},
    ),
    Comparison(
        "Many tenants: a call for one of them, µs over a turn of the event loop (limits: its memory storage)",
        "guard",
        {f"of {count}": f"with {count} keys, us" for count in ("1", "1,000", "10,000")},
    ),
    *(
        Comparison(
            f"A session scope with one statement, {driver}, µs",
            "database",
            {"time": f"a scope with {driver}, us", "client CPU": f"a scope with {driver}, us of CPU"},
        )
        for driver in ("psycopg", "asyncpg")
    ),
    Comparison(
        "1,000 tasks on 10 connections, asyncpg",
        "database",
        {"scopes a second": "1,000 tasks, scopes a second"},
        more_is_better=True,
    ),
    Comparison(
        "The same, for one scope",
        "database",
        {
            "µs of CPU": "1,000 tasks, us of CPU a scope",
            "wait p99 / p50": "1,000 tasks, wait p99 / p50",
            "counted in scopes": "1,000 tasks, wait p99 / p50 in scopes",
        },
    ),
    Comparison(
        "50 tasks that insert into one SQLite file, a row in each scope",
        "database",
        {"inserts a second": "50 writers on SQLite, inserts a second"},
        more_is_better=True,
    ),
    Comparison(
        "The same, for one insert",
        "database",
        {
            "µs of CPU": "50 writers on SQLite, us of CPU an insert",
            "p99, ms": "50 writers on SQLite, p99 of an insert, ms",
        },
    ),
    *(
        Comparison(
            f"With `DB_EXACTLY_ONCE=marker` and without, {driver}, µs",
            "markers",
            {
                f"{name}{where}": f"{name}, {driver}{where}, us"
                for name in ("a COMMIT", "a scope with an INSERT")
                for where in ("", ", 10 ms away")
            },
        )
        for driver in ("psycopg", "asyncpg")
    ),
    Comparison(
        "Holding and settling the money of a call, µs if there is room",
        "money",
        {f"in {count}": f"a hold and its settlement in {count}, us" for count in BUDGETS},
    ),
    Comparison(
        "The wait of a call for its hold on PostgreSQL, p99 in ms",
        "money",
        {
            "nearby": "a hold's wait, p99 ms",
            "500 ms away": "a hold's wait with the store 500 ms away, p99 ms",
        },
    ),
    Comparison(
        "AI queries, calls per second on one core, 50 in flight",
        "query",
        {
            "Anthropic Messages": "anthropic, calls a second",
            "OpenAI Responses": "openai, calls a second",
            "OpenAI Chat Completions": "openai_compatible, calls a second",
        },
        more_is_better=True,
    ),
    Comparison(
        "Streamed AI answers of 200 events, µs of processor time per event",
        "query",
        {
            "Anthropic Messages": "anthropic, us of CPU a streamed event",
            "OpenAI Responses": "openai, us of CPU a streamed event",
            "OpenAI Chat Completions": "openai_compatible, us of CPU a streamed event",
        },
    ),
    Comparison("Importing it, seconds", "imports", {"s": "import, s"}),
)


def newest() -> Path:
    return max(RESULTS.glob("????-??-??.json"))


def figure(value: float) -> str:
    """Format with three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> Iterator[str]:
    """The heading of a table: the first column is text, the others are numbers."""
    yield line(*cells)
    yield line("---", *("---:" for _ in cells[1:]))


def goal_lines(result: dict[str, Any]) -> Iterator[str]:
    """Each goal, its figure, and whether it is met."""
    found = {name: value for figures in result["figures"].values() for name, value in figures.items()}
    noises = {name: value for values in result["noise"].values() for name, value in values.items()}
    yield from head("figure", "goal", "value", "noise", "")
    for name, (word, goal) in GOALS.items():
        if name not in found:
            yield line(name, f"{word} {goal:,g}", "not measured", "", "")
            continue
        verdict = "met" if is_met(name, found[name]) else "**missed**"
        noise = f"± {noises[name]:.0%}" if name in noises else ""
        yield line(name, f"{word} {goal:,g}", figure(found[name]), noise, verdict)


def comparison_lines(comparison: Comparison, result: dict[str, Any]) -> Iterator[str]:
    """koo first, then its peers from the closest to the farthest, then those that were not measured."""
    figures: dict[str, float] = result["figures"].get(comparison.subject, {})
    missing: dict[str, str] = result["not_measured"].get(comparison.subject, {})
    who: dict[str, None] = dict.fromkeys(
        name.removesuffix(f": {column}")
        for column in comparison.columns.values()
        for name in (*figures, *missing)
        if name.endswith(f": {column}")
        # A ratio ("koo / SQLAlchemy: scopes a second") is not a contender's figure; it is listed with the goals.
        and " / " not in name.removesuffix(f": {column}")
    )
    yield from head(comparison.title, *comparison.columns)
    for row in sorted(who, key=lambda row: order(comparison, figures, row)):
        yield line(
            row, *(cell(comparison, figures, missing, row, name) for name in comparison.columns.values())
        )


def order(comparison: Comparison, figures: dict[str, float], row: str) -> tuple[bool, float, str]:
    names = [f"{row}: {column}" for column in comparison.columns.values()]
    values = [figures[name] for name in names if name in figures]
    if comparison.more_is_better:
        return row != comparison.koo, -max(values, default=0.0), row
    return row != comparison.koo, max(values, default=float("inf")), row


def cell(
    comparison: Comparison, figures: dict[str, float], missing: dict[str, str], row: str, column: str
) -> str:
    """The figure, and its multiple of koo's cost."""
    value = figures.get(f"{row}: {column}")
    if value is None:
        why = missing.get(f"{row}: {column}")
        return f"not measured: {why}" if why else "–"
    own = figures.get(f"{comparison.koo}: {column}")
    if row == comparison.koo or own is None:
        return figure(value)
    return f"{figure(value)} · {figure(own / value if comparison.more_is_better else value / own)}×"


def tables(result: dict[str, Any], day: str) -> str:
    """The text between the marks."""
    about, packages = result["machine"], result["packages"]
    parts = [
        f"{day}: {about['processor']}, {about['system']} {about['machine']}, Python {about['python']}; "
        f"a thousand additions take {about['additions_us']} µs.",
        "\n".join(goal_lines(result)),
        *(
            f"{subject}, measured separately: {when}."
            for subject, when in sorted(result.get("by_itself", {}).items())
        ),
        "A figure with × is a multiple of koo's cost.",
        *("\n".join(comparison_lines(comparison, result)) for comparison in COMPARISONS),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(packages.items())) + ".",
    ]
    return "\n\n".join(part for part in parts if part)


def with_tables(readme: str, result: dict[str, Any], day: str) -> str:
    """README's text with new tables."""
    between = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    made = f"{BEGIN}\n\n{tables(result, day)}\n\n{END}"
    changed, count = between.subn(lambda _: made, readme)
    if count != 1:
        raise ValueError(f"README.md needs {BEGIN} and {END}, once each")
    return changed


def write_readme() -> None:
    path = newest()
    result = json.loads(path.read_text(encoding="utf-8"))
    README.write_text(with_tables(README.read_text(encoding="utf-8"), result, path.stem), encoding="utf-8")


if __name__ == "__main__":
    write_readme()
