"""Routes for alert notices: what happened to each, and a test of the channels."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Body
from starlette.responses import Response

from koo.monitoring import notice_shapes
from koo.platform import Platform
from koo.web import bodies
from koo.web.routing import JsonView, described

log = logging.getLogger("koo.web")


def add_notices(router: APIRouter, platform: Platform) -> None:
    """Add the routes below `/monitoring/alerts`."""

    @router.get(
        "/alerts/deliveries",
        summary="Why alerts were sent, or not",
        **described(notice_shapes.AlertDeliveries),
    )
    async def get_deliveries() -> Response:
        """What happened to each notice of the last day on each channel, and the state of the channels.

        Always 200. While the state store is unreachable, `store` says so, and only this process's own notices are
        listed.
        """
        return JsonView(await platform.alert_deliveries())

    @router.post("/alerts/test", summary="Send a test", **described(notice_shapes.AlertTests, 404, 413, 422))
    async def test_channels(body: Annotated[bodies.ChannelBody | None, Body()] = None) -> Response:
        """Sends a test now, on one channel or on all, and waits up to 15 seconds for the result.

        Always 200 if there is a channel; the response contains its result. A channel that accepts the test counts as
        working again, so notices that wait for it are sent immediately.
        """
        body = body or bodies.ChannelBody()
        answer = await platform.test_alerts(body.channel)
        names = ", ".join(result["channel"] for result in answer["results"])
        log.info("a test alert was sent by %s %s", names, body.signature)
        return JsonView(answer)
