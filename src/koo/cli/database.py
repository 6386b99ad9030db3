"""`koo db`: pause, resume, drain or rotate the database of the running server."""

from __future__ import annotations

from typing import TypedDict

from koo.cli.client import TIMEOUT_S, connect, who
from koo.cli.terminal import Exit, progress, put, put_json, run_async
from koo.monitoring.shapes import DatabaseGate, Time


class Act(TypedDict):
    """What each of the four answers."""

    message: str
    database: DatabaseGate
    timestamp: Time


def act(name: str, within_s: float | None, reason: str, url: str | None, *, as_json: bool) -> Exit:
    """`name`: pause, resume, drain or rotate. Exit code 1 where scopes are left that a drain did not wait out."""
    answer = run_async(_act(name, within_s, reason, url))
    if as_json:
        put_json(answer)
    else:
        put(answer["message"])
        for one in answer["database"]["held_by"] if within_s is not None else ():
            put(f"  {one}")
    return Exit.FAILED if name == "drain" and answer["database"]["running"] else Exit.OK


async def _act(name: str, within_s: float | None, reason: str, url: str | None) -> Act:
    body = {"by": who(), "reason": reason} | ({} if within_s is None else {"within_s": within_s})
    async with connect(url) as client:
        with progress(f"asking {client.url}"):
            patience_s = TIMEOUT_S + (within_s or 0.0)
            return await client.post(f"/monitoring/database/{name}", Act, body, patience_s=patience_s)
