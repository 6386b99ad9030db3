"""Routes that act on the database in this process: pause, resume, drain, rotate."""

from __future__ import annotations

import logging
import os
from typing import Annotated

from fastapi import APIRouter, Body
from starlette.responses import Response

from koo.logs.event_lines import scopes_left
from koo.monitoring.guards import now_iso
from koo.monitoring.shapes import DatabaseGate
from koo.platform import Platform
from koo.web import answers, bodies
from koo.web.routing import JsonView, described

log = logging.getLogger("koo.web")


def add_database_acts(router: APIRouter, platform: Platform) -> None:
    """Add the routes below `/monitoring/database`."""

    def done(act: str, so: str, gate: DatabaseGate, body: bodies.ActBody) -> Response:
        log.warning("the database was %s %s", act, body.signature)
        message = f"the database is {act}: {so}{_elsewhere(platform.parts.fleet.others)}"
        return JsonView(answers.DatabaseAct(message=message, database=gate, timestamp=now_iso()))

    @router.post("/database/pause", summary="New scopes wait", **described(answers.DatabaseAct, 413, 422))
    async def pause(body: Annotated[bodies.ActBody | None, Body()] = None) -> Response:
        """New scopes in this process wait, each until its own deadline. Open ones continue."""
        await platform.open()
        said = body or bodies.ActBody()
        gate = platform.pause_database(**said.who)
        return done("paused", "new scopes wait until it is resumed", gate, said)

    @router.post("/database/resume", summary="New scopes begin", **described(answers.DatabaseAct, 413, 422))
    async def resume(body: Annotated[bodies.ActBody | None, Body()] = None) -> Response:
        """Ends a pause or a drain."""
        await platform.open()
        said = body or bodies.ActBody()
        return done("resumed", "new scopes begin", platform.resume_database(**said.who), said)

    @router.post("/database/drain", summary="No new scopes", **described(answers.DatabaseAct, 413, 422))
    async def drain(body: Annotated[bodies.WaitBody | None, Body()] = None) -> Response:
        """New scopes in this process are refused. Waits for open ones and reports how many remain open."""
        body = body or bodies.WaitBody()
        gate = await platform.drain_database(body.within_s, **body.who)
        left = scopes_left(gate["running"])
        return done("drained", left, gate, body)

    @router.post(
        "/database/rotate",
        summary="New connections",
        **described(answers.DatabaseAct, 404, 413, 422, 503, 504),
    )
    async def rotate(body: Annotated[bodies.WaitBody | None, Body()] = None) -> Response:
        """Reads `DATABASE_URL` again and replaces all connections; those in use are replaced when their scopes end.

        503 or 504 if no connection to it can be opened; then nothing has changed. 404 for an SQLite file.
        """
        body = body or bodies.WaitBody()
        gate = await platform.rotate_database(body.within_s)
        return done("rotated", "new connections use the current DATABASE_URL", gate, body)


def _elsewhere(others: int) -> str:
    """The end of a message about an act that other processes on the state store do not follow."""
    if not others:
        return ""
    processes = "1 other process is" if others == 1 else f"{others} other processes are"
    return f"; this is process {os.getpid()}, and {processes} unchanged"
