"""Helpers to talk to a fake provider: through its adapter, or through the whole gateway with an in-memory ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from koo.ai.assembly import HOSTED
from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.errors import ExternalServiceError
from koo.http.client import HttpClient
from koo.options import ServiceKind, ServiceOptions
from koo.testing.clock import StandingClock
from koo.testing.providers import FakeProvider
from tests.ai.worlds import among_fakes

Server = TypeVar("Server", bound=FakeProvider)

KEY = "test-key"
NOON_S = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


@dataclass(frozen=True)
class Talk:
    """A vendor's adapter, with a function that creates its fake."""

    kind: ServiceKind
    fake: type[FakeProvider]
    model: str

    def asking(self, prompt: str = "Capital of France?", **options: Any) -> Request:
        return Request(prompt=prompt, **{"model": self.model, "max_tokens": 100, **options})

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
        """(adapter, fake server)"""
        http = HttpClient()
        async with self.fake(**{"key": KEY, **options}) as server:
            adapter = HOSTED[self.kind]
            try:
                yield (
                    adapter("svc", http, base_url=server.base_url, api_key=KEY, clock=StandingClock(NOON_S)),
                    server,
                )
            finally:
                await http.close()

    def complete(self, step: Any, **options: Any) -> Completion:
        """The completion for one step of the server."""

        async def main() -> Completion:
            async with self.open() as (provider, server):
                server.script(step)
                completion: Completion = await provider.complete(self.asking(**options))
                assert len(server.queries) == 1
                return completion

        return asyncio.run(main())

    def failure(self, step: Any, **options: Any) -> ExternalServiceError:
        """The error for one step of the server."""
        try:
            completion = self.complete(step, **options)
        except ExternalServiceError as error:
            return error
        raise AssertionError(f"no error, but {completion}")

    def pieces(self, step: Any, **options: Any) -> tuple[list[CompletionChunk], ExternalServiceError | None]:
        """The pieces of a stream, and the error with which it ended."""

        async def main() -> tuple[list[CompletionChunk], ExternalServiceError | None]:
            async with self.open() as (provider, server):
                server.script(step)
                pieces: list[CompletionChunk] = []
                try:
                    async for piece in provider.stream(self.asking(**options)):
                        pieces.append(piece)  # noqa: PERF401
                except ExternalServiceError as error:
                    return pieces, error
                return pieces, None

        return asyncio.run(main())

    def sent(self, *, streamed: bool = False, **options: Any) -> tuple[str, Any, Any]:
        """(path, body, headers) of a request as the server received it."""

        async def main() -> tuple[str, Any, Any]:
            async with self.open() as (provider, server):
                if streamed:
                    async for _ in provider.stream(self.asking(**options)):
                        pass
                else:
                    await provider.complete(self.asking(**options))
                request = server.queries[0]
                return request.path, request.body, request.headers

        return asyncio.run(main())


def text_of(pieces: list[CompletionChunk]) -> str:
    return "".join(piece.text for piece in pieces if not piece.reasoning)


def in_gateway(
    kind: ServiceKind,
    model: str,
    server: Server,
    test: Callable[[Gateway, Budgets, Server], Awaitable[None]],
    *,
    strict: bool = True,
    **options: Any,
) -> None:
    """Run a test in a gateway whose only service, `svc`, is this fake."""
    service = ServiceOptions(name="svc", kind=kind, model=model, **options)

    async def main() -> None:
        async with among_fakes((service,), strict=strict, svc=server) as there:
            await test(there.platform.parts.gateway, there.platform.parts.budgets, server)

    asyncio.run(main())
