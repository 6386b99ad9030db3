"""`python -m benchmarks [guard] [database] [query] [imports]`: measure, print, and keep the result beside the goals."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import machine

RESULTS = Path(__file__).parent / "results"
SUBJECTS = {
    "guard": "benchmarks.guard_call",
    "database": "benchmarks.database_scope",
    "query": "benchmarks.query",
    "imports": "benchmarks.imports",
}

GOALS: dict[str, tuple[str, float]] = {
    "guarded call over a bare await, in thousands of additions": ("at most", 0.22),
    "stack by hand / koo": ("at least", 7.0),
    "refusal over raise and catch, us": ("at most", 1.5),
    "10,000 guards / one": ("at most", 2.2),
    "10,000 guards / 1,000": ("at most", 1.4),
    "koo / SQLAlchemy, psycopg": ("at most", 1.05),
    "koo / SQLAlchemy, asyncpg": ("at most", 1.05),
    "koo / SQLAlchemy with pool_pre_ping, psycopg": ("at most", 0.80),
    "koo / SQLAlchemy with pool_pre_ping, asyncpg": ("at most", 0.80),
    "koo, anthropic, calls a second": ("at least", 4000.0),
    "koo, openai, calls a second": ("at least", 4000.0),
    "import koo, s": ("at most", 0.15),
    "server: ready after, s": ("at most", 1.5),
    "server: resident memory, MiB": ("at most", 100.0),
}


def describe(name: str, value: float) -> str:
    """One line: the figure, and whether it meets its goal."""
    line = f"  {name:<64} {value:>10.3f}"
    if name not in GOALS:
        return line
    word, goal = GOALS[name]
    met = value <= goal if word == "at most" else value >= goal
    return f"{line}   {'meets' if met else 'MISSES'} {word} {goal:g}"


def main(subjects: list[str]) -> int:
    """Measure the subjects; 2 for one that does not exist."""
    unknown = [name for name in subjects if name not in SUBJECTS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are: {', '.join(SUBJECTS)}", file=sys.stderr)
        return 2
    about = machine()
    print(f"{about['processor']}, Python {about['python']}, a thousand additions {about['additions_us']} us")
    figures: dict[str, dict[str, float]] = {}
    for name in subjects or SUBJECTS:
        print(f"\n{name}", flush=True)
        figures[name] = asyncio.run(importlib.import_module(SUBJECTS[name]).report())
        for figure, value in figures[name].items():
            print(describe(figure, value), flush=True)
    if not subjects:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"
        path.write_text(json.dumps({"machine": about, "figures": figures}, indent=2) + "\n")
        print(f"\nkept in {path.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
