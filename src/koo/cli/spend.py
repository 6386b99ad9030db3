"""`koo spend` and `koo spend write-off`: what all processes spent, and what the dead among them left booked."""

from __future__ import annotations

import csv
import getpass
import io
import socket
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TypeVar
from urllib.parse import urlencode

from koo.cli.client import connect
from koo.cli.terminal import CommandFailed, Exit, progress, put, put_json, run_async, say, visible
from koo.monitoring.spend_shapes import PeriodAmount, Spend, SpendRow, WriteOffs

T = TypeVar("T")
NUMBERS = ("calls", "amount", "estimated", "estimated_calls", "input_tokens", "output_tokens")


def spend(asked: Mapping[str, object], by: Sequence[str], *, as_csv: bool, as_json: bool) -> Exit:
    """`asked`: the period, by the names that the server knows."""
    groups = [("by", word.strip()) for one in by for word in one.split(",") if word.strip()]
    given = [(name, value) for name, value in asked.items() if value is not None]
    report = run_async(_get(f"/ai/spend?{urlencode([*given, *groups])}"))
    if as_json:
        put_json(report)
    elif as_csv:
        put(_csv(report), end="")
    else:
        _show(report)
    return Exit.OK


def write_off(process: str | None, *, everything: bool, reason: str, as_json: bool) -> Exit:
    """Free what one process left, or all that no longer report."""
    if (process is None) is not everything:
        raise CommandFailed("name a process, or say --all; `koo spend` lists them", Exit.USAGE, "usage")
    body = {"process": process, "all": everything, "by": _who(), "reason": reason}
    done = run_async(_post("/ai/spend/write-off", body))
    if as_json:
        put_json(done)
    else:
        put(visible(done["message"]))
    return Exit.OK


async def _get(path: str) -> Spend:
    async with connect() as client:
        with progress(f"asking {client.url}"):
            return await client.get(path, Spend)


async def _post(path: str, body: object) -> WriteOffs:
    async with connect() as client:
        with progress(f"asking {client.url}"):
            return await client.post(path, WriteOffs, body)


def _who() -> str:
    """Who sits here, for the record: a name and a machine."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # A container may run under a number that has no name.
        name = "unknown"
    return f"{name}@{socket.gethostname()}"[:100]


def _csv(report: Spend) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*report["by"], *NUMBERS])
    for row in report["rows"]:
        writer.writerow([_safe(cell) for cell in _cells(row, [*report["by"], *NUMBERS])])
    return out.getvalue()


def _safe(cell: str) -> str:
    """A spreadsheet runs what begins like a formula, and tags are anybody's words."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _cells(row: SpendRow, names: Iterable[str]) -> list[str]:
    values: Mapping[str, object] = row
    return ["" if values[name] is None else str(values[name]) for name in names]


def _show(report: Spend) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in report["by"]:
        table.add_column(name)
    for name in ("calls", "USD", "of that estimated"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        amounts = [str(row["calls"]), _usd(row["amount"]), _estimated(row["estimated"])]
        groups = [Text(visible(cell or "—")) for cell in _cells(row, report["by"])]
        table.add_row(*groups, *amounts)
    console.print(f"{report['first_day']} to {report['last_day']} (UTC)")
    console.print(table)
    console.print(f"together {_usd(report['amount'])} USD in {report['calls']} calls")
    for one in report["unsettled"]:
        say(
            f"unsettled: process {visible(one['process'])} no longer reports and was granted {_words(one['amounts'])}; "
            "it stays booked, because it may have spent it"
        )
    for done in report["written_off"]:
        what = f"process {done['process']}: {_words(done['amounts'])}"
        say(visible(f"written off by {done['by']} at {done['at'][:19]}: {what}"))


def _words(amounts: Sequence[PeriodAmount]) -> str:
    return ", ".join(f"{one['amount']} USD of {visible(one['budget'])} in {one['period']}" for one in amounts)


def _usd(amount: str) -> str:
    return f"{Decimal(amount):.4f}"


def _estimated(amount: str) -> str:
    return "" if Decimal(amount) == 0 else f"≤ {_usd(amount)}"
