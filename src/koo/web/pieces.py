"""A long response in pieces, encoded, compressed and sent one by one, so that the loop can do other work in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from koo.web.reading import SLICE


class Pieces(Response):
    """The pieces as one body."""

    def __init__(self, pieces: list[bytes], media_type: str) -> None:
        length = str(sum(map(len, pieces)))
        super().__init__(None, headers={"Content-Length": length}, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for number, piece in enumerate(self._pieces, 1):
            more = number < len(self._pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            await asyncio.sleep(0)


async def pieces_of(view: Mapping[str, Any], long: str) -> Pieces:
    """A view as JSON whose list `long` may be long."""
    rows, pieces = view[long], [b'{"%s":[' % long.encode()]
    for begin in range(0, len(rows), SLICE):
        text = _encoded(rows[begin : begin + SLICE])[1:-1]
        pieces.append((b"," if begin else b"") + text)
        await asyncio.sleep(0)
    rest = _encoded({name: value for name, value in view.items() if name != long})
    pieces.append(b"]," + rest[1:])
    return Pieces(pieces, "application/json")


def _encoded(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str).encode()
