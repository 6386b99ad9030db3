"""The route of the live stream."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from koo.platform import Platform
from koo.web.as_json import as_json
from koo.web.door import Door
from koo.web.links import base_of
from koo.web.live import COMMENT, Listener, Live, live_of
from koo.web.live_parts import event_of
from koo.web.live_source import BASE
from koo.web.routing import HEAD, problems
from koo.web.session_routes import session_view

# Proxies close connections that are silent for 30 to 60 s. A comment is sent before that.
COMMENT_S = 15.0
CHECK_S = 60.0
"""Seconds between two checks that the listener may still read."""
# nginx and others buffer responses by default: without X-Accel-Buffering no event would arrive before a few kilobytes
# had accumulated.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
TYPE = "text/event-stream"
MARK = '{"at":"2026-11-29T03:00:00+00:00","kind":"act","component":"database","text":"paused"}'
EXAMPLE = f"event: mark\ndata: {MARK}\n\n"


def add_live(router: APIRouter, platform: Platform, door: Door) -> None:
    """Add the route `/monitoring/live`."""
    answers = {200: {"content": {TYPE: {"schema": {"type": "string"}, "example": EXAMPLE}}}, **problems(503)}

    @router.get(
        "/live", summary="The state of everything, as it changes", response_class=Response, responses=answers
    )
    async def get_live(request: Request) -> Response:
        """Server-sent events: the whole state first, then each part that has changed, once a second.

        503 if 100 streams are open or the server is shutting down. docs/live.md describes the events.
        """
        live = live_of(platform)
        if HEAD in request.scope:
            return Response(headers=HEADERS, media_type=TYPE)
        listener = Listener()
        head = {
            "application": getattr(request.app.state, "koo_application", ""),
            "session": session_view(door, request.scope),
        }
        await live.join(listener, head)
        return Stream(live, listener, door, base_of(request))


class Stream(Response):
    """One stream, until its reader disconnects or the server ends. `base`: the path prefix of koo's routes."""

    media_type = TYPE

    def __init__(self, live: Live, listener: Listener, door: Door, base: str) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["Content-Length"]
        self._live, self._listener, self._door = live, listener, door
        self._base = as_json(base)[1:-1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A disconnect is only visible through `receive`. Without this task, a stream with nothing to send would notice
        # at its next comment that its reader is gone, and a closed page would count against the limit until then.
        left = asyncio.create_task(_until_left(receive))
        left.add_done_callback(lambda _: self._listener.wake())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._tell(scope, send, left)
        finally:
            self._live.leave(self._listener)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)

    async def _tell(self, scope: Scope, send: Send, left: asyncio.Task[None]) -> None:
        loop, listener = asyncio.get_running_loop(), self._listener
        check_at = loop.time() + CHECK_S
        while not left.done():
            news = await listener.take(COMMENT_S)
            if loop.time() >= check_at:
                check_at = loop.time() + CHECK_S
                if not self._door.still_lets(scope):
                    listener.end("session")
                    news = b""  # no longer authorized: drop the events collected since the last check
            if listener.reason:
                news += event_of("end", as_json({"reason": listener.reason}))
            # This `send` is the only buffer behind the listener. It returns only when the transport has room, so while
            # a reader is slow its events wait in the listener, where a newer event replaces an older one of the same
            # key.
            body = news.replace(BASE.encode(), self._base) or COMMENT
            await send({"type": "http.response.body", "body": body, "more_body": not listener.reason})
            if listener.reason:
                return


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
