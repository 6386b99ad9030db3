"""Routes of incidents: the list, one whole, and the same as Markdown."""

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
    """Text in UTF-8, as Markdown."""

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
        """Each opening of a breaker of the last 30 days, in all processes, the newest first.

        Always 200: while the state store is away those of this process are listed, and `trouble` says so.
        """
        return JsonView(await platform.incidents.list(component=component, limit=limit))

    # Declared before the route of the whole incident, whose parameter would swallow the ".md".
    @router.get(
        "/incidents/{incident}.md",
        summary="One incident as Markdown",
        response_class=Response,
        responses={200: {"content": {Markdown.media_type: {"example": _example()}}}, **problems(404)},
    )
    async def get_incident_markdown(incident: str) -> Response:
        """Whole and plain, to be pasted into a report."""
        text = await platform.incidents.markdown(incident)
        return Markdown(text)

    @router.get(
        "/incidents/{incident}",
        summary="One incident, whole",
        **described(incident_shapes.OneIncident, 404),
    )
    async def get_incident(incident: str) -> Response:
        """Why it opened, what went before, what it did, who did what, and how it ended."""
        return JsonView(await platform.incidents.find(incident))
