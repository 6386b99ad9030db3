"""Routes under /ai: queries, the services' state and resets, and spending."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from koo.bookings import PAGE_MAX
from koo.monitoring import shapes, spend_shapes
from koo.monitoring.guards import now_iso
from koo.monitoring.snapshot import unknown_service
from koo.options import LEDGER_DAYS_MAX
from koo.platform import Platform
from koo.web import answers, bodies, views
from koo.web.door import door_of
from koo.web.pieces import pieces_of
from koo.web.reading import in_slices
from koo.web.routing import JsonView, described, make_router, while_connected

log = logging.getLogger("koo.web")


def ai_router(platform: Platform, *, protect: bool = True, hosts: Iterable[str] = ()) -> APIRouter:
    """The routes below `/ai` for one platform. `protect` and `hosts` are those of `monitoring_router`."""
    router = make_router("/ai", "ai", door_of(platform, protect, hosts))
    _add_queries(router, platform)
    _add_health(router, platform)
    _add_resets(router, platform)
    _add_spending(router, platform)
    _add_requests(router, platform)
    return router


def _add_queries(router: APIRouter, platform: Platform) -> None:
    @router.post(
        "/query",
        summary="Query an AI service",
        **described(answers.QueryAnswer, 404, 413, 422, 429, 502, 503, 504),
    )
    async def query(body: bodies.QueryBody, request: Request) -> Response:
        """Sends one query, guarded: retries, limits, budget, and other services if `fallback` names some.

        Closing the connection cancels the query.
        """
        answer = await while_connected(request, platform.query(views.query_of(body)))
        return JsonView(views.answer_view(answer))

    @router.post(
        "/batch-query", summary="Send several queries at once", **described(answers.BatchAnswer, 413, 422)
    )
    async def query_batch(body: bodies.BatchBody, request: Request) -> Response:
        """Each query runs as soon as a slot is free; results keep the order. Always 200: each result shows whether it
        succeeded.
        """
        queries = await in_slices(views.query_of, body.queries)
        outcomes = await while_connected(request, platform.query_many(queries))
        return await pieces_of(dict(await views.batch_view(queries, outcomes)), "results")


def _add_health(router: APIRouter, platform: Platform) -> None:
    @router.get("/services/health", summary="State of all AI services", **described(shapes.ServicesHealth))
    async def get_services_health() -> Response:
        """Shows what is already known; no service is called."""
        return JsonView(platform.services_health())

    @router.get(
        "/services/{service}/health",
        summary="State of one AI service",
        **described(shapes.ServiceHealth, 404),
    )
    async def get_service_health(service: str) -> Response:
        """Shows what is already known; the service is not called."""
        return JsonView(platform.service_health(service))

    @router.post(
        "/services/health-check",
        summary="Check AI services now",
        **described(answers.ServiceChecks, 404, name="ServiceChecks"),
    )
    async def check_services(service: str | None = None) -> Response:
        """Checks that services respond and accept the key; never billed. Without `service`, checks all configured
        ones.
        """
        return JsonView(await platform.check_services(service))


def _add_spending(router: APIRouter, platform: Platform) -> None:
    @router.get("/spend", summary="What was spent", **described(spend_shapes.Spend, 422, 503))
    async def get_spend(
        days: Annotated[
            int | None, Query(ge=1, le=LEDGER_DAYS_MAX, description="the last N days, including today")
        ] = None,
        first_day: Annotated[
            date | None, Query(alias="from", description="first UTC day: 2026-11-01")
        ] = None,
        last_day: Annotated[date | None, Query(alias="to", description="last UTC day, inclusive")] = None,
        month: Annotated[
            str | None,
            Query(
                json_schema_extra={"pattern": r"^\d{4}-(0[1-9]|1[0-2])$"},
                description="2026-11; default: the current month",
            ),
        ] = None,
        by: Annotated[
            list[Literal["day", "service", "model", "tag"]] | None,
            Query(description="what to group by; may be repeated"),
        ] = None,
    ) -> Response:
        """Totals of what all processes spent, with estimated amounts marked, and what dead processes left unsettled."""
        spend = await platform.spend(
            days=days, first_day=first_day, last_day=last_day, month=month, by=by or ("service",)
        )
        return JsonView(spend)

    @router.post(
        "/spend/write-off",
        summary="Free money held by dead processes",
        **described(spend_shapes.WriteOffs, 404, 413, 422, 503),
    )
    async def write_off(body: bodies.WriteOffBody) -> Response:
        """Frees money that stays booked because a process that no longer reports may have spent it.

        If it was spent, the bill may exceed the budget by that amount. The act is logged with its author.
        """
        return JsonView(await platform.write_off(body.process, by=body.by, reason=body.reason))


def _add_requests(router: APIRouter, platform: Platform) -> None:
    @router.get(
        "/requests",
        summary="The last calls that cost something",
        **described(spend_shapes.BookedCalls, 422, 503),
    )
    async def get_requests(
        service: Annotated[str | None, Query(max_length=100, description="only of this service")] = None,
        model: Annotated[str | None, Query(max_length=200, description="only of this model")] = None,
        tag: Annotated[str | None, Query(max_length=200, description="only with this tag")] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="requests on a page")] = 50,
        cursor: Annotated[
            str | None,
            Query(
                max_length=100,
                json_schema_extra={"pattern": "^[0-9]{1,18}-.+$"},
                description="`next_cursor` of the previous page",
            ),
        ] = None,
    ) -> Response:
        """The ledger's entries of all processes, newest first. Never contains a prompt or a response."""
        page = await platform.history.requests(
            service=service, model=model, tag=tag, limit=limit, cursor=cursor
        )
        return JsonView(page)


def _add_resets(router: APIRouter, platform: Platform) -> None:
    @router.post(
        "/services/{service}/reset-errors",
        summary="Reset an AI service's errors",
        **described(answers.ServiceReset, 404, 413, 422),
    )
    async def reset_service(service: str, body: Annotated[bodies.ActBody | None, Body()] = None) -> Response:
        """Clears phases, streaks, cooldowns and key blocks of all its models; never money, limits used or counts."""
        await platform.open()
        said = body or bodies.ActBody()
        if not platform.reset_service(service, **said.who):
            raise unknown_service(service, list(platform.services))
        log.warning("the AI service %s was reset %s", service, said.signature)
        message = f"{service} was reset{platform.parts.sharing.obstacle}"
        return JsonView(answers.ServiceReset(message=message, service=service, timestamp=now_iso()))

    @router.post(
        "/services/reset-all-errors",
        summary="Reset the errors of all AI services",
        **described(answers.ServicesReset, 413, 422),
    )
    async def reset_services(body: Annotated[bodies.ActBody | None, Body()] = None) -> Response:
        """Resets each of them as `reset-errors` does."""
        await platform.open()
        said = body or bodies.ActBody()
        results = platform.reset_services(**said.who)
        log.warning("all AI services were reset %s", said.signature)
        count = sum(results.values())
        message = "1 service was reset" if count == 1 else f"{count} services were reset"
        message += platform.parts.sharing.obstacle
        return JsonView(answers.ServicesReset(message=message, results=results, timestamp=now_iso()))
