"""If a server refuses a parameter or has no room for the answer, koo sends the request once more in a form that it
accepts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import openai
import pytest

from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.types import Query
from koo.errors import InvalidRequest, Kind
from koo.options import RetryOptions
from koo.policies.repeat import ANEW_MAX
from koo.testing.providers import FakeAnthropic, FakeCompatible, FakeOpenAI, FakeProvider, error
from koo.testing.providers.wire import ReceivedRequest
from tests.ai.providers.talk import KEY, in_gateway

PROMPT = "Capital of France?"
PROMPT_TOKENS = 24
NEW_NAME = "max_completion_tokens"


class Picky(FakeCompatible):
    """A server that refuses some parameters, and limits the tokens of prompt and answer together."""

    refused: dict[str, str] = {}  # noqa: RUF012 - each test sets it for its own server
    context: int | None = None
    streamed: bool | None = None
    limit_sentence = (
        "This model's maximum context length is {context} tokens. However, you requested {total} tokens ({prompt} in "
        "the messages, {asked} in the completion). Please reduce the length of the messages or completion."
    )

    def _wrong_field(self, request: ReceivedRequest) -> tuple[str, str, str] | None:
        body = request.body
        for name, sentence in self.refused.items():
            if name in body:
                return name, "unsupported_parameter", sentence
        if self.streamed is not None and bool(body.get("stream")) is not self.streamed:
            only = "only supports stream mode" if self.streamed else "does not support streaming"
            return "", "invalid_parameter_error", f"This model {only}."
        asked = body.get("max_tokens") or body.get(NEW_NAME) or 0
        if self.context is not None and PROMPT_TOKENS + asked > self.context:
            sentence = self.limit_sentence.format(
                context=self.context, total=PROMPT_TOKENS + asked, prompt=PROMPT_TOKENS, asked=asked
            )
            return "max_tokens", "invalid_value", sentence
        return super()._wrong_field(request)


def unsupported(name: str, instead: str = "") -> dict[str, str]:
    hint = f" Use '{instead}' instead." if instead else ""
    return {name: f"Unsupported parameter: '{name}' is not supported with this model.{hint}"}


REASONING = unsupported("max_tokens", NEW_NAME) | {
    "temperature": "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value "
    "is supported."
}


def serving(
    test: Callable[[Gateway, Picky], Awaitable[None]],
    *,
    refused: dict[str, str] | None = None,
    context: int | None = None,
    streams: bool | None = None,
    **options: Any,
) -> Decimal:
    """Run a test with a picky server as the service `svc`; returns what was spent."""

    server, spent = Picky("vllm", key=KEY, strict=False), list[Decimal]()
    server.refused, server.context, server.streamed = refused or {}, context, streams
    prices = {"input_price": Decimal(1), "output_price": Decimal(1), "api_key": KEY, "declared": True}

    async def tried(here: Gateway, budgets: Budgets, server: Picky) -> None:
        await test(here, server)
        guard = here.services["svc"].service.default_guard
        assert guard.breaker.consecutive == 0 and not guard.breaker.running
        view = budgets.view("svc")
        assert view.held_usd == 0, "each refused attempt has given back its hold"
        spent.append(view.spent_usd)

    in_gateway("openai_compatible", "m", server, tried, strict=False, **{**prices, **options})
    return spent[0]


def bodies(server: FakeProvider) -> list[Any]:
    return [request.body for request in server.queries]


async def streamed(here: Gateway, **options: Any) -> tuple[str, int]:
    """The text of a streamed answer, and its attempts."""
    async with here.stream(Query(service="svc", prompt=PROMPT, **options)) as stream:
        text = "".join([piece.text async for piece in stream])
    answer = stream.answer
    assert answer is not None
    return text, answer.attempts


def test_a_refused_parameter_is_left_out_or_renamed_and_remembered_for_the_model() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        query = Query(service="svc", prompt=PROMPT, temperature=0.5)
        first = await here.query(query)
        assert (first.text, first.attempts) == ("Paris.", 3)
        assert "max_tokens" not in bodies(server)[-1] and bodies(server)[-1][NEW_NAME] == 4096
        assert "temperature" not in bodies(server)[-1]
        # From now on the first request is accepted. Another model has its own form.
        assert (await here.query(query)).attempts == 1
        assert (await here.query(Query(service="svc", prompt=PROMPT, model="other"))).attempts == 2

    serving(test, refused=REASONING)


def test_a_stream_is_requested_again_without_an_option_that_an_old_server_refuses() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        assert await streamed(here) == ("Paris.", 2)
        assert [body.get("stream_options") for body in bodies(server)] == [{"include_usage": True}, None]
        assert await streamed(here) == ("Paris.", 1)

    serving(test, refused=unsupported("stream_options"))


@pytest.mark.parametrize("streams", [True, False], ids=["only streams", "no streams"])
def test_a_model_that_answers_only_in_streams_or_only_without_them_is_called_in_that_way(
    streams: bool,
) -> None:
    async def test(here: Gateway, server: Picky) -> None:
        attempts = []
        for _ in range(2):
            answer = await here.query(Query(service="svc", prompt=PROMPT))
            assert answer.text == "Paris." and not answer.usage.estimated
            text, again = await streamed(here)
            assert text == "Paris."
            attempts.append((answer.attempts, again))
        assert attempts == [(2, 1) if streams else (1, 2), (1, 1)], "each refusal is met once"

    serving(test, streams=streams)


@pytest.mark.parametrize("way", ["whole", "streamed"])
@pytest.mark.parametrize(
    ("kind", "model", "fake"),
    [("openai", "gpt-6.1-terra", FakeOpenAI), ("anthropic", "claude-sonnet-5-5", FakeAnthropic)],
)
def test_every_format_can_change_between_streams_and_whole_answers(
    kind: Any, model: str, fake: type[FakeProvider], way: str
) -> None:
    async def test(here: Gateway, _: Budgets, server: FakeProvider) -> None:
        if way == "whole":
            server.script(error(400, "invalid_request_error", "Stream must be set to true"))
            answer = await here.query(Query(service="svc", prompt=PROMPT))
            assert (answer.text, answer.attempts, answer.usage.estimated) == ("Paris.", 2, False)
        else:
            server.script(
                error(
                    400, "invalid_request_error", "Your organization must be verified to stream this model."
                )
            )
            assert await streamed(here) == ("Paris.", 2)
        assert [bool(body.get("stream")) for body in bodies(server)] == [way != "whole", way == "whole"]

    in_gateway(kind, model, fake(key=KEY), test, api_key=KEY)


@pytest.mark.parametrize("how", ["whole", "streamed"])
def test_max_tokens_is_lowered_to_what_a_small_context_has_left(how: str) -> None:
    async def test(here: Gateway, server: Picky) -> None:
        if how == "whole":
            assert (await here.query(Query(service="svc", prompt=PROMPT))).text == "Paris."
        else:
            assert (await streamed(here))[0] == "Paris."
        assert [body["max_tokens"] for body in bodies(server)] == [4096, 4096 - PROMPT_TOKENS]
        assert (await here.query(Query(service="svc", prompt=PROMPT))).attempts == 1

    serving(test, context=4096)


def test_the_error_names_max_tokens_if_only_the_answer_does_not_fit() -> None:
    """A prompt of 24 tokens is not too long. A request that cannot succeed is sent only once."""

    async def test(here: Gateway, server: Picky) -> None:
        server.limit_sentence = "max_tokens and the prompt exceed context limit"
        with pytest.raises(InvalidRequest) as caught:
            await here.query(Query(service="svc", prompt=PROMPT))
        assert caught.value.kind is Kind.CONTEXT_LENGTH and "lower max_tokens" in str(caught.value)
        assert len(server.queries) == 1

    serving(test, context=4096)


def test_only_the_attempt_that_was_answered_is_paid_for() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        answer = await here.query(Query(service="svc", prompt=PROMPT))
        assert answer.attempts == 2
        costs.append(answer.cost_usd)

    costs: list[Decimal] = []
    spent_usd = serving(test, refused=unsupported("max_tokens", NEW_NAME))
    assert [spent_usd] == costs and spent_usd > 0


def test_a_changed_request_is_not_a_retry_and_uses_none() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        server.script(error(500, "server_error"))
        assert (await here.query(Query(service="svc", prompt=PROMPT, max_tokens=100))).text == "Paris."
        tally = here.services["svc"].service.default_guard.tally
        assert len(server.queries) == 3 and tally.retries == 1

    serving(
        test, refused=unsupported("max_tokens", NEW_NAME), retry=RetryOptions(attempts_max=2, base_s=0.001)
    )


def test_concurrent_callers_all_adapt_to_the_same_refusal() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        queries = [Query(service="svc", prompt=PROMPT, temperature=0.5) for _ in range(20)]
        answers = await asyncio.gather(*map(here.query, queries))
        assert {answer.text for answer in answers} == {"Paris."}
        assert len(server.queries) <= 60

    serving(test, refused=REASONING)


def test_a_server_that_refuses_both_names_does_not_cause_a_loop() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        with pytest.raises(InvalidRequest):
            await here.query(Query(service="svc", prompt=PROMPT))
        assert len(server.queries) == 2

    serving(test, refused=unsupported("max_tokens") | unsupported(NEW_NAME))


def test_a_parameter_that_was_not_the_cause_is_left_out_once_and_then_restored() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        server.script(*[error(400, "invalid", "stream_options is not supported")] * 2)
        with pytest.raises(InvalidRequest) as caught:
            await streamed(here)
        assert caught.value.attempts == 2
        await streamed(here)
        assert ["stream_options" in body for body in bodies(server)] == [True, False, True]

    serving(test)


def test_a_server_with_a_new_objection_each_time_is_called_a_few_times() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        def sentence(request: ReceivedRequest) -> tuple[str, str, str]:
            asked = request.body["max_tokens"]
            return "max_tokens", "invalid", f"max_tokens must be less than or equal to {asked - 1}"

        server._wrong_field = sentence  # type: ignore[method-assign]
        with pytest.raises(InvalidRequest) as caught:
            await here.query(Query(service="svc", prompt=PROMPT))
        assert caught.value.attempts == len(server.queries) == 1 + ANEW_MAX
        assert "max_tokens" in str(caught.value)

    serving(test)


def test_an_operators_setting_is_used_from_the_first_request() -> None:
    async def test(here: Gateway, server: Picky) -> None:
        assert (await here.query(Query(service="svc", prompt=PROMPT, temperature=0.5))).attempts == 1
        assert await streamed(here, temperature=0.5) == ("Paris.", 1)

    serving(
        test,
        refused=REASONING | unsupported("stream_options"),
        leave_out=("temperature", "stream_options"),
        tokens_parameter=NEW_NAME,
    )


def test_the_vendors_sdk_gets_the_same_refusals() -> None:
    """The fake is realistic: the vendor's SDK raises the same refusals, and its request in the other form
    is answered.
    """

    async def main() -> None:
        async with Picky("openai", key=KEY, strict=False) as server:
            server.refused = REASONING
            async with openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY, max_retries=0) as client:
                messages: Any = [{"role": "user", "content": PROMPT}]
                with pytest.raises(openai.BadRequestError) as caught:
                    await client.chat.completions.create(model="m", messages=messages, max_tokens=10)
                assert (caught.value.param, caught.value.code) == ("max_tokens", "unsupported_parameter")
                answer = await client.chat.completions.create(
                    model="m", messages=messages, max_completion_tokens=10
                )
                assert answer.choices[0].message.content == "Paris."

    asyncio.run(main())
