"""`execute` refuses a stream, closes it and names the call that guards it. Other results pass unchanged."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from koo.policies.breaker import HALF_OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS
from koo.testing.clock import run_virtual
from tests.ai.own import PRICED, Library, Own

SENTENCE = (
    r"own: the operation returned a stream \(.*\).*read it with stream_with_error_handling\('own', operation"
)


def run(test: Callable[[Own], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        await test(Own(**{**PRICED, **options}))

    run_virtual(main)


@pytest.mark.parametrize("form", ["generator", "awaited", "answered", "manager", "awaited_manager"])
def test_a_stream_is_refused_and_closed_and_does_not_count_for_the_service(form: str) -> None:
    async def test(own: Own) -> None:
        library = Library("a")
        with pytest.raises(TypeError, match=SENTENCE):
            await own.execute(getattr(library, form))
        assert library.open == 0 and own.nothing_is_taken()
        assert own.verdicts[NEUTRAL] == 1 and own.verdicts[SUCCESS] == own.verdicts[FAILURE] == 0

    run(test)


@pytest.mark.parametrize(("form", "booked"), [("generator", 0), ("manager", 0), ("answered", 5)])
def test_a_refused_stream_that_was_opened_is_paid_for(form: str, booked: int) -> None:
    async def test(own: Own) -> None:
        with pytest.raises(TypeError):
            await own.execute(getattr(Library("a"), form))
        assert own.spent_usd == booked

    run(test)


def test_a_lazy_generator_closes_no_half_open_breaker() -> None:
    async def fail() -> None:
        raise ConnectionError

    async def test(own: Own) -> None:
        with pytest.raises(ConnectionError):
            await own.execute(fail)
        await asyncio.sleep(100.0)
        with pytest.raises(TypeError):
            await own.execute(Library("a").awaited)
        assert own.breaker.phase is HALF_OPEN

    run(test, failure_threshold=1, success_threshold=1)


class Keeping:
    """A context manager like those of the SDKs: it stores a coroutine and awaits the coroutine when it is entered."""

    def __init__(self, request: Any) -> None:
        self.__request = request

    async def __aenter__(self) -> Any:
        return await self.__request

    async def __aexit__(self, kind: object, error: object, trace: object) -> None: ...


@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_manager_that_is_not_entered_causes_no_coroutine_warning(is_awaited: bool) -> None:
    async def send() -> None: ...

    async def give() -> Keeping:
        return Keeping(send())

    async def test(own: Own) -> None:
        with pytest.raises(TypeError, match=SENTENCE):
            await own.execute(give if is_awaited else lambda: Keeping(send()))
        gc.collect()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(test)


def test_a_failed_close_does_not_hide_the_refusal() -> None:
    class Broken:
        def __aiter__(self) -> Broken:
            return self

        async def __anext__(self) -> str:
            return "a"

        async def aclose(self) -> None:
            raise OSError("already gone")

    async def give() -> Broken:
        return Broken()

    async def test(own: Own) -> None:
        with pytest.raises(TypeError, match=SENTENCE):
            await own.execute(give)

    run(test)


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Response:
    """A response like aiohttp's: it is finished, and is also a context manager."""

    async def json(self) -> dict[str, int]:
        return {}

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        raise AssertionError("it belongs to its caller")


class Cursor:
    """A cursor like a database driver's: its rows can be iterated or fetched."""

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        raise StopAsyncIteration

    async def fetchone(self) -> None: ...

    async def close(self) -> None:
        raise AssertionError("it belongs to its caller")


class Page:
    """One page of results, like those of the SDKs. Iterating it requests the following pages."""

    def __init__(self) -> None:
        self.data = [1, 2]

    async def __aiter__(self) -> AsyncIterator[int]:
        for one in self.data:
            yield one


class Socket:
    """An object like a websocket: messages can be iterated and sent."""

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        raise StopAsyncIteration

    async def send(self, text: str) -> None: ...


@pytest.mark.parametrize(
    "answer",
    [Response(), Cursor(), Page(), Socket(), [1], "text", None, iter("ab"), MagicMock(), AsyncMock()],
)
def test_a_whole_result_passes_even_if_it_can_be_iterated_or_entered(answer: Any) -> None:
    async def give() -> Any:
        return answer

    async def test(own: Own) -> None:
        assert await own.execute(give) is answer
        assert own.verdicts[SUCCESS] == 1

    run(test)


def test_a_shared_client_that_a_function_returns_is_not_closed() -> None:
    """Returning the client is the caller's mistake, but closing it would break others that use it."""

    class Client:
        closed = False

        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, kind: object, error: object, trace: object) -> None:
            self.closed = True

        async def aclose(self) -> None:
            self.closed = True

    client = Client()

    async def test(own: Own) -> None:
        with pytest.raises(TypeError, match=SENTENCE):
            await own.execute(lambda: client)
        assert not client.closed

    run(test)


def test_a_blocking_function_is_refused_by_its_result() -> None:
    async def test(own: Own) -> None:
        with pytest.raises(TypeError, match="blocked the event loop"):
            await own.execute(lambda: "an answer")

    run(test)


def test_the_managers_of_contextlib_are_streams_also_behind_an_await() -> None:
    @asynccontextmanager
    async def open_it() -> AsyncIterator[str]:
        yield "opened"

    async def give() -> Any:
        return open_it()

    async def test(own: Own) -> None:
        for operation in (open_it, give):
            with pytest.raises(TypeError, match=SENTENCE):
                await own.execute(operation)

    run(test)
