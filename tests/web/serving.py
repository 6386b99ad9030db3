"""A real server on a real socket, in the test's own event loop, and a client that hides nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
import uvicorn.server
from starlette.applications import Starlette

from koo.options import (
    BreakerOptions,
    DatabaseOptions,
    LimitOptions,
    PlatformOptions,
    RetryOptions,
    ServiceOptions,
)
from koo.platform import Platform
from koo.testing.providers import FakeAnthropic

KEY = "test-key"


@dataclass(frozen=True)
class Reply:
    """A response. `body` is its JSON, if it is JSON."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def text(self) -> str:
        return self.content.decode()


class Client:
    """A client of one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, **more: Any) -> Reply:
        return await self.ask("GET", path, **more)

    async def post(self, path: str, **more: Any) -> Reply:
        return await self.ask("POST", path, **more)

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        async with self._session.request(method, self.url + path, allow_redirects=False, **more) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def begin(self, method: str, path: str, **more: Any) -> Reply:
        """Return what arrives immediately, and ignore the rest."""
        async with self._session.request(method, self.url + path, **more) as answer:
            return Reply(answer.status, answer.headers, await answer.content.readany())


class _Quick:
    """asyncio as uvicorn's server sees it, but its checks for shutdown, ten times a second, run immediately."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(min(delay_s, 0.005))


# Each test that serves also stops its server, which would take two or three of these checks.
setattr(uvicorn.server, "asyncio", _Quick())  # noqa: B010


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Any:
        yield  # signals belong to pytest


@asynccontextmanager
async def served(app: Starlette, *, grace_s: float = 5) -> AsyncIterator[Client]:
    """Serve `app` on a free port. At the end, running requests may continue for `grace_s`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    config = uvicorn.Config(app, ws="websockets-sansio", lifespan="on", log_config=None, access_log=False)
    config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]
    server = _Server(config)
    running = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            assert not running.done(), running.result()
            await asyncio.sleep(0.005)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # A new connection for each request: uvicorn closes one whose request failed, and a POST is never sent twice.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Client(url, session)
    finally:
        server.should_exit = True
        await running


def claude(fake: FakeAnthropic, **more: Any) -> ServiceOptions:
    """A service that uses the fake, without retries."""
    given: dict[str, Any] = {
        "model": "claude-sonnet-5-5",
        "base_url": fake.base_url,
        "api_key": KEY,
        "input_price": Decimal(2),
        "output_price": Decimal(10),
        "max_tokens": 100,
        "retry": RetryOptions(attempts_max=1),
        "breaker": BreakerOptions(failure_threshold=3),
        "limits": LimitOptions(per_minute=60, per_hour=1000, per_day=10_000),
    }
    return ServiceOptions(name="claude", kind="anthropic", **{**given, **more})


def options(folder: Path, *services: ServiceOptions, **more: Any) -> PlatformOptions:
    """Options of a platform with these services and its files in `folder`."""
    given: dict[str, Any] = {
        "home": folder,
        "state_url": f"sqlite:///{folder}/state.db",
        "database": DatabaseOptions(url=f"sqlite:///{folder}/app.db"),
    }
    return PlatformOptions(services=services, **{**given, **more})


def platform(folder: Path, *services: ServiceOptions, **more: Any) -> Platform:
    """A platform with these `options`."""
    return Platform(options(folder, *services, **more))
