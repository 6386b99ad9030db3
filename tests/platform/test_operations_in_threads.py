"""Blocking operations are refused before anything is sent, or run in threads if registered with `in_thread`."""

from __future__ import annotations

import asyncio
import os
import threading
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anthropic
import openai
import psycopg
import pytest
import requests
from google import genai

import koo
from koo import Platform, PlatformOptions
from koo.ai import threads
from koo.errors import (
    CircuitOpen,
    ConfigurationError,
    Kind,
    RateLimited,
    ServiceFailed,
    ServiceSaturated,
    ServiceTimeout,
)
from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic, FakeOpenAI, error

CHAT: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Capital of France?"}]}


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Platform]:
    async with Platform(PlatformOptions(home=home, state_url=f"sqlite:///{home}/state.db")) as platform:
        yield platform


def spent(platform: Platform, name: str) -> str:
    return platform.service_health(name)["rate_limits"]["daily_budget"]["spent"]


class Hanging:
    """A function that blocks until it is released; `started` counts the threads it runs in."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.started = threading.Semaphore(0)

    def __call__(self) -> str:
        self.started.release()
        self.let_go.wait(60)
        return "late"


# ── refused before anything is sent ───────────────────────────────────────────────────────────────────────────────────


def test_a_synchronous_clients_call_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async def main(server: FakeOpenAI) -> None:
        async with opened(tmp_path) as platform:
            client = openai.OpenAI(api_key="test-key", base_url=server.base_url, max_retries=0)
            platform.register_service("gpt", daily_budget=1, max_cost_usd="0.01")
            for operation in (
                client.chat.completions.create,
                client.chat.completions.with_raw_response.create,
            ):
                with pytest.raises(TypeError, match=r"openai\.AsyncOpenAI, or .*in_thread=True"):
                    await platform.execute("gpt", operation, **CHAT)
            assert server.queries == [] and spent(platform, "gpt") == "0"
            assert platform.service_health("gpt")["metrics"]["total_requests"] == 0
            client.close()

    with FakeOpenAI() as server:
        asyncio.run(main(server))


def test_a_function_that_turns_out_to_block_is_refused_and_booked(tmp_path: Path) -> None:
    """koo cannot know what a plain function does before it has run, and it may have made a billed call."""

    async def main() -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", daily_budget=1, max_cost_usd="0.01")
            with pytest.raises(TypeError, match=r"AsyncOpenAI.*in_thread=True"):
                await platform.execute("own", lambda: 5)
            assert spent(platform, "own") == "0.01"

    asyncio.run(main())


# ── in a thread ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_operation_runs_in_one_of_koos_threads_with_its_callers_context(tmp_path: Path) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    def work(value: int, *, factor: int) -> tuple[int, str, str, bool]:
        thread = threading.current_thread()
        return value * factor, tenant.get(), thread.name, thread.daemon

    async def main() -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True)
            tenant.set("ada")
            assert await platform.execute("own", work, 6, factor=7) == (42, "ada", "koo own", True)
            assert platform.service_health("own")["metrics"]["successful_requests"] == 1

    asyncio.run(main())


def test_an_idle_thread_takes_the_next_call(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True)
            assert len({await platform.execute("own", threading.get_ident) for _ in range(5)}) == 1

    asyncio.run(main())


def test_an_idle_thread_ends_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IDLE_S", 0.01)

    async def main() -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True)
            ended = [await platform.execute("own", threading.current_thread) for _ in range(2)]
            await until(lambda: not any(thread.is_alive() for thread in ended))
            assert await platform.execute("own", lambda: 5) == 5

    asyncio.run(main())


def test_an_awaitable_result_is_awaited_on_the_loop(tmp_path: Path) -> None:
    def plain(delay_s: float, result: int) -> Awaitable[int]:
        return asyncio.sleep(delay_s, result)

    async def main() -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True)
            assert [await platform.execute("own", one, 0, 5) for one in (plain, asyncio.sleep)] == [5, 5]

    asyncio.run(main())


def test_the_vendors_synchronous_clients_are_guarded_like_asynchronous_ones(tmp_path: Path) -> None:
    """The pause of a throttled call is respected, a refused key is blocked, and an answer is returned."""

    async def main(gpt: FakeOpenAI, claude: FakeAnthropic) -> None:
        async with opened(tmp_path) as platform:
            for name in ("gpt", "claude-batch", "gemini-batch"):
                platform.register_service(name, in_thread=True, timeout_s=10)
            with (
                openai.OpenAI(api_key="test-key", base_url=gpt.base_url, max_retries=0) as client,
                anthropic.Anthropic(
                    api_key="test-key", base_url=claude.base_url.removesuffix("/v1"), max_retries=0
                ) as other,
            ):
                answer = await platform.execute("gpt", client.chat.completions.create, **CHAT)
                assert answer.choices[0].message.content
                gpt.script(error(429, "rate_limit_error", headers={"retry-after": "30"}))
                with pytest.raises(RateLimited) as caught:
                    await platform.execute("gpt", client.chat.completions.create, **CHAT)
                assert caught.value.retry_after_s and caught.value.retry_after_s >= 30
                message = {"max_tokens": 10, **CHAT, "model": "claude-sonnet-5-5"}
                assert (await platform.execute("claude-batch", other.messages.create, **message)).content
            lost = genai.Client(api_key="k", http_options={"base_url": "http://127.0.0.1:9"})
            with pytest.raises(koo.ExternalServiceError) as failed:
                await platform.execute(
                    "gemini-batch", lost.models.generate_content, model="m", contents="Capital?"
                )
            assert failed.value.kind is Kind.CONNECTION
            lost.close()

    with FakeOpenAI() as gpt, FakeAnthropic() as claude:
        asyncio.run(main(gpt, claude))


def test_requests_and_urllib_run_in_threads(tmp_path: Path) -> None:
    def read(url: str) -> int:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status)

    async def main(server: FakeOpenAI) -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("plain", in_thread=True, failure_threshold=2)
            url, headers = f"{server.base_url}/models", {"Authorization": "Bearer test-key"}
            platform.register_service("refused")
            with pytest.raises(TypeError, match="in_thread=True"):
                await platform.execute("refused", requests.get, url)
            assert (await platform.execute("plain", requests.get, url, headers=headers)).status_code == 200
            request = urllib.request.Request(url, headers=headers)
            assert await platform.execute("plain", read, request) == 200
            for _ in range(2):
                with pytest.raises(ServiceFailed, match="cannot connect"):
                    await platform.execute("plain", read, "http://127.0.0.1:9")
            with pytest.raises(CircuitOpen):
                await platform.execute("plain", read, "http://127.0.0.1:9")

    with FakeOpenAI() as server:
        asyncio.run(main(server))


def test_stop_iteration_raised_in_a_thread_is_an_ordinary_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True)
            with pytest.raises(RuntimeError, match="StopIteration"):
                await platform.execute("own", next, iter(()))

    asyncio.run(main())


def test_a_stream_returned_from_a_thread_is_refused_closed_and_booked(tmp_path: Path) -> None:
    closed: list[str] = []

    def pieces() -> Iterator[str]:
        try:
            yield "Par"
        finally:
            closed.append("closed")

    def begun() -> Iterator[str]:
        stream = pieces()
        next(stream)
        return stream

    async def main(server: FakeOpenAI) -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True, daily_budget=1, max_cost_usd="0.01")
            with pytest.raises(TypeError, match="stream_with_error_handling"):
                await platform.execute("own", begun)
            assert closed == ["closed"] and spent(platform, "own") == "0.01"
            with (
                openai.OpenAI(api_key="test-key", base_url=server.base_url, max_retries=0) as client,
                pytest.raises(TypeError, match="stream_with_error_handling"),
            ):
                await platform.execute("own", client.chat.completions.create, stream=True, **CHAT)

    with FakeOpenAI() as server:
        asyncio.run(main(server))


def test_a_cursor_from_a_thread_is_an_ordinary_result(tmp_path: Path, postgres18: PostgresServer) -> None:
    """psycopg's cursor is an iterator with a `close`, like an SDK's stream, but its rows have already arrived."""

    async def main() -> None:
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True)
            with psycopg.connect(postgres18.url(None)) as connection:
                cursor = await platform.execute("own", connection.execute, "SELECT 7")
                assert isinstance(cursor, Iterator) and cursor.fetchone() == (7,)

    asyncio.run(main())


# ── a thread cannot be stopped ────────────────────────────────────────────────────────────────────────────────────────


def test_at_the_deadline_the_caller_continues_and_the_slot_stays_taken_until_the_thread_ends(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        hanging = Hanging()
        async with opened(tmp_path) as platform:
            platform.register_service(
                "own", in_thread=True, concurrency_max=1, queue_max=0, timeout_s=0.05, failure_threshold=5,
                daily_budget=1, max_cost_usd="0.01",
            )  # fmt: skip
            with pytest.raises(ServiceTimeout):
                await platform.execute("own", hanging)
            view = platform.service_health("own")
            assert view["health"]["consecutive_failures"] == 1, "koo's own timeout is a failure"
            assert spent(platform, "own") == "0.01", "and may have been billed"
            with pytest.raises(ServiceSaturated):
                await platform.execute("own", lambda: 5)
            hanging.let_go.set()
            slots = platform.services["own"].gates.bulkhead
            await until(lambda: slots.used == 0)
            assert await platform.execute("own", lambda: 5) == 5

    asyncio.run(main())


def test_a_cancelled_call_is_neutral_and_its_slot_stays_taken_until_the_thread_ends(tmp_path: Path) -> None:
    async def main() -> None:
        hanging = Hanging()
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True, concurrency_max=2)
            task = asyncio.create_task(platform.execute("own", hanging))
            await asyncio.to_thread(hanging.started.acquire)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            slots = platform.services["own"].gates.bulkhead
            assert slots.used == 1
            assert platform.service_health("own")["metrics"]["neutral_requests"] == 1
            hanging.let_go.set()
            await until(lambda: slots.used == 0)

    asyncio.run(main())


def test_closing_waits_a_little_for_running_threads_and_logs_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "CLOSING_S_MAX", 0.05)

    async def main() -> None:
        hanging = Hanging()
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True, timeout_s=0.02)
            with pytest.raises(ServiceTimeout):
                await platform.execute("own", hanging)
        assert "own: operations still running in threads, which cannot be stopped: 1" in caplog.text
        caplog.clear()
        hanging.let_go.set()
        async with platform:
            await until(lambda: platform.services["own"].gates.bulkhead.used == 0)
            assert await platform.execute("own", lambda: 5) == 5
        assert "still running in threads" not in caplog.text

    asyncio.run(main())


def test_closing_waits_until_the_last_thread_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        hanging = Hanging()
        async with opened(tmp_path) as platform:
            platform.register_service("own", in_thread=True, timeout_s=0.02)
            with pytest.raises(ServiceTimeout):
                await platform.execute("own", hanging)
            closing = asyncio.create_task(platform.close())
            await asyncio.sleep(0)
            hanging.let_go.set()
            await closing
        assert "still running in threads" not in caplog.text

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_no_threads_of_its_parent_and_all_slots_free(tmp_path: Path) -> None:
    async def hang(platform: Platform, hanging: Hanging) -> None:
        with pytest.raises(ServiceTimeout):
            await platform.execute("own", hanging)

    platform = Platform(PlatformOptions(home=tmp_path, state_url=f"sqlite:///{tmp_path}/state.db"))
    platform.register_service("own", in_thread=True, concurrency_max=1, queue_max=0, timeout_s=0.05)
    hanging = Hanging()
    koo.run(hang(platform, hanging))
    child = os.fork()
    if not child:
        try:
            os._exit(koo.run(platform.execute("own", lambda: 5)))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    hanging.let_go.set()
    assert os.waitstatus_to_exitcode(status) == 5
    koo.run(platform.close())


def test_flasks_and_celerys_threads_share_one_guard_over_koo_run(tmp_path: Path) -> None:
    """Worker threads without a loop run their synchronous SDKs under koo: a pause of one applies to all."""
    with FakeOpenAI() as server:
        platform = Platform(PlatformOptions(home=tmp_path, state_url=f"sqlite:///{tmp_path}/state.db"))
        platform.register_service("gpt", in_thread=True, timeout_s=5)
        client = openai.OpenAI(api_key="test-key", base_url=server.base_url, max_retries=0)
        said: list[object] = []

        def view() -> None:
            try:
                call = platform.execute("gpt", client.chat.completions.create, **CHAT)
                said.append(koo.run(call).choices[0].message.content)
            except koo.KooError as error:
                said.append(error.kind)

        def visit(times: int) -> None:
            visitors = [threading.Thread(target=view) for _ in range(times)]
            for visitor in visitors:
                visitor.start()
            for visitor in visitors:
                visitor.join(30)

        visit(4)
        assert len(said) == 4 and all(isinstance(one, str) for one in said)
        said.clear()
        server.script(error(429, "rate_limit_error", headers={"retry-after": "60"}))
        visit(1)
        visit(3)
        assert said == [Kind.THROTTLED] * 4 and len(server.queries) == 5
        koo.run(platform.close())
        client.close()


async def later(*_args: Any, **_kwargs: Any) -> None: ...


@pytest.mark.parametrize("wrong", [5, "", later])
def test_a_credential_must_be_a_name_or_a_function(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="credential"):
        Platform(PlatformOptions(home=tmp_path)).register_service("own", credential=wrong)


@pytest.mark.parametrize("name", ["classify", "cost_usd"])
@pytest.mark.parametrize("wrong", [5, later])
def test_functions_that_koo_calls_must_not_be_asynchronous(tmp_path: Path, name: str, wrong: object) -> None:
    options: Any = {"max_cost_usd": 1, name: wrong}
    with pytest.raises(ConfigurationError, match=f"{name} must be a function"):
        Platform(PlatformOptions(home=tmp_path)).register_service("own", **options)


@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_in_thread_must_be_true_or_false(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="in_thread"):
        Platform(PlatformOptions(home=tmp_path)).register_service("own", in_thread=wrong)
