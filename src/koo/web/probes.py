"""Routes for an orchestrator. `/livez`: does the process live? `/readyz`: may it take traffic?

Both answer from memory: a probe that waits for a sick database is killed by its own timeout, and a liveness probe that
asks a dependency restarts a process that nothing is wrong with. Nor does an open breaker of an AI service count here:
other processes would ask the same provider.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from koo.web import answers
from koo.web.door import Door
from koo.web.readiness import Readiness
from koo.web.routing import JsonView, described, make_router


def probes_router(readiness: Readiness, door: Door) -> APIRouter:
    """`/livez` and `/readyz`, for GET and HEAD."""
    router = make_router("", "probes", door, "probe")

    async def livez() -> Response:
        """200 as long as the process can answer at all."""
        readiness.warn_of_no_start()
        return JsonView(answers.Alive(status="alive"))

    async def readyz() -> Response:
        """503 until the database has been looked at, when it refuses, is drained or does not answer, and at the end.

        From memory.
        """
        readiness.asked()
        return JsonView(answers.Ready(status="ready"))

    router.get("/livez", summary="Does the process live?", **described(answers.Alive))(livez)
    router.get("/readyz", summary="May it take traffic?", **described(answers.Ready, 503))(readyz)
    return router
