"""Ten minutes of mixed faults against one real platform: `python -m proofs.chaos [--minutes N] [--seed N]`.

`koo serve` with real clients, and an application with library calls of every kind, run through faults around them, two
at a time: providers that respond wrongly, late or not at all; a database and a state store that are killed, frozen or
cut off; a full disk, exhausted descriptors, hanging name lookups, jumping clocks, an unread log, silent clients. During
all this, calls are cancelled and clients disconnect at random moments.

Between the storms are pauses without any requests. In them nothing may be held, and memory, descriptors, threads and
tasks must be back at their earlier values. In the end everything must be healthy again, the ledgers must match the
providers' bills, and the table must match the results that the application received.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp

from proofs.chaos_clients import API, Clients
from proofs.chaos_faults import Fault, heal_provider, of_ground, of_provider
from proofs.chaos_judge import (
    LINES_A_MINUTE_MAX,
    Course,
    Pause,
    Struck,
    falls,
    growth,
    lines_a_minute,
    open_in,
    read_books,
    rows_wrong,
    told,
)
from proofs.chaos_page import page
from proofs.chaos_world import World, bill_usd, world
from proofs.running import PAGES, ProofFailed, write_page

MINUTES = 10.0
STORM_S = 80.0
WARM_S = 15.0
GAP_S = 3.0
"""Between two faults of a lane."""
IDLE_S = 25.0
"""The deadline of a call or a scope; a provider's idle connection is closed after 4 s."""
STAYS_S = 3.0
HEALTHY_S = 480.0
"""Rates cover five minutes and need one minute of calm; two more are for a breaker that opened often."""
ENDS_S = 15.0
LOOK_S = 0.5
LIVES_BY_DESIGN = {"database_commit_unknown", "money_unsettled"}
"""Alerts that only a person can end."""
UNREACHABLE = {"the server is stopped for three seconds", "descriptors are scarce"}


def decks(one: World) -> list[Callable[[random.Random], Fault]]:
    """The two lanes: each uses all of its faults before it repeats one."""
    ground = [fault for fault in of_ground() if one.is_own_disk or not fault.needs_root]
    return [_deck([*of_provider("alpha"), *of_provider("beta")]), _deck(ground)]


def _deck(faults: list[Fault]) -> Callable[[random.Random], Fault]:
    left: list[Fault] = []

    def deal(rng: random.Random) -> Fault:
        if not left:
            left.extend(rng.sample(faults, len(faults)))
        return left.pop()

    return deal


async def lane(one: World, course: Course, deal: Callable[[random.Random], Fault], until_s: float) -> None:
    """Run one fault after another until the storm is over."""
    while one.now_s < until_s:
        fault = deal(one.rng)
        struck = Struck(fault, one.now_s)
        course.struck.append(struck)
        print(f"{one.now_s:6.1f} s  {fault.name}", flush=True)
        await fault.begin(one)
        await asyncio.sleep(fault.lasts_s)
        await fault.end(one)
        struck.ended_s = one.now_s
        await asyncio.sleep(GAP_S * one.rng.uniform(0.5, 1.5))


async def watch(one: World, course: Course) -> None:
    """Checks that run all the time."""
    turn = 0
    while True:
        await asyncio.sleep(LOOK_S)
        turn += 1
        course.alerts.append((one.now_s, one.alerts()))
        if turn % 4 == 0:
            for child in one.children:
                child.look(one.began)


async def scrape(one: World, course: Course) -> None:
    """Scrape `/metrics`, as Prometheus does."""
    async with aiohttp.ClientSession(one.url, timeout=aiohttp.ClientTimeout(total=5)) as session:
        while True:
            await asyncio.sleep(4)
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with session.get("/metrics") as answer:
                    if answer.status == 200:
                        course.texts["serve"].append(await answer.text())


async def pause(one: World, course: Course, clients: Clients) -> None:
    """Send no requests until nothing is open; then check everything."""
    set_quiet(one, clients, True)
    began = one.now_s
    since: float | None = None
    while one.now_s < began + IDLE_S and (since is None or one.now_s < since + STAYS_S):
        await asyncio.sleep(0.2)
        is_idle = not any(open_in(child.said) or _is_old(child.said) for child in one.children)
        since = (since if since is not None else one.now_s) if is_idle else None
    took_s = (since or one.now_s) - began
    # Idle connections to a provider are closed in the meantime.
    await asyncio.sleep(max(0.0, began + 8 - one.now_s))
    course.pauses.append(
        Pause(
            one.now_s,
            took_s,
            {child.what: left for child in one.children if (left := _left_in(child.said))},
            {child.what: child.look(one.began) for child in one.children},
            one.ways["database"].open_connections,
            sum(one.ways[name].open_connections for name in one.fakes),
        )
    )
    for child in one.children:
        child.lever("reset")
    set_quiet(one, clients, False)


def _left_in(said: dict[str, Any]) -> str:
    if _is_old(said):
        return "it no longer reports"
    return str(open_in(said)) if open_in(said) else ""


def _is_old(said: dict[str, Any]) -> bool:
    return bool(time.monotonic() - said.get("heard_s", 0.0) > 4)


def set_quiet(one: World, clients: Clients, is_quiet: bool) -> None:
    clients.is_quiet = is_quiet
    one.application.lever("quiet" if is_quiet else "work")


async def calm(one: World, course: Course) -> None:
    """Wait without faults until everything is healthy."""
    began = one.now_s
    async with aiohttp.ClientSession(one.url, timeout=aiohttp.ClientTimeout(total=5)) as session:
        while one.now_s < began + HEALTHY_S:
            await asyncio.sleep(1)
            if {kind for _, kind, _ in one.alerts()} - LIVES_BY_DESIGN:
                continue
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with session.get(f"{API}/monitoring/health") as answer:
                    if (await answer.json())["overall_health"] == "healthy":
                        course.healthy_s = one.now_s - began
                        return


async def storms(one: World, course: Course, clients: Clients, minutes: float) -> None:
    """Alternate storms and pauses, with a calm at the end."""
    lanes = decks(one)
    await asyncio.sleep(WARM_S)
    await pause(one, course, clients)
    end_s = one.now_s + 60 * minutes
    while one.now_s < end_s:
        until_s = min(one.now_s + STORM_S, end_s)
        await asyncio.gather(*(lane(one, course, deal, until_s) for deal in lanes))
        for fake in one.fakes.values():
            heal_provider(fake)
        await asyncio.sleep(5)
        await pause(one, course, clients)
        print(f"{one.now_s:6.1f} s  a pause: {course.pauses[-1].open or 'nothing is open'}", flush=True)
    await calm(one, course)
    await pause(one, course, clients)


async def run(minutes: float, seed: int) -> tuple[list[str], list[str], str]:
    """Run everything; returns what does not hold, and the page with its figure."""
    course = Course()
    async with world(seed) as one:
        clients = Clients(one.url, seed)
        beside = [
            asyncio.create_task(work)
            for work in (watch(one, course), scrape(one, course), clients.run(one.began))
        ]
        await storms(one, course, clients, minutes)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        course.texts["application"] = one.application.texts
        ends = [await child.end(ENDS_S) for child in one.children]
        books = await asyncio.to_thread(read_books, one.store, str(one.disk / "data" / "koo-state.db"))
        rows = [int(row) for row in one.database.sql("SELECT n FROM notes").split()]
        found = [f"{child.what} {end}" for child, end in zip(one.children, ends, strict=True) if end]
        found += wrong_with(one, course, clients)
        found += books.wrong(bill_usd(one))
        found += rows_wrong(one.application.rows, rows)
        return found, *page(one, course, clients, books, len(rows), found, minutes, seed)


def wrong_with(one: World, course: Course, clients: Clients) -> list[str]:
    """What does not hold, except money and rows."""
    found = [wrong for one_told in told(course) if (wrong := one_told.wrong())]
    found += growth(course.pauses, one.children)
    found += [f"open in the pause at {p.at_s:.0f} s: {p.open}" for p in course.pauses if p.open]
    for child in one.children:
        found += [f"{child.what} said: {line}" for line in child.trouble]
        most = lines_a_minute(child.lines)
        if most > LINES_A_MINUTE_MAX:
            found.append(f"{child.what} logged {most} lines in a minute")
    for what, texts in course.texts.items():
        found += [f"{what}: {fall}" for fall in sorted(set(falls(texts)))[:20]]
    strange = Counter(one.application.said.get("did", {}).get("strange", {})) + clients.strange
    found += [f"{number} × {what}" for what, number in strange.items()]
    silent = [at for at in clients.silent_s if not _explains(course, at)]
    if silent:
        found.append(f"/livez did not respond at {', '.join(f'{at:.0f}' for at in silent)} s")
    if course.healthy_s is None:
        left = {kind for _, kind, _ in one.alerts()} - LIVES_BY_DESIGN
        found.append(f"not healthy {HEALTHY_S:g} s after the last fault: {', '.join(sorted(left))}")
    return found


def _explains(course: Course, at: float) -> bool:
    return any(
        one.fault.name in UNREACHABLE and one.began_s - 1 <= at <= one.ended_s + 3 for one in course.struck
    )


def main() -> int:
    asks = argparse.ArgumentParser(prog="proofs.chaos")
    asks.add_argument("--minutes", type=float, default=MINUTES)
    asks.add_argument("--seed", type=int, default=1)
    asked = asks.parse_args()
    found, lines, figure = asyncio.run(run(asked.minutes, asked.seed))
    if asked.minutes < MINUTES:
        print("\n".join(lines))  # a partial trial; the page shows a whole run
    else:
        (PAGES / "chaos.svg").write_text(figure, encoding="utf-8")
        write_page("chaos", "prove-chaos", lines)
    return int(bool(found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
