"""`koo runbook`: what to do about each kind of alert. Part of the package; needs no server and no network."""

from __future__ import annotations

from dataclasses import asdict

from koo.cli.terminal import CommandFailed, Exit, put, put_json
from koo.monitoring.runbook import Runbook, runbooks


def runbook(kind: str | None, *, as_json: bool) -> Exit:
    """Show one kind, or all."""
    known = runbooks()
    if kind is not None and kind not in known:
        raise CommandFailed(
            f"unknown kind of alert: {kind}; `koo runbook` lists them", Exit.USAGE, "not_found"
        )
    chosen = list(known.values()) if kind is None else [known[kind]]
    if as_json:
        put_json({"kinds": [asdict(one) for one in chosen]})
    elif kind is None:
        for one in chosen:
            put(f"{one.kind}  {one.severity}  {one.title}")
    else:
        _put(chosen[0])
    return Exit.OK


def _put(one: Runbook) -> None:
    put(f"{one.title} ({one.kind}, {one.severity})")
    put(f"Begins: {one.begins}")
    put(f"Ends: {one.ends}")
    if one.refuses:
        put(f"Refused: {one.refuses}")
    for paragraph in one.advice.split("\n\n"):
        put("")
        put(paragraph)
