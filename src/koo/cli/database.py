"""`koo db`: pause, resume, drain or rotate the running server's database; create the table for exactly-once."""

from __future__ import annotations

from typing import TypedDict

from koo.cli.client import TIMEOUT_S, connect, settings_for, who
from koo.cli.terminal import Exit, progress, put, put_json, run_async
from koo.database.marker_keys import TABLE
from koo.database.news import shown
from koo.monitoring.shapes import DatabaseGate, Time
from koo.platform import Platform


class Act(TypedDict):
    """What each of the four acts returns."""

    message: str
    database: DatabaseGate
    timestamp: Time


def act(name: str, within_s: float | None, reason: str, url: str | None, *, as_json: bool) -> Exit:
    """`name`: pause, resume, drain or rotate. Exit code 1 if scopes are still open after a drain."""
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
        with progress(f"querying {client.url}"):
            patience_s = TIMEOUT_S + (within_s or 0.0)
            return await client.post(f"/monitoring/database/{name}", Act, body, patience_s=patience_s)


def init(*, as_json: bool) -> Exit:
    """Create the table for exactly-once from here, because the server's database user may lack the permission."""
    where = run_async(_init())
    if as_json:
        put_json({"table": TABLE, "database": where})
    else:
        put(f"the table {TABLE} exists in {where}")
    return Exit.OK


async def _init() -> str:
    platform = Platform(settings_for(None).platform_options())
    async with platform:
        with progress("creating the table"):
            await platform.database.init_exactly_once()
        return shown(platform.database.get_health()["server"])
