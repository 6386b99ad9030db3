"""`koo audit`: what was done on the running server, by whom, and what was refused, newest first."""

from __future__ import annotations

from koo.cli.client import ask
from koo.cli.tables import Column, put_table
from koo.cli.terminal import Exit, put, put_json, run_async
from koo.cli.words import when
from koo.monitoring.shapes import AuditEntry, AuditLog

COLUMNS = tuple(map(Column, ("when", "who", "from", "what", "answer")))


def audit(limit: int, url: str | None, *, as_json: bool) -> Exit:
    """Show the last `limit` acts and refusals."""
    _, answer = run_async(ask(url, f"/monitoring/audit?limit={limit}", AuditLog))
    if as_json:
        put_json(answer)
    elif not answer["entries"]:
        put("nothing was done or refused since the server started")
    else:
        put_table(COLUMNS, [_row(one) for one in answer["entries"]])
    return Exit.OK


def _row(one: AuditEntry) -> list[str]:
    said = f"refused ({one['status']}): {one['reason']}" if one["reason"] else "allowed"
    more = f"; {one['more']} more before" if one["more"] else ""
    return [when(one["at"]), one["who"], one["peer"], one["what"], said + more]
