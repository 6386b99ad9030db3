"""Request ids: the client's own if it is safe to log, otherwise a new one.

Under `koo serve` the edge assigns one to every request. Mounted in an application, koo's routes assign one to their
own requests only; the application's routes and ids are left alone.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import Scope, Send

from koo.logs.lines import request_id

ID = "koo.request_id"
"""The request id's key in the scope."""
HEADER = "X-Request-ID"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def make_id(request: Request) -> str:
    """Return the client's id, or a new one."""
    given = request.headers.get(HEADER, "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


def request_id_of(request: Request) -> str | None:
    """Return the id assigned to this request when it arrived."""
    found: str | None = request.scope.get(ID)
    return found


@contextmanager
def identified(scope: Scope, send: Send) -> Iterator[Send]:
    """Within the block the request has an id, in log lines and in the response. An existing id is kept."""
    if ID in scope:
        yield send
        return
    made = scope[ID] = make_id(Request(scope))
    asked_by = request_id.set(made)
    try:
        yield _naming(send, made)
    finally:
        request_id.reset(asked_by)


def _naming(send: Send, made: str) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[HEADER] = made
        await send(message)

    return sending
