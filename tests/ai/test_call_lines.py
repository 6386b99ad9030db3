"""The log lines of queries, streams and users' own operations that fail or are refused; successes are not logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from koo.ai.types import Query
from koo.errors import AllServicesFailed, CallerMistake, ExternalServiceError, ServiceFailed, StreamTruncated
from koo.options import RetryOptions
from koo.platform import Platform
from koo.testing.providers import FakeAnthropic, error, stream
from tests.ai.worlds import world
from tests.platform.test_platform import QUESTION, options

ONCE = RetryOptions(attempts_max=1)
OVERLOADED = error(529, "overloaded_error", "prompt 4711 sk-ant-api03-4711471147114711\u202e\x1b[2J")


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "koo")


def calls(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if str(vars(one).get("what")).startswith("call")]


def test_a_success_writes_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world() as here:
            await here.ask()
            async for _ in here.gateway.stream(Query(service="claude", prompt="Hello")):
                pass
        assert caplog.messages == []

    asyncio.run(main())


def test_a_retried_query_is_one_line_with_its_number_of_attempts(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world() as here:
            here.claude.script(OVERLOADED, OVERLOADED)
            await here.ask()  # a retry has succeeded, so nothing is logged
            assert caplog.messages == []
            here.claude.script(*[OVERLOADED] * 4)
            with suppress(ServiceFailed):
                await here.ask()
        (line,) = calls(caplog)
        assert line.startswith(
            "claude: query failed (overloaded): it is overloaded (status 529, overloaded_error"
        )
        assert "; 4 attempts" in line

    asyncio.run(main())


def test_each_service_of_a_chain_has_a_line_that_names_the_next_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with world(retry=ONCE) as here:
            here.claude.script(OVERLOADED, OVERLOADED)
            assert (await here.ask(fallback=["openai"])).service == "openai"
            here.openai.script(error(500, "server_error"))
            with pytest.raises(AllServicesFailed):
                await here.ask(fallback=["openai"])
        claude, openai, counted = calls(caplog)
        assert claude.startswith("claude: query failed (overloaded)")
        assert claude.endswith("; openai is called next")
        assert openai.startswith("openai: query failed (server_error)") and "asked next" not in openai
        assert counted.startswith("claude: queries failed (overloaded): 1 more in the last ")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["nosuch", "x\x1b[2J\u202e", "a whole prompt 4711 by mistake", "y" * 500])
def test_the_line_of_an_unknown_service_contains_no_prompt(
    caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async def main() -> None:
        async with world() as here:
            with suppress(CallerMistake):
                await here.ask(service=name)
        (line,) = calls(caplog)
        assert "query refused (unknown_service): no such service" in line
        assert line.isprintable() and "4711" not in line and "y" * 100 not in line

    asyncio.run(main())


def test_no_text_from_a_hostile_provider_reaches_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world(retry=ONCE) as here:
            for status in (400, 401, 402, 403, 404, 413, 429, 500, 503, 529):
                for service in here.gateway.services.values():
                    service.service.reset()
                here.claude.script(
                    error(
                        status,
                        "4711 type\x1b[2J",
                        "prompt 4711 key sk-ant-api03-4711471147114711 postgres://u:4711@h/d\u202e\n",
                        headers={"request-id": "4711 \x9b31m", "retry-after": "1"},
                    )
                )
                with suppress(ExternalServiceError):
                    await here.ask("my prompt 4711", on_limit="refuse")
        assert len(calls(caplog)) >= 8
        for line in caplog.messages:
            assert line.isprintable() and "4711" not in line

    asyncio.run(main())


def test_a_broken_stream_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with world(retry=ONCE) as here:
            here.claude.script(stream(["Par", "is."], cut_after=1), OVERLOADED)
            with pytest.raises(StreamTruncated):
                async for _ in here.gateway.stream(Query(service="claude", prompt="Hello")):
                    pass
            with suppress(ServiceFailed):
                async for _ in here.gateway.stream(Query(service="claude", prompt="Hello")):
                    pass
        broken, failed = calls(caplog)
        assert broken.startswith("claude: stream failed (") and "the stream broke off" in broken
        assert failed.startswith("claude: query failed (overloaded)")

    asyncio.run(main())


def test_a_failed_operation_is_logged_but_not_one_that_raises_a_programming_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(error: BaseException) -> None:
        raise error

    async def pieces() -> AsyncIterator[int]:
        yield 1
        raise ConnectionResetError("4711")

    async def main() -> None:
        async with FakeAnthropic() as server, Platform(options(tmp_path, server)) as platform:
            platform.register_service("parcels", max_retries=0, failure_threshold=100)
            for mistake in (ValueError("4711"), asyncio.CancelledError()):
                with suppress(BaseException):
                    await platform.execute("parcels", fail, mistake)
            assert caplog.messages == []
            for failure in (ConnectionRefusedError("4711"), RuntimeError("4711")):
                with suppress(Exception):
                    await platform.execute("parcels", fail, failure)
            with suppress(ConnectionResetError):
                async for _ in platform.execute_stream("parcels", pieces):
                    pass
        lines = calls(caplog)
        assert lines[0].startswith("parcels: operation failed (connection): ")
        assert lines[1] == "parcels: operation failed (unknown): it raised RuntimeError; 1 attempt"
        assert "(connection): 1 more in the last" in lines[2], "the stream, by the same kind"
        assert "4711" not in caplog.text

    asyncio.run(main())


def test_a_platform_logs_its_own_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server:
            server.script(error(401, "authentication_error"))
            async with Platform(options(tmp_path, server, retry=ONCE)) as platform:
                with suppress(ExternalServiceError):
                    await platform.query(QUESTION)
        assert caplog.records[0].levelname == "CRITICAL"
        assert caplog.messages[0].startswith("claude: key refused: ")

    asyncio.run(main())
