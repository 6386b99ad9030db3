"""Routes for incidents: the list, a single one, and the same as Markdown."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from koo.incidents import LIST_MAX
from koo.monitoring import incident_shapes
from koo.monitoring.incident_markdown import markdown_of
from koo.platform import Platform
from koo.web.examples import RECORDED
from koo.web.routing import JsonView, described, problems


class Markdown(Response):
    """UTF-8 text, as Markdown."""

    media_type = "text/markdown"


def _example() -> str:
    recorded: Any = RECORDED.get("OneIncident")
    return markdown_of(recorded) if recorded else ""


def add_incidents(router: APIRouter, platform: Platform) -> None:
    """Add the routes below `/monitoring/incidents`."""

    @router.get("/incidents", summary="Why breakers opened", **described(incident_shapes.Incidents, 422))
    async def get_incidents(
        component: Annotated[
            str | None, Query(max_length=200, description="database, ai:SERVICE; default: all")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 50,
    ) -> Response:
        """Each time a breaker opened in the last 30 days, in all processes, newest first.

        Always 200. While the state store is unreachable, lists this process's incidents, and `trouble` reports the
        reason.
        """
        return JsonView(await platform.incidents.list(component=component, limit=limit))

    # This is declared before the next route, whose parameter would also match the ".md".
    @router.get(
        "/incidents/{incident}.md",
        summary="One incident as Markdown",
        response_class=Response,
        responses={200: {"content": {Markdown.media_type: {"example": _example()}}}, **problems(404)},
    )
    async def get_incident_markdown(incident: str) -> Response:
        """Complete and plain, to be pasted into a report."""
        text = await platform.incidents.markdown(incident)
        return Markdown(text)

    @router.get(
        "/incidents/{incident}",
        summary="One complete incident",
        **described(incident_shapes.OneIncident, 404),
    )
    async def get_incident(incident: str) -> Response:
        """Why it opened, what preceded it, what it did, who did what, and how it ended."""
        return JsonView(await platform.incidents.find(incident))
