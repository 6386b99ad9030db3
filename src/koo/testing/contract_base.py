"""What the rules for adapters share: the case that they test, the list of rules, and the ways to provoke an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from koo.ai.providers.base import CompletionChunk, Provider, Request
from koo.errors import ExternalServiceError, Kind
from koo.http.client import HttpClient
from koo.testing.providers.script import Cut, Step, brief
from koo.testing.providers.server import FakeProvider

LONG_TEXT = "Paris. " * 100
"""A response with this text is longer than 400 bytes, so a cut after 400 always shortens it."""
KEY = "key-4711-of-a-test"
PROMPT = "What is the capital of France? prompt-4711"
WORDS = ("Par", "is", " it", " is", ".")
TEXT = "".join(WORDS)
TOKENS_MAX = 64
PATIENCE_S = 30.0
"""Only an adapter that breaks a rule can take this long."""


@dataclass(frozen=True)
class AdapterCase:
    """An adapter, a function that makes the fake it talks to, and a model that both accept.

    `adapter` is called as koo calls it: `adapter(name, http, base_url=…, api_key=…)`. A subclass of `Adapter` has this
    signature.
    """

    adapter: Callable[..., Provider]
    fake: Callable[..., FakeProvider]
    model: str
    about: dict[str, Any] = field(default_factory=dict)

    def asking(self, **options: Any) -> Request:
        """A request with these options."""
        return Request(**{"prompt": PROMPT, "model": self.model, "max_tokens": TOKENS_MAX, **options})

    @asynccontextmanager
    async def talk(self, *, key: str | None = KEY) -> AsyncIterator[tuple[Provider, FakeProvider]]:
        """The adapter and its fake, which requires `key`."""
        http = HttpClient()
        async with self.fake(key=key, strict=False, **self.about) as fake:
            provider = self.adapter("acme", http, base_url=fake.base_url, api_key=KEY)
            try:
                yield provider, fake
            finally:
                await provider.close()
                await http.close()


@dataclass(frozen=True)
class Rule:
    """One rule: its name, what goes wrong otherwise, and its test."""

    name: str
    why: str
    try_it: Callable[[AdapterCase], Awaitable[None]]

    def __str__(self) -> str:
        return self.name

    def check(self, case: AdapterCase) -> None:
        """Test the rule on a new event loop. Raises AssertionError if the adapter breaks it."""
        asyncio.run(self.check_here(case))

    async def check_here(self, case: AdapterCase) -> None:
        """Like `check`, on the running loop."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.try_it(case)
        except AssertionError as error:
            error.add_note(f"{self.name}: {self.why}")
            raise
        except Exception as error:
            raise AssertionError(f"{self.name}: {type(error).__name__}: {error} ({self.why})") from error


class Rules:
    """The rules of one subject, in order: `@rule(why)` adds a function to them."""

    def __init__(self) -> None:
        self.all: list[Rule] = []

    def __call__(self, why: str) -> Callable[[Callable[[AdapterCase], Awaitable[None]]], None]:
        def keep(try_it: Callable[[AdapterCase], Awaitable[None]]) -> None:
            self.all.append(Rule(getattr(try_it, "__name__", "rule").strip("_"), why, try_it))

        return keep


async def read(provider: Provider, asked: Request) -> list[CompletionChunk]:
    """All chunks of a stream."""
    return [chunk async for chunk in provider.stream(asked)]


def text_of(chunks: list[CompletionChunk]) -> str:
    """The text of these chunks, without reasoning."""
    return "".join(chunk.text for chunk in chunks if not chunk.reasoning)


async def read_to_error(
    provider: Provider, case: AdapterCase
) -> tuple[list[CompletionChunk], Exception | None]:
    """The chunks of a stream, and the error that ended it, if any."""
    chunks: list[CompletionChunk] = []
    try:
        async for chunk in provider.stream(case.asking()):
            chunks.append(chunk)  # noqa: PERF401
    except Exception as error:  # noqa: BLE001 - the caller checks which one it is
        return chunks, error
    return chunks, None


LATE_STATUSES = (429, 500, 503)
"""Statuses of errors that a provider may send after its response has begun."""
STATUSES: dict[int, set[Kind]] = {
    400: {Kind.INVALID_REQUEST},
    401: {Kind.AUTH},
    403: {Kind.PERMISSION, Kind.AUTH},
    404: {Kind.NOT_FOUND},
    429: {Kind.THROTTLED, Kind.QUOTA},
    500: {Kind.SERVER_ERROR},
    503: {Kind.OVERLOADED, Kind.SERVER_ERROR},
}
"""The kinds for each status, if the vendor's error body says nothing more specific."""


async def error_of(case: AdapterCase, *steps: Step, streamed: bool = False) -> ExternalServiceError:
    """The error that the adapter raises for these steps. Raises AssertionError if it raises none, or repeats."""
    async with case.talk() as (provider, fake):
        fake.script(*steps)
        try:
            if streamed:
                await read(provider, case.asking())
            else:
                await provider.complete(case.asking())
        except ExternalServiceError as error:
            assert len(fake.queries) == 1, (
                "an adapter must not repeat a request: koo counts and pays for each attempt"
            )
            return error
    raise AssertionError(f"no error was raised for {', '.join(map(_in_words, steps))}")


def _in_words(step: Step) -> str:
    if isinstance(step, Cut):
        return f"a response that is cut after {step.after_bytes} bytes"
    return brief(step)
