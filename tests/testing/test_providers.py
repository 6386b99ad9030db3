"""The fakes are realistic: the vendors' own SDKs talk to them, plain and streamed, and raise their own errors."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from koo.http.client import HttpClient
from koo.testing.polling import until
from koo.testing.providers import (
    FakeAnthropic,
    FakeCompatible,
    FakeOpenAI,
    Gate,
    InstantServer,
    answer,
    cut,
    delay,
    error,
    hang,
    html,
    nothing,
    stream,
)
from koo.testing.providers.wire import ReceivedRequest

CLAUDE = "claude-sonnet-5-5"
GPT = "gpt-6.1-terra"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def claude_client(server: FakeAnthropic, **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=server.base_url, api_key="test-key", **{"max_retries": 0, **options}
    )


def openai_client(server: FakeOpenAI, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="test-key", **{"max_retries": 0, **options})


# ── Anthropic ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_anthropics_sdk_reads_a_plain_response() -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            server.script(
                answer(
                    "Paris it is.",
                    input_tokens=14,
                    output_tokens=5,
                    cache_read_tokens=100,
                    reasoning_tokens=2,
                )
            )
            message = await client.messages.create(
                model=CLAUDE, max_tokens=100, messages=QUESTION, system="Be brief."
            )
            assert message.content[0].type == "text" and message.content[0].text == "Paris it is."
            assert message.stop_reason == "end_turn" and message.model == CLAUDE
            usage = message.usage
            assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (14, 100, 5)
            assert (
                usage.output_tokens_details is not None and usage.output_tokens_details.thinking_tokens == 2
            )
            assert message._request_id is not None and message._request_id.startswith("req_")
            assert server.queries[0].body["system"] == "Be brief."

    asyncio.run(main())


def test_anthropics_sdk_reads_a_stream_up_to_its_final_message() -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            server.script(stream(["Par", "is ", "€"], input_tokens=7))
            async with client.messages.stream(model=CLAUDE, max_tokens=100, messages=QUESTION) as events:
                texts = [text async for text in events.text_stream]
                final = await events.get_final_message()
            assert texts == ["Par", "is ", "€"]
            assert final.content[0].type == "text" and final.content[0].text == "Paris €"
            assert (final.usage.input_tokens, final.usage.output_tokens, final.stop_reason) == (
                7,
                3,
                "end_turn",
            )

    asyncio.run(main())


def test_anthropics_sdk_lists_models() -> None:
    async def main() -> None:
        async with FakeAnthropic(models=("claude-a", "claude-b")) as server, claude_client(server) as client:
            assert [model.id async for model in client.models.list()] == ["claude-a", "claude-b"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("step", "raised", "type_", "code"),
    [
        (error(400, "invalid_request_error"), anthropic.BadRequestError, "invalid_request_error", None),
        (error(401, "authentication_error"), anthropic.AuthenticationError, "authentication_error", None),
        (error(403, "permission_error"), anthropic.PermissionDeniedError, "permission_error", None),
        (error(404, "not_found_error"), anthropic.NotFoundError, "not_found_error", None),
        (error(413, "request_too_large"), anthropic.ContentTooLargeError, "request_too_large", None),
        (
            error(429, "rate_limit_error", code="enforced_spend_limit_reached"),
            anthropic.RateLimitError, "rate_limit_error", "enforced_spend_limit_reached",
        ),
        (error(500, "api_error"), anthropic.InternalServerError, "api_error", None),
        (error(529, "overloaded_error"), anthropic.OverloadedError, "overloaded_error", None),
        (html(502), anthropic.InternalServerError, None, None),
    ],
)  # fmt: skip
def test_anthropics_sdk_raises_its_own_error(
    step: Any, raised: type[Exception], type_: str | None, code: str | None
) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            server.script(step)
            with pytest.raises(raised) as caught:
                await client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
            fault: Any = caught.value
            assert (fault.type, fault.error_code) == (type_, code)
            if type_ is not None:
                assert fault.request_id.startswith("req_")

    asyncio.run(main())


def test_an_error_inside_a_stream_reaches_anthropics_sdk_with_status_200() -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            server.script(stream(["Par", "is"], error_after=1))
            texts = []
            with pytest.raises(anthropic.APIStatusError) as caught:
                async with client.messages.stream(model=CLAUDE, max_tokens=100, messages=QUESTION) as events:
                    texts += [text async for text in events.text_stream]
            assert (caught.value.status_code, caught.value.type) == (200, "overloaded_error")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"messages": []}, 400, "messages"),
        ({"model": "gpt-6"}, 404, "model: gpt-6"),
        ({"extra_body": {"temperature": 0.5}}, 400, "temperature: Extra inputs"),
        (
            {"extra_body": {"temperature": 0.5}, "extra_headers": {"anthropic-version": "2023-06-01"}},
            400,
            "`temperature` is deprecated",
        ),
        ({"extra_body": {"nonsense": 1}}, 400, "nonsense: Extra inputs"),
    ],
)
def test_the_fake_refuses_what_anthropic_refuses(change: dict[str, Any], status: int, words: str) -> None:
    async def main() -> None:
        async with FakeAnthropic(strict=False) as server, claude_client(server) as client:
            asked = {"model": CLAUDE, "max_tokens": 10, "messages": QUESTION, **change}
            with pytest.raises(anthropic.APIStatusError) as caught:
                await client.messages.create(**asked)
            assert caught.value.status_code == status and words in str(caught.value)
            assert server.bills == []

    asyncio.run(main())


def test_a_tools_call_and_its_result_need_no_text() -> None:
    async def main() -> None:
        call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}
        turns: Any = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        async with FakeAnthropic(strict=False) as server, claude_client(server) as client:
            asked: Any = {"model": CLAUDE, "max_tokens": 10, "messages": [*QUESTION, *turns]}
            assert (await client.messages.create(**asked)).role == "assistant"
            for empty in ([], [{"type": "text", "text": ""}]):
                turns[-1]["content"] = empty
                with pytest.raises(anthropic.BadRequestError, match="non-empty content"):
                    await client.messages.create(**asked)

    asyncio.run(main())


def test_a_wrong_key_is_refused() -> None:
    async def main() -> None:
        async with FakeAnthropic(key="other", strict=False) as server, claude_client(server) as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.models.list()

    asyncio.run(main())


# ── OpenAI ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_openais_sdk_reads_a_plain_response() -> None:
    async def main() -> None:
        async with FakeOpenAI() as server, openai_client(server) as client:
            server.script(
                answer(
                    "Paris.",
                    input_tokens=60,
                    cache_read_tokens=30,
                    cache_write_tokens=10,
                    output_tokens=9,
                    reasoning_tokens=4,
                )
            )
            response = await client.responses.create(
                model=GPT,
                input="Capital of France?",
                instructions="Be brief.",
                max_output_tokens=100,
                store=False,
            )
            assert (response.output_text, response.status, response.model) == ("Paris.", "completed", GPT)
            usage = response.usage
            assert usage is not None and (usage.input_tokens, usage.output_tokens) == (100, 9)
            assert (
                usage.input_tokens_details.cached_tokens == 30
                and usage.output_tokens_details.reasoning_tokens == 4
            )
            assert response._request_id is not None

    asyncio.run(main())


def test_openais_sdk_reads_a_streamed_response() -> None:
    async def main() -> None:
        async with FakeOpenAI() as server, openai_client(server) as client:
            server.script(stream(["Par", "is"]))
            async with client.responses.stream(model=GPT, input="Capital?") as events:
                kinds = [event.type async for event in events]
                final = await events.get_final_response()
            assert final.output_text == "Paris"
            assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
            assert kinds.count("response.output_text.delta") == 2

    asyncio.run(main())


def test_a_response_at_its_token_limit_is_incomplete() -> None:
    async def main() -> None:
        async with FakeOpenAI() as server, openai_client(server) as client:
            server.script(answer("x" * 400))
            response = await client.responses.create(model=GPT, input="Capital?", max_output_tokens=16)
            assert response.status == "incomplete" and response.incomplete_details is not None
            assert response.incomplete_details.reason == "max_output_tokens"
            assert response.usage is not None and response.usage.output_tokens == 16

    asyncio.run(main())


def test_openais_sdk_reads_chat_completions_plain_and_streamed() -> None:
    async def main() -> None:
        async with FakeOpenAI() as server, openai_client(server) as client:
            completion = await client.chat.completions.create(
                model=GPT, messages=QUESTION, max_completion_tokens=50
            )
            assert (
                completion.choices[0].message.content == "Paris."
                and completion.choices[0].finish_reason == "stop"
            )
            assert completion.usage is not None and completion.usage.prompt_tokens == 8
            server.script(stream(["Par", "is"]))
            chunks = await client.chat.completions.create(
                model=GPT, messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
            texts, usage = [], None
            async for chunk in chunks:
                usage = chunk.usage or usage
                texts += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            assert texts == ["Par", "is"] and usage is not None and usage.completion_tokens == 2

    asyncio.run(main())


def test_openais_sdk_lists_models() -> None:
    async def main() -> None:
        async with FakeOpenAI(models=("gpt-a",)) as server, openai_client(server) as client:
            assert [model.id async for model in client.models.list()] == ["gpt-a"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("step", "raised", "code"),
    [
        (error(400, "invalid_request_error", code="content_filter"), openai.BadRequestError, "content_filter"),
        (error(401, "invalid_request_error", code="invalid_api_key"), openai.AuthenticationError, "invalid_api_key"),
        (error(429, "insufficient_quota", code="insufficient_quota"), openai.RateLimitError, "insufficient_quota"),
        (error(500, "server_error"), openai.InternalServerError, None),
        (error(503, "server_error", code="server_is_overloaded"), openai.InternalServerError, "server_is_overloaded"),
        (html(503), openai.InternalServerError, None),
    ],
)  # fmt: skip
def test_openais_sdk_raises_its_own_error(
    step: Any, raised: type[openai.APIStatusError], code: str | None
) -> None:
    async def main() -> None:
        async with FakeOpenAI() as server, openai_client(server) as client:
            server.script(step)
            with pytest.raises(raised) as caught:
                await client.responses.create(model=GPT, input="Capital?")
            assert caught.value.code == code

    asyncio.run(main())


def test_an_error_inside_a_stream_reaches_openais_sdk_without_a_status() -> None:
    async def main() -> None:
        async with FakeOpenAI() as server, openai_client(server) as client:
            server.script(
                stream(["Par"], error_after=0, error=error(503, "server_error", code="server_is_overloaded"))
            )
            chunks = await client.chat.completions.create(model=GPT, messages=QUESTION, stream=True)
            with pytest.raises(openai.APIError) as caught:
                [chunk async for chunk in chunks]
            assert caught.value.code == "server_is_overloaded" and not hasattr(caught.value, "status_code")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"max_output_tokens": 5}, "max_output_tokens", "integer_below_min_value"),
        ({"model": "unheard-of"}, "model", "model_not_found"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens", "unknown_parameter"),
    ],
)
def test_the_fake_refuses_what_openai_refuses(asked: dict[str, Any], param: str, code: str) -> None:
    async def main() -> None:
        async with FakeOpenAI(strict=False) as server, openai_client(server) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.responses.create(**{"model": GPT, "input": "Capital?", **asked})
            assert (caught.value.param, caught.value.code) == (param, code)

    asyncio.run(main())


def test_reasoning_models_require_the_new_name_of_the_token_limit() -> None:
    async def main() -> None:
        async with FakeOpenAI(strict=False) as server, openai_client(server) as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model=GPT, messages=QUESTION, max_tokens=50)
            assert caught.value.code == "unsupported_parameter"

    asyncio.run(main())


@pytest.mark.parametrize("dialect", ["openai", "vllm", "llama.cpp", "openrouter"])
def test_openais_sdk_talks_to_compatible_servers(dialect: Any) -> None:
    async def main() -> None:
        async with (
            FakeCompatible(dialect, models=("llama",), strict=False) as server,
            openai_client(server) as client,
        ):
            completion = await client.chat.completions.create(model="llama", messages=QUESTION, max_tokens=50)
            assert completion.choices[0].message.content == "Paris."
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="mistral", messages=QUESTION)
            server.script(error(400, message="This model's maximum context length is 10 tokens."))
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                await client.chat.completions.create(model="llama", messages=QUESTION)

    asyncio.run(main())


# ── faults, and functions for every test ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", [nothing(), cut(0), cut(20), cut(150)])
def test_the_sdk_raises_its_own_error_for_a_broken_connection(step: Any) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            server.script(step)
            # Before the headers, the SDK wraps the error; inside the body, its HTTP library raises it.
            with pytest.raises(Exception, match=r"Connection error|peer closed|incomplete"):
                await client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
            assert len(server.queries) == 1

    asyncio.run(main())


def test_a_hanging_server_hangs_until_the_client_disconnects() -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server, timeout=0.1) as client:
            server.script(hang())
            with pytest.raises(anthropic.APITimeoutError):
                await client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
            assert await until(lambda: server.abandoned == 1)

    asyncio.run(main())


@pytest.mark.parametrize("ping_only", [False, True])
def test_a_stalled_stream_is_silent_or_pings_until_the_client_disconnects(ping_only: bool) -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            server.script(stream(["Par", "is"], stall_after=1, ping_only=ping_only))
            async with client.messages.stream(model=CLAUDE, max_tokens=100, messages=QUESTION) as events:
                assert await anext(events.text_stream) == "Par"
            assert await until(lambda: server.abandoned == 1)

    asyncio.run(main())


def test_the_sdks_own_retries_are_counted_at_the_server() -> None:
    async def main() -> None:
        async with FakeOpenAI(default=error(500, "server_error", headers={"retry-after-ms": "1"})) as server:
            async with openai_client(server, max_retries=2) as client:
                with pytest.raises(openai.InternalServerError):
                    await client.responses.create(model=GPT, input="Capital?")
            assert len(server.queries) == 3

    asyncio.run(main())


def test_the_server_bills_its_work_and_nothing_for_refusals() -> None:
    async def main() -> None:
        prices: Any = {"input_price": Decimal(3), "output_price": Decimal(15)}
        async with FakeAnthropic(**prices) as server, claude_client(server) as client:
            server.script(
                answer(input_tokens=1000, output_tokens=50),
                error(529, "overloaded_error"),
                stream(["a"] * 3, input_tokens=10, cut_after=2),
            )
            await client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
            with pytest.raises(anthropic.OverloadedError):
                await client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
            with pytest.raises(Exception, match=r"peer closed|incomplete"):
                async with client.messages.stream(model=CLAUDE, max_tokens=100, messages=QUESTION) as events:
                    await events.get_final_message()
            assert [(bill.input_tokens, bill.output_tokens) for bill in server.bills] == [(1000, 50), (10, 2)]
            assert server.billed_usd == Decimal("0.00375") + Decimal("0.00006")

    asyncio.run(main())


def test_a_vendor_can_define_how_a_stream_is_requested() -> None:
    class FakeAcme(FakeCompatible):
        def wants_stream(self, request: ReceivedRequest) -> bool:
            return request.headers.get("x-mode") == "live"

    async def main() -> None:
        http, body = HttpClient(), msgspec.json.encode({"model": "llama3.3", "messages": QUESTION})
        async with FakeAcme() as fake:
            for mode, expected in (("live", "text/event-stream"), ("whole", "application/json")):
                headers = {"content-type": "application/json", "x-mode": mode}
                url = f"{fake.base_url}/chat/completions"
                response = await http.request("POST", url, headers=headers, body=body)
                assert (response.status, response.headers["content-type"].split(";")[0]) == (200, expected)
        await http.close()

    asyncio.run(main())


def test_a_gate_holds_a_request_until_the_test_opens_it() -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            gate = Gate(answer("late"))
            server.script(gate)
            call = asyncio.ensure_future(
                client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
            )
            await gate.arrived()
            assert not call.done()
            gate.open()
            message = await call
            assert message.content[0].type == "text" and message.content[0].text == "late"

    asyncio.run(main())


def test_a_delay_comes_before_its_step() -> None:
    async def main() -> None:
        async with FakeAnthropic() as server, claude_client(server) as client:
            server.script(delay(0.01, error(529, "overloaded_error")))
            with pytest.raises(anthropic.OverloadedError):
                await client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)

    asyncio.run(main())


def test_synchronous_code_can_use_a_server_in_a_thread() -> None:
    with FakeAnthropic() as server:
        server.script(answer("from a thread"))
        with anthropic.Anthropic(base_url=server.base_url, api_key="test-key", max_retries=0) as client:
            message = client.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
        assert message.content[0].type == "text" and message.content[0].text == "from a thread"
        assert len(server.requests) == 1 and server.connections == 1


@pytest.mark.parametrize("instant", [True, False])
def test_an_instant_server_runs_in_a_separate_process(instant: bool) -> None:
    with InstantServer("anthropic", instant=instant) as server:
        with anthropic.Anthropic(base_url=server.base_url, api_key="k", max_retries=0) as client:
            message = client.messages.create(model=CLAUDE, max_tokens=1000, messages=QUESTION)
            with client.messages.stream(model=CLAUDE, max_tokens=1000, messages=QUESTION) as events:
                assert events.get_final_text()
        assert message.usage.output_tokens > 0


@pytest.mark.parametrize("vendor", ["openai", "compatible"])
def test_the_instant_server_speaks_openais_formats(vendor: Any) -> None:
    with (
        InstantServer(vendor) as server,
        openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client,
    ):
        if vendor == "openai":
            assert "Paris" in client.responses.create(model=GPT, input="Capital?").output_text
            with client.responses.stream(model=GPT, input="Capital?") as events:
                assert "Paris" in events.get_final_response().output_text
        else:
            answered = client.chat.completions.create(model=GPT, messages=QUESTION)
            assert "Paris" in (answered.choices[0].message.content or "")
