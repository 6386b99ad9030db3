"""Writes the page of the chaos proof."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from proofs.chaos_judge import Books, Course, lines_a_minute, slope_mib, tasks, told
from proofs.chaos_world import Child, World, bill_usd
from proofs.figure import Row, bars_svg

if TYPE_CHECKING:
    from proofs.chaos_clients import Clients

FIGURE_STEP_S = 6.0


def page(
    one: World,
    course: Course,
    clients: Clients,
    books: Books,
    rows: int,
    found: list[str],
    minutes: float,
    seed: int,
) -> tuple[list[str], str]:
    """The page's lines, and its figure."""
    outcomes = Counter(one.application.said.get("did", {}).get("outcomes", {}))
    lines = [
        "# Chaos: after faults of every kind, everything returns to normal",
        "",
        "`koo serve` with ten clients, and an application whose sixteen tasks make library calls, run through",
        f"{minutes:g} minutes of faults, two at a time (seed {seed}). Between the storms are pauses without any",
        "requests.",
        "",
        *(
            ["**Does not hold:**", "", *(f"- {one_found}" for one_found in found)]
            if found
            else ["**Holds.**"]
        ),
        "",
        "## Resources in the pauses",
        "",
        "The first pause is before any fault.",
        "",
        "| pause at | process | memory | descriptors | threads | tasks | connections to the database |"
        " connections to the providers | idle after |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
        *_pauses(course),
        "",
        *(_memory(course, child) for child in one.children),
        "",
        "Memory of both processes over time: ![memory](chaos.svg)",
        "",
        "## Faults and their alerts",
        "",
        "`fired` is the time from a fault's beginning to its alert, `ended` the time from its end to the alert's end.",
        "If a fault came several times, the longest time is shown.",
        "",
        "| fault | times | alert | fired | ended |",
        "|---|---:|---|---:|---:|",
        *_faults(course),
        "",
        "## What callers saw",
        "",
        f"- the application: {_counted(outcomes)}",
        f"- clients of the server: {_counted(clients.answers)}",
        f"- checks of `/livez` without a response, while the server was stopped or had no free descriptors:"
        f" {len(clients.silent_s)}",
        "",
        "## Money and rows",
        "",
        f"The providers bill {bill_usd(one):.4f} USD. The ledgers of both processes contain {books.entries:.4f} USD,",
        f"of which {books.marked:.4f} is estimated (calls that ended without the provider's numbers)."
        f" {books.unsettled:.4f} USD remains unsettled.",
        "",
        f"{rows:,} rows were written. Each acknowledged row exists exactly once, and each other row had been reported",
        "as unknown.",
        "",
        "## After the last fault",
        "",
        (
            f"Healthy and without alerts after {course.healthy_s:.0f} s."
            if course.healthy_s is not None
            else "Not healthy in time."
        ),
    ]
    return lines, _figure(one, course)


def _pauses(course: Course) -> list[str]:
    lines = []
    for pause in course.pauses:
        for what, sample in pause.samples.items():
            lines.append(
                f"| {pause.at_s:.0f} s | {what} | {sample.rss_mib:.1f} MiB | {sample.descriptors} | {sample.threads} |"
                f" {tasks(sample)} | {pause.database} | {pause.providers} | {pause.took_s:.1f} s |"
            )
    return lines


def _memory(course: Course, child: Child) -> str:
    slope = slope_mib(course.pauses, child.what)
    return (
        f"- {child.what}: {slope:+.2f} MiB per minute after the warm-up; at most {lines_a_minute(child.lines)} log"
        f" lines in a minute, {len(child.lines):,} in total, not counting audit and request lines"
    )


def _faults(course: Course) -> list[str]:
    seen = defaultdict(list)
    for one in told(course):
        seen[one.struck.fault.name].append(one)
    times = Counter(one.fault.name for one in course.struck)
    lines = []
    for name in sorted(times):
        ways = seen.get(name, [])
        fired = max((one.fired_s for one in ways if one.fired_s is not None), default=None)
        ended = max(
            (one.ended_s for one in ways if one.ended_s is not None and not one.is_followed), default=None
        )
        kinds = ", ".join(f"`{kind}`" for kind in sorted(ways[0].struck.fault.alerts)) if ways else ""
        lines.append(f"| {name} | {times[name]} | {kinds} | {_seconds(fired)} | {_seconds(ended)} |")
    return lines


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} × {what}" for what, number in counts.most_common())


def _figure(one: World, course: Course) -> str:
    rows, last = [], 0.0
    for child in one.children:
        bars: dict[int, float] = {}
        for sample in child.samples:
            step = int(sample.at_s / FIGURE_STEP_S)
            bars[step] = max(bars.get(step, 0.0), sample.rss_mib)
            last = max(last, sample.at_s)
        marks = [(pause.at_s, "") for pause in course.pauses]
        values = [round(bars.get(step, 0)) for step in range(max(bars, default=0) + 1)]
        rows.append(Row(f"{child.what}: MiB of memory; dashed: pauses", values, marks))
    first = min((struck.began_s for struck in course.struck), default=0.0)
    end = max((struck.ended_s for struck in course.struck), default=0.0)
    return bars_svg("Memory during ten minutes of faults", rows, FIGURE_STEP_S, (first, end), tick_s=60)
