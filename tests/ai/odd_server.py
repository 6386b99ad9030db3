"""A server that answers every request with the same bytes, and two ways to call it: through koo, or with an SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

from koo.ai.assembly import HOSTED
from koo.ai.gateway import Gateway
from koo.ai.types import Query
from koo.errors import ExternalServiceError
from koo.http.client import HttpClient
from koo.options import LimitOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from tests.ai.oddities import Format, Oddity

MODELS = {
    "anthropic": "claude-sonnet-5-5", "openai": "gpt-6.1-terra", "openai_compatible": "m", "gemini": "gemini-3.5-flash",
    "perplexity": "sonar",
}  # fmt: skip


class OddServer:
    """Answers POSTs with an oddity's bytes; `requests` counts them."""

    def __init__(self, oddity: Oddity) -> None:
        self.oddity = oddity
        self.requests = 0
        self.base_url = ""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> OddServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, _, length = head.partition(b"content-length:")
            await reader.readexactly(int(length.split(b"\r\n")[0] or 0))
            self.requests += 1
            writer.write(self._answer())
            await writer.drain()
            if self.oddity.stays_open:
                await reader.read()  # until the client leaves
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._open.discard(writer)

    def _answer(self) -> bytes:
        oddity = self.oddity
        headers = {"content-type": oddity.content_type, "connection": "close", **oddity.headers}
        if not oddity.streamed:
            headers["content-length"] = str(len(oddity.body))
        lines = [f"HTTP/1.1 {oddity.status} Odd", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + oddity.body


@asynccontextmanager
async def odd_gateway(kind: Format, base_url: str, http: HttpClient | None = None) -> AsyncIterator[Gateway]:
    """A gateway whose service `odd` is at this address, with two retries allowed, or behind this client."""
    options = ServiceOptions(
        name="odd", kind=kind, model=MODELS[kind], api_key="test-key", declared=True, base_url=base_url,
        input_price=Decimal(1), output_price=Decimal(1), retry=RetryOptions(base_s=0.001, cap_s=0.01, attempts_max=3),
        limits=LimitOptions(), daily_budget_usd=Decimal(10**6),
    )  # fmt: skip
    with TemporaryDirectory() as home:
        async with Platform(PlatformOptions(home=Path(home), services=(options,))) as platform:
            await platform.parts.load_prices()
            gateway = platform.parts.gateway
            if http is not None:
                provider = HOSTED[kind]("odd", http, base_url=base_url, api_key="test-key")
                gateway.services["odd"] = replace(gateway.services["odd"], provider=provider)  # type: ignore[index]
            yield gateway


async def ask_koo(oddity: Oddity) -> tuple[str, ExternalServiceError | None, int]:
    """The text that koo's caller gets, the error if there is one, and how many requests the server saw."""
    async with (
        OddServer(oddity) as server,
        odd_gateway(oddity.format, server.base_url) as gateway,
    ):
        text, query = "", Query(service="odd", prompt="Capital of France?", max_tokens=100)
        try:
            if oddity.streamed:
                async with gateway.stream(query) as stream:
                    async for piece in stream:
                        text += piece.text
            else:
                text = (await gateway.query(query)).text
        except ExternalServiceError as error:
            return text, error, server.requests
        return text, None, server.requests
