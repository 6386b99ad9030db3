"""Many processes on one store: `python -m proofs.fleet [PART...]`; without arguments it runs all parts.

Each part is a file `proofs/fleet_….py` whose `prove` returns its section of the page. A run of some parts writes their
sections and keeps the other sections from their last run; each section says when it ran, and with which koo.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from proofs import fleet_breakers, fleet_failover, fleet_limits, fleet_thousand, fleet_versions, fleet_workers
from proofs.fleet_part import Part
from proofs.running import LIMIT_S, PAGES, ProofFailed, state_of_koo, write_page

PARTS: Mapping[str, Callable[[], Awaitable[Part]]] = {
    "failover": fleet_failover.prove,
    "limits": fleet_limits.prove,
    "thousand": fleet_thousand.prove,
    "workers": fleet_workers.prove,
    "versions": fleet_versions.prove,
    "breakers": fleet_breakers.prove,
}
HEAD = (
    "# Fleet: many processes, one store",
    "",
    "Promises about a fleet, tested with real processes and real servers. Each section says when it was tested.",
)


async def prove(names: Sequence[str], limit_s: float) -> dict[str, tuple[Part, str]]:
    """Run these parts one after the other; returns each with a line that says when it ran and for how long."""
    tried = {}
    try:
        async with asyncio.timeout(limit_s):
            for name in names:
                print(f"koo: {name}", flush=True)
                began = time.monotonic()
                part = await PARTS[name]()
                print(*part.lines, *(f"does not hold: {one}" for one in part.found), sep="\n", flush=True)
                tried[name] = part, _when(time.monotonic() - began)
    except TimeoutError:
        raise ProofFailed(f"did not end within {limit_s / 60:.0f} minutes") from None
    return tried


def _when(lasted_s: float) -> str:
    lasted = f"{lasted_s:.0f} seconds" if lasted_s < 120 else f"{lasted_s / 60:.0f} minutes"
    return f"Tested on {dt.datetime.now(dt.UTC).date()} in {lasted}, koo at {state_of_koo()}."


def page(sections: Mapping[str, Sequence[str]]) -> list[str]:
    """The page: its head, and the sections in the order of `PARTS`."""
    return [*HEAD, *(line for name in PARTS for line in ["", *sections.get(name, ())] if name in sections)]


def sections_of(text: str) -> dict[str, list[str]]:
    """The sections of an existing page, by the part's name, which is in a comment above each section."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("<!-- part: "):
            lines = found[line.removeprefix("<!-- part: ").removesuffix(" -->")] = []
        elif line.startswith("Written by `make"):
            lines = None
        if lines is not None:
            lines.append(line)
    return {name: _without_end(lines) for name, lines in found.items()}


def _without_end(lines: list[str]) -> list[str]:
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines


def section(name: str, part: Part, when: str) -> list[str]:
    """One section of the page."""
    verdict = "It holds." if not part.found else f"It does not hold: {'; '.join(part.found)}."
    return [f"<!-- part: {name} -->", f"## {part.title}", "", *part.lines, "", f"{verdict} {when}"]


def main(names: Sequence[str]) -> int:
    """The exit code."""
    if unknown := [name for name in names if name not in PARTS]:
        raise ProofFailed(f"no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    tried = asyncio.run(prove(names or list(PARTS), LIMIT_S))
    file = PAGES / "fleet.md"
    before = sections_of(file.read_text(encoding="utf-8")) if file.exists() else {}
    now = {name: section(name, part, when) for name, (part, when) in tried.items()}
    write_page("fleet", "prove-fleet", page(before | now))
    return int(any(part.found for part, _ in tried.values()))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
