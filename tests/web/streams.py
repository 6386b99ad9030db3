"""The live stream as a test reads it: over a real socket, event by event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.web.serving import Client

LIVE = "/api/v1/monitoring/live"
WAIT_S = 20.0


class Heard:
    """An open stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.status, self.headers = answer.status, answer.headers
        self._answer = answer

    async def next(self) -> tuple[str, Any]:
        """Return the next event's name and data. A comment has no name; nor has the end of the stream."""
        name, data = "", None
        async with asyncio.timeout(WAIT_S):
            while line := (await self._answer.content.readline()).decode():
                if line.startswith("event: "):
                    name = line[7:-1]
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                elif line == "\n":
                    return name, data
        return "", None

    async def until(self, name: str, key: str = "") -> Any:
        """Return the data of the next event with this name; for a part, of the one with this key."""
        return (await self.until_all(lambda event, data: event == name and key in ("", data.get("key"))))[-1][
            1
        ]

    async def until_all(self, *wanted: Callable[[str, Any], bool]) -> list[tuple[str, Any]]:
        """Read events until each of these conditions was true for one of them."""
        missing, heard = list(wanted), list[tuple[str, Any]]()
        async with asyncio.timeout(WAIT_S):
            while missing:
                event = await self.next()
                assert event != ("", None) or not self._answer.content.at_eof(), f"the stream ended: {heard}"
                missing = [one for one in missing if not (event[0] and one(*event))]
                heard.append(event)
        return heard


@asynccontextmanager
async def listening(client: Client, path: str = LIVE, **more: Any) -> AsyncIterator[Heard]:
    """A stream of this server, on its own connection."""
    async with (
        aiohttp.ClientSession(read_bufsize=2**22) as session,
        session.get(client.url + path, **more) as answer,
    ):
        yield Heard(answer)
