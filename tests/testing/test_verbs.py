"""The verbs that set up a fake provider, and its complaints about requests and steps that a test did not intend."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from koo.testing.providers import (
    FakeAnthropic,
    FakeCompatible,
    FakeGemini,
    FakeMisused,
    FakeOpenAI,
    FakePerplexity,
    FakeProvider,
    Gate,
    answer,
    cut,
    delay,
    error,
    stream,
)

CLAUDE = "claude-sonnet-5-5"
FAKES: list[Callable[..., FakeProvider]] = [
    FakeAnthropic,
    FakeOpenAI,
    FakeCompatible,
    FakeGemini,
    FakePerplexity,
]


def client_of(server: FakeProvider, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.base_url, api_key="test-key", max_retries=0, **options)


def ask(client: anthropic.Anthropic, prompt: str = "Capital of France?") -> str:
    asked = client.messages.create(
        model=CLAUDE, max_tokens=100, messages=[{"role": "user", "content": prompt}]
    )
    (block,) = asked.content
    assert block.type == "text"
    return block.text


def status_of(client: anthropic.Anthropic) -> int:
    with pytest.raises(anthropic.APIStatusError) as caught:
        ask(client)
    return caught.value.status_code


# ── verbs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_verb_applies_until_the_next_one() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.fails(529)
        assert [status_of(client) for _ in range(3)] == [529, 529, 529]
        server.answers("Boots.")
        assert [ask(client), ask(client)] == ["Boots.", "Boots."]
        assert server.attempts == 5 and server.requests[-1].prompt == "Capital of France?"


def test_a_verb_with_times_applies_before_the_others_and_then_ends() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.answers("always").fails(529, times=2).answers("once", times=1)
        assert [status_of(client), status_of(client)] == [529, 529]
        assert [ask(client), ask(client)] == ["once", "always"]


def test_headers_and_retry_after_are_sent() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.fails(429, retry_after_s=7, headers={"x-from": "test"}, times=1)
        with pytest.raises(anthropic.RateLimitError) as caught:
            ask(client)
        sent = caught.value.response.headers
        assert (sent["retry-after"], sent["x-from"]) == ("7", "test")


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503, 529])
def test_an_error_given_only_by_its_status_has_the_vendors_format(
    fake: Callable[..., FakeProvider], status: int
) -> None:
    failure = fake().failure(status)
    assert failure.status == status and failure.type is not None


def test_the_vendors_sdks_raise_the_error_for_a_status() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.fails(401)
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            ask(client)
    with (
        FakeOpenAI() as other,
        openai.OpenAI(base_url=other.base_url, api_key="test-key", max_retries=0) as client_2,
    ):
        other.fails(429, times=1)
        with pytest.raises(openai.RateLimitError) as caught:
            client_2.responses.create(model="gpt-6.1-terra", input="Hi")
        assert caught.value.code == "rate_limit_exceeded"


def test_a_connection_can_be_dropped_and_a_response_cut() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.drops(times=1).cuts(after=60, times=1)
        for _ in range(2):
            with pytest.raises(anthropic.APIConnectionError):
                ask(client)
        assert ask(client) == "Paris." and server.attempts == 3


def test_a_stream_is_cut_after_a_number_of_pieces() -> None:
    came: list[str] = []

    def read(client: anthropic.Anthropic) -> None:
        question: Any = [{"role": "user", "content": "Hi"}]
        with client.messages.stream(model=CLAUDE, max_tokens=100, messages=question) as pieces:
            assert pieces.response.headers["x-from"] == "test"
            came.extend(pieces.text_stream)

    with FakeAnthropic() as server, client_of(server) as client:
        server.streams(["Par", "is", "."], cut_after=2, headers={"x-from": "test"}, times=1)
        with pytest.raises(Exception, match="peer closed connection"):
            read(client)
        assert "".join(came) == "Paris"


def test_hangs_sends_no_response_and_slow_sends_a_late_one() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.hangs(times=1).slow(0.01, "later", times=1)
        with pytest.raises(anthropic.APITimeoutError):
            ask(client.with_options(timeout=0.1))
        assert ask(client) == "later" and server.attempts == 2


def test_a_gate_holds_a_request_across_threads() -> None:
    async def main() -> None:
        gate = Gate()
        with FakeAnthropic() as server, client_of(server) as client:
            server.waits_for(gate, "let go", times=1)
            asked = asyncio.create_task(asyncio.to_thread(ask, client))
            await gate.arrived()
            assert server.attempts == 1 and not asked.done()
            gate.open()
            assert await asked == "let go"

    asyncio.run(main())


def test_an_outage_also_fails_the_unbilled_checks_and_a_few_failures_do_not() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.fails(529, times=1)
        assert client.models.list().data and status_of(client) == 529
        server.fails(503)
        with pytest.raises(anthropic.InternalServerError):
            client.models.list()
        server.answers()
        assert client.models.list().data
        server.fails(429)
        assert client.models.list().data, "a limit on queries does not affect checks"


def test_an_error_costs_nothing() -> None:
    with FakeAnthropic() as server, client_of(server) as client:
        server.fails(500, times=1)
        assert status_of(client) == 500 and server.billed_usd == 0
        assert ask(client) and server.billed_usd > Decimal(0)


# ── strict ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", ["Paris.", {"text": "Paris."}, None, answer, delay(1, "Paris."), Gate("x")])  # type: ignore[arg-type]
def test_a_value_that_is_not_a_step_raises_immediately(step: Any) -> None:
    server = FakeAnthropic()
    with pytest.raises(TypeError, match="a step of a script is"):
        server.script(step)
    with pytest.raises(TypeError):
        server.default = step


def test_cut_and_stream_refuse_wrong_arguments() -> None:
    server = FakeAnthropic()
    with pytest.raises(TypeError, match="cut takes an answer"):
        server.script(cut(10, stream(["a"])))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list of pieces"):
        server.streams("Paris")
    with pytest.raises(TypeError):
        server.fails(529, retries=3)
    with pytest.raises(ValueError, match="times is 0"):
        server.fails(529, times=0)


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (
            lambda server: server.streams(["a", "b"], cut_after=3),
            r"cut_after is 3, but the stream has 2 piece",
        ),
        (lambda server: server.streams(["a"], stall_after=-1), "stall_after is -1"),
        (lambda server: server.streams(piece for piece in "ab"), "list of pieces"),
        (lambda server: server.streams(["a", 2]), "a piece of a stream is a string, not 2"),
        (lambda server: server.answers(None), "the text of an answer is a string, not None"),
        (lambda server: server.fails(99), "the status of an error is 200 to 599, not 99"),
        (lambda server: server.fails(True), "not True"),
        (lambda server: server.fails(529, times=2.5), "times is 2.5"),
        (
            lambda server: server.fails(429, retry_after_s="10"),
            "retry_after_s is a number of seconds, not '10'",
        ),
        (lambda server: server.cuts(after=-1), "cut after 0 bytes or more, not -1"),
        (lambda server: server.slow(-1), "a delay is 0 s or more, not -1"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_fault_that_could_not_occur_raises_immediately(misuse: Callable[[Any], object], said: str) -> None:
    """Otherwise the test would pass although nothing failed in it."""
    with pytest.raises((TypeError, ValueError), match=said):
        misuse(FakeAnthropic())


def test_a_fault_without_effect_fails_the_test() -> None:
    """A response may be complete before it would be cut, and only a stream can fail after a number of pieces."""
    with (
        pytest.raises(FakeMisused, match=r"a cut after 9999 of \d+ bytes had no effect: POST /v1/messages"),
        FakeAnthropic().cuts(after=9999) as server,
        client_of(server) as client,
    ):
        ask(client)
    with (
        pytest.raises(FakeMisused, match="cut_after=1 on a query that is not streamed had no effect"),
        FakeAnthropic().streams(["a", "b"], cut_after=1) as server,
        client_of(server) as client,
    ):
        assert ask(client) == "ab"


def test_a_stream_set_for_all_requests_answers_a_whole_query_completely() -> None:
    with FakeAnthropic().streams(["a", "b"], cut_after=1) as server, client_of(server) as client:
        assert ask(client) == "ab"
        question: Any = [{"role": "user", "content": "?"}]
        with (
            pytest.raises(Exception, match="peer closed connection"),
            client.messages.stream(model=CLAUDE, max_tokens=100, messages=question) as pieces,
        ):
            pieces.get_final_text()


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_a_taken_port_raises_in_the_test(fake: Callable[..., FakeProvider]) -> None:
    async def main(port: int) -> None:
        async with fake(port=port):
            pass

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"), fake(port=port):
            pass
        with pytest.raises(OSError, match="in use"):
            asyncio.run(main(port))


def test_unused_steps_fail_the_test() -> None:
    with (
        pytest.raises(FakeMisused, match=r"1 step\(s\) of its script were not used: Failure\(status=529"),
        FakeAnthropic() as server,
    ):
        server.fails(529, times=1)
    with FakeAnthropic(strict=False) as server:
        server.fails(529, times=1)


def test_a_refused_request_fails_the_test() -> None:
    def use(**options: Any) -> FakeProvider:
        with FakeAnthropic(key="another", **options) as server, client_of(server) as client:
            assert status_of(client) == 401
        return server

    with pytest.raises(FakeMisused, match=r"refused POST /v1/messages: 401 .*invalid x-api-key"):
        use()
    assert len(use(strict=False).diary.refused) == 1


def test_a_fake_that_fails_reports_it_and_closes_the_connection() -> None:
    class Broken(FakeAnthropic):
        def plain(self, *_: Any) -> dict[str, Any]:
            raise KeyError("of a faulty vendor class")

    with (
        Broken(strict=False) as server,
        client_of(server) as client,
        pytest.raises(anthropic.APIConnectionError),
    ):
        ask(client)
    server.strict = True
    with pytest.raises(FakeMisused, match="failed on POST /v1/messages: KeyError"):
        server.check()


def test_a_failed_test_keeps_its_error_and_gets_the_complaints_as_notes() -> None:
    def fail() -> None:
        with FakeAnthropic() as server:
            server.script(error(500), error(500))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    said = "FakeAnthropic: 2 step(s) of its script were not used: Failure(status=500)"
    assert caught.value.__notes__ == [said]
