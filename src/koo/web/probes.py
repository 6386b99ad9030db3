"""Routes for an orchestrator. `/livez`: does the process live? `/readyz`: may it take traffic?

Both answer from memory: a probe that waits for a sick database is killed by its own timeout, and a liveness probe that
asks a dependency restarts a process that nothing is wrong with. Nor does an open breaker of an AI service count here:
other processes would ask the same provider.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from koo.errors import DatabaseUnavailable, Kind, ServiceRefused
from koo.platform import Platform
from koo.policies.reported import DatabaseState
from koo.web import answers
from koo.web.routing import JsonView, described, make_router


class Readiness:
    """Whether traffic is welcome. `closing` is set when the server begins to end."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.closing = False

    def check(self) -> None:
        """Raises what stands against it; reads what is known, and asks nobody."""
        if self.closing:
            raise ServiceRefused("koo", "this process is ending", kind=Kind.DRAINING)
        database = self._platform.database
        database.gate.refuse_if_draining()
        if database.circuit_breaker_state is DatabaseState.CIRCUIT_OPEN:
            raise DatabaseUnavailable("database", "its circuit breaker is open")
        # A server that is full refuses the probe's connection, and goes on answering those who have one.
        if database.guard.evidence().checks_failed:
            raise DatabaseUnavailable("database", "it does not answer", kind=Kind.CONNECTION)


def probes_router(readiness: Readiness) -> APIRouter:
    """`/livez` and `/readyz`, for GET and HEAD."""
    router = make_router("", "probes")

    async def livez() -> Response:
        """200 as long as the process can answer at all."""
        return JsonView(answers.Alive(status="alive"))

    async def readyz() -> Response:
        """503 when the database refuses, is drained or does not answer, or the process is ending; from memory."""
        readiness.check()
        return JsonView(answers.Ready(status="ready"))

    router.get("/livez", summary="Does the process live?", **described(answers.Alive))(livez)
    router.get("/readyz", summary="May it take traffic?", **described(answers.Ready, 503))(readyz)
    return router
