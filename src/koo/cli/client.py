"""A client of the running server, for the commands that show or change its state."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from koo.cli.terminal import CommandFailed, Exit, progress
from koo.errors import Kind
from koo.hidden import Secret
from koo.http.client import HttpClient, HttpResponse
from koo.http.connector import TransportError
from koo.http.plain_http import warn_of_plain_http
from koo.http.proxies import proxy_of
from koo.options import PlatformOptions
from koo.settings import Settings

TIMEOUT_S = 15.0
PREFIX = "/api/v1"
T = TypeVar("T")


class ServerClient:
    """One server at KOO_URL, with KOO_TOKEN, or KOO_READ_TOKEN, which is enough for reading."""

    def __init__(self, options: PlatformOptions) -> None:
        self.url = options.url.rstrip("/")
        proxy = proxy_of(self.url, options.network)
        self._http = HttpClient(connect_timeout_s=3.0, network=options.network, proxy=proxy)
        token = options.token or options.read_token
        self._headers = {"Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = Secret(f"Bearer {token}")
            warn_of_plain_http("the token", self.url, proxy)

    async def get(self, path: str, shape: type[T]) -> T:
        """Return the JSON response at that path below `/api/v1`; `shape` is its `TypedDict`. Raises `CommandFailed`."""
        return await self._ask("GET", path, shape)

    async def post(
        self, path: str, shape: type[T], body: object = None, *, patience_s: float = TIMEOUT_S
    ) -> T:
        """Like `get`, for an act. `body` is sent as JSON. Waits up to `patience_s` seconds for the response."""
        sent = None if body is None else json.dumps(body).encode()
        return await self._ask("POST", path, shape, sent, patience_s)

    async def delete(self, path: str, shape: type[T], body: object) -> T:
        """Like `post`, with DELETE."""
        return await self._ask("DELETE", path, shape, json.dumps(body).encode())

    async def events(self, path: str, *, first_s: float, silence_s: float) -> AsyncIterator[tuple[str, Any]]:
        """Yield the events of a stream at that path until it ends, as name and document.

        Raises `CommandFailed` after an error, or if nothing arrives for `first_s` at the beginning, `silence_s` later.
        """
        headers = {**self._headers, "Accept": "text/event-stream"}
        try:
            # This deadline covers only the response's head. The stream itself never ends, so it has a deadline for
            # each read.
            async with asyncio.timeout(first_s):
                stream = await self._http.stream("GET", self.url + PREFIX + path, headers=headers)
        except TimeoutError:
            raise self._away(f"no response within {first_s:g} s") from None
        except TransportError as error:
            raise self._away(error.reason) from None
        wait_s = first_s
        try:
            if stream.status != 200:
                raise CommandFailed(f"{self.url} responded with {stream.status}", kind="no_stream")
            # The server sends a sample every few seconds. Silence means that the connection is dead without a reset (a
            # suspended server, a lost route), which TCP reports after minutes at the earliest.
            while events := await _within(wait_s, stream.next_events()):
                wait_s = silence_s
                for event in events:
                    yield event.event, json.loads(event.data)
        except TimeoutError:
            raise self._away(f"silent for {wait_s:g} s") from None
        except (TransportError, ValueError) as error:
            raise self._away(str(error)) from None
        finally:
            await stream.aclose()

    async def close(self) -> None:
        await self._http.close()

    async def _ask(
        self,
        method: str,
        path: str,
        shape: type[T],
        body: bytes | None = None,
        patience_s: float = TIMEOUT_S,
    ) -> T:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        try:
            async with asyncio.timeout(patience_s):
                answer = await self._http.request(
                    method, self.url + PREFIX + path, headers=headers, body=body
                )
        except TimeoutError:
            raise self._away(f"no response within {patience_s:g} s") from None
        except TransportError as error:
            # If the connection is refused and no proxy is involved, the usual cause is that no server is running. The
            # message already says so, and the system's error would only distract.
            is_plain = error.stage == "connect" and self._http.proxy is None
            raise self._away("" if is_plain else error.reason) from None
        document = _read(answer)
        if answer.status == 200 and document is not None and _looks_like(document, shape):
            return cast(T, document)
        kind = str((document or {}).get("kind", "no_koo_server"))
        mistaken = kind in (Kind.UNKNOWN_SERVICE, Kind.INVALID_REQUEST, Kind.NOT_FOUND)
        code = Exit.USAGE if mistaken else Exit.FAILED
        raise CommandFailed(self._refusal(answer.status, document, path), code, kind)

    def _away(self, reason: str) -> CommandFailed:
        why = f" ({reason})" if reason else ""
        return CommandFailed(
            f"no koo server answers at {self.url}{why}; start one with `koo serve`, or set KOO_URL",
            Exit.UNHEALTHY,
            "no_server",
        )

    def _refusal(self, status: int, document: dict[str, Any] | None, path: str) -> str:
        if document is None or "detail" not in document:
            return f"{self.url} responded with {status}, but not as a koo server does; check KOO_URL"
        if status == 401:
            return f"the server at {self.url} requires a token; set KOO_TOKEN to the one it was started with"
        if (
            status == 404 and document["detail"] == "Not Found"
        ):  # what FastAPI says of a path that it does not have
            return f"{self.url} has no {PREFIX}{path.partition('?')[0]}; check KOO_URL, which ends before {PREFIX}"
        return str(document["detail"])


def settings_for(url: str | None) -> Settings:
    """The settings, with the server that `--url` names."""
    return Settings() if url is None else Settings(koo_url=url)


@asynccontextmanager
async def connect(url: str | None) -> AsyncIterator[ServerClient]:
    """Yield a client for the server at `url`, or for that of the settings if it is None."""
    client = ServerClient(settings_for(url).platform_options())
    try:
        yield client
    finally:
        await client.close()


async def ask(url: str | None, path: str, shape: type[T]) -> tuple[str, T]:
    """Return the server's URL and its response at that path."""
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            return client.url, await client.get(path, shape)


async def act(url: str | None, path: str, shape: type[T], body: object) -> T:
    """Send `body` to that path and return the response."""
    async with connect(url) as client:
        with progress(f"querying {client.url}"):
            return await client.post(path, shape, body)


async def _within(seconds: float, work: Awaitable[T]) -> T:
    async with asyncio.timeout(seconds):
        return await work


def who() -> str:
    """The user and the machine, for the audit log."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run under a user id that has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:100]


def _looks_like(document: dict[str, Any], shape: type) -> bool:
    """Return whether most keys are present. An older server lacks the newest ones; anything else has none of them."""
    keys = shape.__annotations__.keys()
    return 2 * len(keys & document.keys()) > len(keys)


def _read(answer: HttpResponse) -> dict[str, Any] | None:
    try:
        document = json.loads(answer.body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
