"""The goal for each figure."""

from __future__ import annotations

AT_MOST, AT_LEAST = "at most", "at least"

GOALS: dict[str, tuple[str, float]] = {
    "guarded call over a bare await, in thousands of additions": (AT_MOST, 0.22),
    "stack by hand / koo": (AT_LEAST, 7.0),
    "koo: refusal by an open breaker, us": (AT_MOST, 1.5),
    "10,000 guards / one": (AT_MOST, 2.2),
    "10,000 guards / 1,000": (AT_MOST, 1.4),
    "koo / SQLAlchemy, psycopg": (AT_MOST, 1.05),
    "koo / SQLAlchemy, asyncpg": (AT_MOST, 1.05),
    "koo / SQLAlchemy with pool_pre_ping, psycopg": (AT_MOST, 0.80),
    "koo / SQLAlchemy with pool_pre_ping, asyncpg": (AT_MOST, 0.80),
    "koo / SQLAlchemy: 1,000 tasks, scopes a second": (AT_LEAST, 1.15),
    "koo: 1,000 tasks, wait p99 / p50": (AT_MOST, 1.15),
    "koo / SQLAlchemy: 50 writers on SQLite, inserts a second": (AT_LEAST, 6.0),
    "koo: 50 writers on SQLite, p99 of an insert, ms": (AT_MOST, 60.0),
    "koo with markers / without: a COMMIT, psycopg": (AT_MOST, 1.35),
    "koo with markers / without: a COMMIT, asyncpg": (AT_MOST, 1.35),
    "koo with markers / without: a COMMIT, psycopg, 10 ms away": (AT_MOST, 1.05),
    "koo with markers / without: a COMMIT, asyncpg, 10 ms away": (AT_MOST, 1.05),
    "koo: a hold and its settlement in one budget, us": (AT_MOST, 2.0),
    "koo: round trips a call at 200 calls a second": (AT_MOST, 0.05),
    "koo: round trips a call with limits and money": (AT_MOST, 0.05),
    "koo: refusal by a limit of the fleet, us": (AT_MOST, 2.3),
    "koo: a hold's wait with the store 500 ms away, p99 ms": (AT_MOST, 1.0),
    "koo: anthropic, calls a second": (AT_LEAST, 4000.0),
    "koo: openai, calls a second": (AT_LEAST, 4000.0),
    "koo / aiohttp and msgspec, anthropic": (AT_LEAST, 0.62),
    "koo / aiohttp and msgspec, openai": (AT_LEAST, 0.62),
    "koo / aiohttp and msgspec, openai_compatible": (AT_LEAST, 0.62),
    "koo / aiohttp and msgspec, a streamed event, anthropic": (AT_MOST, 1.5),
    "koo / aiohttp and msgspec, a streamed event, openai": (AT_MOST, 1.5),
    "koo / aiohttp and msgspec, a streamed event, openai_compatible": (AT_MOST, 1.5),
    "koo: /readyz / an empty route": (AT_MOST, 1.3),
    "koo: ten pages' live streams, % of a core": (AT_MOST, 1.0),
    "koo: import, s": (AT_MOST, 0.15),
    "server: ready after, s": (AT_MOST, 1.5),
    "server: resident memory, MiB": (AT_MOST, 100.0),
}


def is_met(name: str, value: float) -> bool:
    word, goal = GOALS[name]
    return value <= goal if word == AT_MOST else value >= goal


def describe(name: str, value: float) -> str:
    """One line with the figure and whether it meets its goal."""
    line = f"  {name:<64} {value:>10.3f}"
    if name not in GOALS:
        return line
    word, goal = GOALS[name]
    return f"{line}   {'meets' if is_met(name, value) else 'MISSES'} {word} {goal:g}"
