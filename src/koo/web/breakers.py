"""Routes for breakers: the list, and what an operator can do to one. A name may contain a slash: SERVICE/MODEL."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from starlette.responses import Response

from koo.monitoring.guards import now_iso
from koo.platform import Platform
from koo.policies.overrides import SHADOW_BY_HAND, ends_of
from koo.web import answers, bodies
from koo.web.routing import JsonView, described

log = logging.getLogger("koo.web")


def add_breakers(router: APIRouter, platform: Platform) -> None:
    """Add the routes below `/monitoring/breakers`."""

    @router.get("/breakers", summary="All circuit breakers", **described(answers.Breakers))
    async def get_breakers() -> Response:
        """The database's first, then those of each model of each configured service."""
        return JsonView(answers.Breakers(breakers=platform.breakers.statuses(), timestamp=now_iso()))

    @router.post(
        "/breakers/{name:path}/trip",
        summary="Force a breaker open",
        **described(answers.BreakerAct, 404, 413, 422),
    )
    async def trip(name: str, body: bodies.TripBody) -> Response:
        """All processes on the same state store refuse all calls, for `for_s` or until a reset."""
        await platform.open()
        act = platform.breakers.trip(name, by=body.by, reason=body.reason, for_s=body.for_s)
        return _done(platform, name, f"is forced open {ends_of(act)}", body)

    @router.post(
        "/breakers/{name:path}/shadow",
        summary="Put a breaker into shadow mode",
        **described(answers.BreakerAct, 404, 413, 422),
    )
    async def shadow(name: str, body: bodies.ShadowBody) -> Response:
        """It decides and counts as before but refuses nothing. With `off`, its decisions are enforced again."""
        await platform.open()
        act = platform.breakers.shadow(
            name, on=not body.off, by=body.by, reason=body.reason, for_s=body.for_s
        )
        done = (
            "decides again"
            if body.off
            else f"is in shadow {ends_of(act, SHADOW_BY_HAND)}: it counts but refuses nothing"
        )
        return _done(platform, name, done, body)

    @router.post(
        "/breakers/{name:path}/reset",
        summary="Close a breaker",
        **described(answers.BreakerAct, 404, 413, 422),
    )
    async def reset(name: str, body: bodies.ReasonBody) -> Response:
        """Closes it, removes an operator's override and forgets its failures. Counts, limits and money are kept."""
        await platform.open()
        platform.breakers.reset(name, by=body.by, reason=body.reason)
        return _done(platform, name, "is closed", body)


def _done(platform: Platform, name: str, done: str, body: bodies.ReasonBody) -> Response:
    statuses = platform.breakers.statuses(name)
    names = ", ".join(one["name"] for one in statuses)
    log.warning("the breaker of %s %s: by %r, reason: %r", names, done, body.by, body.reason)
    message = f"the breaker of {names} {done}{platform.parts.sharing.obstacle}"
    return JsonView(answers.BreakerAct(message=message, breakers=statuses, timestamp=now_iso()))
