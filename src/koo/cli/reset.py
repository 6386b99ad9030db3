"""`koo reset`: let a service or the database start afresh, in the running server and all that share its state."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from koo.cli.client import connect
from koo.cli.terminal import Exit, progress, put, put_json, run_async

DATABASE, ALL = "database", "all"


def reset(target: str, *, as_json: bool) -> Exit:
    """`target`: a service, "database", or "all" for both."""
    answers = run_async(_reset(target))
    if as_json:
        put_json(answers[0] if len(answers) == 1 else {"results": answers})
    else:
        for answer in answers:
            put(str(answer["message"]))
    return Exit.OK


async def _reset(target: str) -> list[dict[str, Any]]:
    paths = {
        DATABASE: ["/monitoring/database/reset-circuit-breaker"],
        ALL: ["/monitoring/database/reset-circuit-breaker", "/ai/services/reset-all-errors"],
    }
    async with connect() as client:
        with progress(f"asking {client.url}"):
            one = [f"/ai/services/{quote(target, safe='')}/reset-errors"]
            return [await client.post(path) for path in paths.get(target, one)]
