"""`python -m benchmarks [--rounds N] [--keep] [subject …]`: measure all subjects, or the named ones.

A run of all subjects with all rounds is also saved in `results/`, and the tables of README.md are generated from it.
With `--keep` the named subjects are saved too, together with the other subjects of the newest result.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Any

from benchmarks.goals import describe
from benchmarks.measure import Report, machine, noise
from benchmarks.peers import versions
from benchmarks.tables import RESULTS, newest, write_readme

SUBJECTS = {
    "guard": "benchmarks.guard_call",
    "database": "benchmarks.database_scope",
    "markers": "benchmarks.markers",
    "money": "benchmarks.money",
    "fleet": "benchmarks.fleet",
    "query": "benchmarks.query",
    "imports": "benchmarks.imports",
    "probes": "benchmarks.probes",
    "live": "benchmarks.live",
}


def measure(subject: str, rounds: int | None) -> Report:
    options = {} if rounds is None else {"rounds": rounds}
    report: Report = asyncio.run(importlib.import_module(SUBJECTS[subject]).report(**options))
    return report


def short(value: float) -> float:
    """Round to four digits; more are noise."""
    return float(f"{value:.4g}")


def result(reports: dict[str, Report], about: dict[str, str]) -> dict[str, Any]:
    """The data to save: medians, their noise, and the peers that were not measured."""
    kept: dict[str, Any] = {"machine": about, "packages": versions()}
    for key in ("figures", "noise", "not_measured"):
        kept[key] = {}
    for subject, report in reports.items():
        noises = {name: noise(values) for name, values in report.figures.items()}
        kept["figures"][subject] = {
            name: short(statistics.median(values)) for name, values in sorted(report.figures.items())
        }
        kept["noise"][subject] = {
            name: short(value) for name, value in sorted(noises.items()) if value is not None
        }
        kept["not_measured"][subject] = dict(sorted(report.not_measured.items()))
    return kept


def show(report: Report) -> None:
    for name, values in report.figures.items():
        print(describe(name, statistics.median(values)), flush=True)
    for name, why in report.not_measured.items():
        print(f"  {name}: not measured: {why}", flush=True)


def beside_the_newest(found: dict[str, Any]) -> dict[str, Any]:
    """The newest result, with its values for these subjects replaced."""
    kept: dict[str, Any] = json.loads(newest().read_text(encoding="utf-8"))
    when = f"{datetime.now(UTC):%Y-%m-%d}, a thousand additions take {found['machine']['additions_us']} µs"
    for key in ("figures", "noise", "not_measured"):
        kept[key] |= found[key]
    kept["by_itself"] = kept.get("by_itself", {}) | dict.fromkeys(found["figures"], when)
    return kept


def keep(found: dict[str, Any]) -> None:
    """Save in today's file and in the tables."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    write_readme()
    print(f"\nsaved in benchmarks/results/{path.name} and in the tables of benchmarks/README.md")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, help="fewer are faster but noisier; then nothing is saved")
    parser.add_argument(
        "--keep", action="store_true", help="save the results of the named subjects too; needs all rounds"
    )
    parser.add_argument("subject", nargs="*", help=f"one or more of {', '.join(SUBJECTS)}; all by default")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.subject) - set(SUBJECTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from: {', '.join(SUBJECTS)}")
    began = time.perf_counter()
    about = machine()
    print(f"{about['processor']}, Python {about['python']}, a thousand additions {about['additions_us']} us")
    reports: dict[str, Report] = {}
    for subject in asked.subject or SUBJECTS:
        print(f"\n{subject}", flush=True)
        reports[subject] = measure(subject, asked.rounds)
        show(reports[subject])
    print(f"\ntook {time.perf_counter() - began:.0f} s")
    if asked.rounds is None:
        found = result(reports, about)
        if not asked.subject:
            keep(found)
        elif asked.keep:
            keep(beside_the_newest(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
