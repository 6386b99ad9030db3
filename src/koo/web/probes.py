"""Routes for an orchestrator. `/livez`: is the process alive? `/readyz`: may it receive traffic?

Both respond from memory. A probe that waits for a hanging database runs into its own timeout, and a liveness probe
that checks a dependency makes the orchestrator restart a healthy process. An open breaker of an AI service does not
count either: other processes would call the same provider.
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
        """200 as long as the process can respond at all."""
        readiness.warn_of_no_start()
        return JsonView(answers.Alive(status="alive"))

    async def readyz() -> Response:
        """503 until the database was first checked, while it refuses calls, is drained or does not respond, and during
        shutdown.

        Responds from memory.
        """
        readiness.asked()
        return JsonView(answers.Ready(status="ready"))

    router.get("/livez", summary="Is the process alive?", **described(answers.Alive))(livez)
    router.get("/readyz", summary="May it receive traffic?", **described(answers.Ready, 503))(readyz)
    return router
