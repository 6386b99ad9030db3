"""`koo spend` and `koo spend write-off`: what all processes spent, and what dead ones left booked."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from urllib.parse import urlencode

from koo.cli.client import act, ask, who
from koo.cli.tables import Column, put_table
from koo.cli.terminal import CommandFailed, Exit, put, put_json, put_whole, run_async, say
from koo.cli.words import counted, usd, when
from koo.monitoring.spend_shapes import PeriodAmount, Spend, SpendRow, WriteOffs

NUMBERS = ("calls", "amount", "estimated", "estimated_calls", "input_tokens", "output_tokens")


def spend(
    asked: Mapping[str, object], by: Sequence[str], url: str | None, *, as_csv: bool, as_json: bool
) -> Exit:
    """`asked`: the period, by the names of the API's parameters."""
    groups = [("by", word.strip()) for one in by for word in one.split(",") if word.strip()]
    given = [(name, value) for name, value in asked.items() if value is not None]
    _, report = run_async(ask(url, f"/ai/spend?{urlencode([*given, *groups])}", Spend))
    if as_json:
        put_json(report)
    elif as_csv:
        put_whole(_csv(report))
    else:
        _show(report)
    return Exit.OK


def write_off(process: str | None, *, everything: bool, reason: str, url: str | None, as_json: bool) -> Exit:
    """Free the money left by one process, or by all processes that no longer report."""
    if (process is None) is not everything:
        raise CommandFailed("name a process, or use --all; `koo spend` lists them", Exit.USAGE, "usage")
    body = {"process": process, "all": everything, "by": who(), "reason": reason}
    done = run_async(act(url, "/ai/spend/write-off", WriteOffs, body))
    if as_json:
        put_json(done)
    else:
        put(done["message"])
    return Exit.OK


def _csv(report: Spend) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*report["by"], *NUMBERS])
    for row in report["rows"]:
        writer.writerow([_safe(cell) for cell in _cells(row, [*report["by"], *NUMBERS])])
    return out.getvalue()


def _safe(cell: str) -> str:
    """Disarm cells that begin like a formula: a spreadsheet would run them, and anyone can write a tag."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _cells(row: SpendRow, names: Iterable[str]) -> list[str]:
    values: Mapping[str, object] = row
    return ["" if values[name] is None else str(values[name]) for name in names]


def _show(report: Spend) -> None:
    numbers = [Column(head, right=True) for head in ("calls", "spent", "of that estimated")]
    rows = [
        [
            *(cell or "—" for cell in _cells(row, report["by"])),
            *(str(row["calls"]), usd(row["amount"]), _estimated(row["estimated"])),
        ]
        for row in report["rows"]
    ]
    put(f"{report['first_day']} to {report['last_day']} (UTC)")
    put_table([*map(Column, report["by"]), *numbers], rows)
    put(f"total {usd(report['amount'])} in {counted(report['calls'], 'call')}")
    for one in report["unsettled"]:
        say(
            f"unsettled: process {one['process']} no longer reports and was granted {_words(one['amounts'])}; "
            "this stays booked, because it may have been spent"
        )
    for done in report["written_off"]:
        what = f"process {done['process']}: {_words(done['amounts'])}"
        say(f"written off by {done['by']} at {when(done['at'])}: {what}")


def _words(amounts: Sequence[PeriodAmount]) -> str:
    return ", ".join(f"{one['amount']} USD of {one['budget']} in {one['period']}" for one in amounts)


def _estimated(amount: str) -> str:
    return "" if Decimal(amount) == 0 else f"≤ {usd(amount)}"
