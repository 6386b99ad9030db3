"""`koo reset`: reset a service or the database, in the running server and in all processes that share its state."""

from __future__ import annotations

from typing import TypedDict
from urllib.parse import quote

from koo.cli.client import connect, who
from koo.cli.terminal import CommandFailed, Exit, progress, put, put_json, run_async
from koo.errors import name_of
from koo.monitoring.shapes import Time

DATABASE, ALL = "database", "all"


def reset(target: str, reason: str, url: str | None, *, as_json: bool) -> Exit:
    """`target`: a service, "database", or "all" for both."""
    answers = run_async(_reset(target, reason, url))
    if as_json:
        put_json(answers[0] if len(answers) == 1 else {"results": answers})
    else:
        for answer in answers:
            put(answer["message"])
    return Exit.OK


class Reset(TypedDict):
    """What each of the three resets returns."""

    message: str
    timestamp: Time


async def _reset(target: str, reason: str, url: str | None) -> list[Reset]:
    database, services = "/monitoring/database/reset-circuit-breaker", "/ai/services/reset-all-errors"
    named = {DATABASE: [database], ALL: [database, services]}
    paths = named.get(target) or [f"/ai/services/{_quoted(target)}/reset-errors"]
    body = {"by": who(), "reason": reason}
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            return [await client.post(path, Reset, body) for path in paths]


def _quoted(target: str) -> str:
    """Quote a name as one segment of a path. Raises `CommandFailed` if it would change the path."""
    if not target or "/" in target or not target.strip("."):
        raise CommandFailed(f"{name_of(target)}: no such service", Exit.USAGE, "unknown_service")
    return quote(target.encode(errors="replace"), safe="")
