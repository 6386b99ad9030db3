"""Simulates a thousand processes that lease units, on virtual time: load on the store, and fairness."""

from __future__ import annotations

from proofs.figure import Row, bars_svg
from proofs.fleet_part import Part
from proofs.running import PAGES
from tests.policies.unit_world import World

PROCESSES, SECONDS = 1000, 90
LIMITS = (6_000, 60_000)
FIGURE = "fleet-thousand.svg"


def load(world: World) -> list[int]:
    """Messages in each second."""
    seconds = [0] * SECONDS
    for at in world.trips:
        seconds[int(at)] += 1
    return seconds


async def prove() -> Part:
    """Test each limit with 1.5 times as many requests as it allows."""
    worlds = [
        World(
            limit, PROCESSES, limit / 60 * 1.5, seconds=SECONDS, seed=limit, faults=False, lag_s=(0.001, 0.05)
        ).run()
        for limit in LIMITS
    ]
    rows, lines, found = [], [], []
    for world in worlds:
        uses, messages = sorted(one.uses for one in world.processes), load(world)
        steady = messages[5:]
        fairness = sum(uses) ** 2 / (PROCESSES * sum(one * one for one in uses))
        lines.append(
            f"| {world.limit:,} | {world.worst:,} | {world.used:.0%} | {uses[0]} | {uses[PROCESSES // 2]} |"
            f" {uses[-1]} | {fairness:.2f} | {sum(steady) / len(steady):.0f} | {max(messages):,} |"
        )
        rows.append(Row(f"{world.limit:,} per minute: messages in each second", messages))
        if world.worst > world.limit or world.used < 0.85:
            found.append(f"{world.worst} of {world.limit}, {world.used:.0%} used")
        if not uses[0]:
            found.append(f"a process got none of {world.limit}")
        if sum(steady) / len(steady) > 2 * PROCESSES / 5:
            found.append(f"{sum(steady) / len(steady):.0f} messages a second at {world.limit}")
    figure = bars_svg("Load on the store: a thousand processes", rows, 1.0, (0.0, 0.0), tick_s=10)
    (PAGES / FIGURE).write_text(figure, encoding="utf-8")
    head = [
        f"{SECONDS} seconds of virtual time over the decision code, without I/O. All processes start at the same",
        "moment and call at random moments, 1.5 times as often as the limit allows. Fairness is Jain's index of the",
        "admitted calls. Because calls come at random moments, it is below 1 by about 1/n for n calls of each process.",
        "",
        "| limit per minute | most calls in any minute | used | fewest calls of a process | median | most | fairness"
        " | messages per second | most in one second |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return Part("A thousand processes", [*head, *lines, "", f"![messages in each second]({FIGURE})"], found)
