"""A thousand processes that lease units, on virtual time over the same decisions: load on the store, fairness."""

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
    """Each limit, asked for half as much again as it allows."""
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
        rows.append(Row(f"{world.limit:,} a minute: messages in each second", messages))
        if world.worst > world.limit or world.used < 0.85:
            found.append(f"{world.worst} of {world.limit}, {world.used:.0%} used")
        if not uses[0]:
            found.append(f"a process got none of {world.limit}")
        if sum(steady) / len(steady) > 2 * PROCESSES / 5:
            found.append(f"{sum(steady) / len(steady):.0f} messages a second at {world.limit}")
    figure = bars_svg("Load on the store: a thousand processes", rows, 1.0, (0.0, 0.0), tick_s=10)
    (PAGES / FIGURE).write_text(figure, encoding="utf-8")
    head = [
        f"{SECONDS} seconds of virtual time over the pure decisions. All processes start in one moment, with calls at",
        "random moments, half as many again as the limit allows. Fairness is Jain's index of the calls that were let",
        "out; with calls at random moments it is below 1 by one part in as many as each process made.",
        "",
        "| limit a minute | most in any minute | used | least of one process | median | most | fairness"
        " | messages a second | most in a second |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return Part("A thousand processes", [*head, *lines, "", f"![messages in each second]({FIGURE})"], found)
