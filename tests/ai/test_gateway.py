"""The outcome of a query: answers, refusals, retries, fallback and money, checked at the server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from koo.ai.stream import AnswerStream
from koo.ai.types import Query
from koo.clock import SYSTEM_CLOCK
from koo.deadlines import Deadline
from koo.errors import (
    AllServicesFailed,
    AuthenticationFailed,
    BudgetExceeded,
    CircuitOpen,
    ExternalServiceError,
    InvalidRequest,
    Kind,
    PriceUnknown,
    RateLimited,
    ServiceFailed,
    ServiceTimeout,
    UnknownService,
)
from koo.options import BreakerOptions, LimitOptions, RetryOptions
from koo.testing.polling import until
from koo.testing.providers import Gate, Step, answer, cut, error, hang, html, nothing
from tests.ai.worlds import World, run


async def texts(chunks: AnswerStream) -> list[str]:
    return [str(chunk) async for chunk in chunks]


async def failure_of(awaitable: Any) -> ExternalServiceError:
    with pytest.raises(ExternalServiceError) as caught:
        await awaitable
    return caught.value


def test_an_answer_has_its_text_usage_exact_cost_and_attempts() -> None:
    async def test(world: World) -> None:
        world.claude.script(answer("Paris.", input_tokens=14, output_tokens=5))
        got = await world.ask()
        assert str(got) == got.text == "Paris." and got.service == "claude"
        assert (got.usage.input_tokens, got.usage.output_tokens) == (14, 5)
        assert got.cost_usd == world.claude.billed_usd == world.spent_usd() and isinstance(
            got.cost_usd, Decimal
        )
        assert got.attempts == len(world.claude.queries) == 1 and got.latency_s > 0
        assert world.nothing_is_taken()

    run(test)


def test_max_tokens_is_always_sent_and_the_callers_tag_never() -> None:
    async def test(world: World) -> None:
        await world.ask(tag="secret-tag", metadata={"who": "secret-user"})
        body = world.claude.queries[0].body
        assert body["max_tokens"] == 4096
        assert "secret" not in str(body)

    run(test)


@pytest.mark.parametrize(
    ("step", "kind", "sent"),
    [
        (error(529, "overloaded_error"), Kind.OVERLOADED, 4),
        (error(500, "api_error"), Kind.SERVER_ERROR, 4),
        (html(502), Kind.SERVER_ERROR, 4),
        (nothing(), Kind.CONNECTION, 4),
        (cut(after_bytes=60), Kind.CONNECTION, 4),
        (error(401, "authentication_error"), Kind.AUTH, 1),
        (error(400, "invalid_request_error"), Kind.INVALID_REQUEST, 1),
        (error(404, "not_found_error"), Kind.NOT_FOUND, 1),
        (error(413, "request_too_large"), Kind.TOO_LARGE, 1),
        (error(429, "rate_limit_error", code="enforced_spend_limit_reached"), Kind.QUOTA, 1),
    ],
)
def test_transient_failures_are_retried_and_permanent_ones_are_not(step: Any, kind: Kind, sent: int) -> None:
    """Counted at the server: the error's number of attempts equals the requests that arrived."""

    async def test(world: World) -> None:
        world.claude.do(step)
        failed = await failure_of(world.ask())
        assert failed.kind == kind
        assert failed.attempts == len(world.claude.queries) == sent
        assert world.nothing_is_taken()

    run(test)


def test_a_transient_failure_is_not_visible_to_the_caller() -> None:
    """A kept connection that the server had closed is not an attempt: the query is sent again on a new connection."""

    async def test(world: World) -> None:
        world.claude.script(error(529, "overloaded_error"), nothing(), answer("At last."))
        got = await world.ask()
        assert got.text == "At last." and got.attempts == 2 and len(world.claude.queries) == 3

    run(test)


def test_a_failure_that_the_server_asks_not_to_retry_is_not_retried() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(500, "api_error", headers={"x-should-retry": "false"}))
        with pytest.raises(ExternalServiceError) as caught:
            await world.ask()
        assert caught.value.attempts == 1 and len(world.claude.queries) == 1

    run(test)


def test_a_429_without_a_time_is_retried_when_the_limit_has_reset() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(429, "rate_limit_error"))
        answered = await world.ask(timeout_s=10)
        assert answered.attempts == 2 and len(world.claude.queries) == 2

    run(test)


def test_all_callers_wait_as_long_as_a_429_says() -> None:
    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        world.claude.script(error(429, "rate_limit_error", headers={"retry-after": "1"}))
        began = loop.time()
        first = asyncio.ensure_future(world.ask())
        await until(lambda: world.guard().cooldown.until > loop.time())
        second = await world.ask()
        assert loop.time() - began >= 1.0, "the other caller waited too"
        assert (await first).attempts == 2 and second.attempts == 1
        assert world.guard().breaker.consecutive == 0, "a 429 is not a failure"

    run(test)


def test_a_call_whose_pause_would_outlast_its_deadline_is_refused_immediately_with_a_retry_time() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(429, "rate_limit_error", headers={"retry-after": "3600"}))
        failed = await failure_of(world.ask(timeout_s=30))
        assert isinstance(failed, RateLimited) and failed.retry_after_s is not None
        assert 3500 < failed.retry_after_s < 3800
        refused = await failure_of(world.ask(timeout_s=30))
        assert isinstance(refused, RateLimited) and len(world.claude.queries) == 1

    run(test)


def test_a_refused_key_stops_all_queries_until_it_works_again() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(401, "authentication_error"))
        assert isinstance(await failure_of(world.ask()), AuthenticationFailed)
        refused = await failure_of(world.ask())
        assert refused.kind == Kind.KEY_REFUSED and len(world.claude.queries) == 1
        assert (await world.ask(service="openai")).text, "another service's key is its own"
        world.gateway.services["claude"].service.unblock_key()
        assert (await world.ask()).text

    run(test)


def test_five_failures_open_the_circuit_and_the_next_call_is_not_sent() -> None:
    async def test(world: World) -> None:
        world.claude.script(*[error(500, "api_error")] * 5)
        for _ in range(5):
            await failure_of(world.ask())
        refused = await failure_of(world.ask())
        assert isinstance(refused, CircuitOpen) and refused.retry_after_s is not None
        assert "5 failures in a row" in str(refused) and refused.retry_after_s >= 59
        assert len(world.claude.queries) == 5

    run(test, retry=RetryOptions(attempts_max=1))


def test_a_thousand_callers_mistakes_do_not_open_the_circuit() -> None:
    async def test(world: World) -> None:
        world.claude.script(*[error(400, "invalid_request_error")] * 100)
        for _ in range(100):
            assert isinstance(await failure_of(world.ask()), InvalidRequest)
        assert (await world.ask()).text

    run(test, limits=LimitOptions())


def test_one_models_failures_do_not_stop_another_model() -> None:
    async def test(world: World) -> None:
        world.claude.script(*[error(529, "overloaded_error")] * 3)
        for _ in range(3):
            await failure_of(world.ask())
        assert isinstance(await failure_of(world.ask()), CircuitOpen)
        assert (await world.ask(model="claude-haiku-5-5")).model == "claude-haiku-5-5"

    run(test, retry=RetryOptions(attempts_max=1), breaker=BreakerOptions(failure_threshold=3))


def test_koos_own_limit_refuses_a_call_immediately_with_a_retry_time() -> None:
    async def test(world: World) -> None:
        for _ in range(3):
            await world.ask()
        refused = await failure_of(world.ask())
        assert isinstance(refused, RateLimited) and refused.kind == Kind.RATE_LIMITED
        assert refused.retry_after_s is not None and 55 < refused.retry_after_s <= 62
        assert "3 requests a minute" in str(refused) and len(world.claude.queries) == 3

    run(test, limits=LimitOptions(per_minute=3))


def limits(**left: tuple[int, int]) -> dict[str, str]:
    """The headers of an Anthropic response: for each limit its size and what is left of it. All reset in 30 s."""
    resets_at = datetime.fromtimestamp(SYSTEM_CLOCK.wall() + 30, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        f"anthropic-ratelimit-{name.replace('_', '-')}-{key}": value
        for name, (limit, remaining) in left.items()
        for key, value in (("limit", str(limit)), ("remaining", str(remaining)), ("reset", resets_at))
    }


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("left", "sent"),
    [
        ({"requests": (50, 40), "tokens": (100_000, 90_000)}, 3),
        ({"requests": (50, 2), "tokens": (100_000, 95_000), "output_tokens": (9_000, 8_900)}, 1),
        ({"requests": (50, 45), "tokens": (100_000, 95_000), "output_tokens": (9_000, 100)}, 1),
    ],
    ids=["plenty", "few requests", "tokens for two answers"],
)
def test_calls_keep_to_the_providers_scarcest_limit(
    left: dict[str, tuple[int, int]], sent: int, streamed: bool
) -> None:
    """Whole answers and streams report what is left. Three more callers, which do not wait, call at the same time."""
    plenty = limits(requests=(50, 49), output_tokens=(9_000, 8_950))

    async def test(world: World) -> None:
        world.claude.script(answer(output_tokens=50, headers=plenty)).answers(headers=limits(**left))
        await world.ask()
        if streamed:
            assert await texts(world.gateway.stream(Query(service="claude", prompt="Hi")))
        else:
            await world.ask()
        before = len(world.claude.queries)
        for _ in range(3):
            with suppress(RateLimited):
                await world.ask(on_limit="refuse")
        assert len(world.claude.queries) - before == sent

    run(test)


def test_a_deadline_ends_the_whole_query_and_is_not_the_services_failure() -> None:
    async def test(world: World) -> None:
        world.claude.script(hang())
        late = await failure_of(world.ask(timeout_s=0.1))
        assert (
            isinstance(late, ServiceTimeout) and isinstance(late, TimeoutError) and late.kind == Kind.DEADLINE
        )
        assert world.guard().breaker.window.failures == 0 and world.nothing_is_taken()
        world.claude.script(hang())
        with pytest.raises(TimeoutError):
            async with Deadline(0.1):
                await world.ask()

    run(test)


def test_an_attempt_that_takes_too_long_is_a_failure_and_booked_at_its_bound() -> None:
    """The attempt may have been billed, so booking less than the worst case could be too little."""

    async def test(world: World) -> None:
        world.claude.script(hang())
        failed = await failure_of(world.ask(max_tokens=100))
        assert failed.kind == Kind.TIMEOUT and world.guard().breaker.consecutive == 1
        bound = world.spent_usd()
        assert bound > Decimal("0.001") and world.nothing_is_taken()

    run(test, attempt_timeout_s=0.1, slow_s=0.05, retry=RetryOptions(attempts_max=1))


# ── fallback ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fallback_answers_when_the_first_fails_or_refuses() -> None:
    async def test(world: World) -> None:
        world.claude.script(*[error(529, "overloaded_error")] * 4)
        got = await world.ask(fallback=("openai",))
        assert got.service == "openai" and len(world.claude.queries) == 4

    run(test)


def test_a_callers_mistake_ends_the_query_without_fallback() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(400, "invalid_request_error"))
        assert isinstance(await failure_of(world.ask(fallback=("openai",))), InvalidRequest)
        assert world.openai.queries == []

    run(test)


def test_when_all_fail_the_error_is_a_group_with_each_services_reason() -> None:
    async def test(world: World) -> None:
        world.claude.script(*[error(529, "overloaded_error")] * 4)
        world.openai.script(*[error(503, "server_error")] * 4)
        failed = await failure_of(world.ask(fallback=("openai",)))
        assert isinstance(failed, AllServicesFailed) and issubclass(AllServicesFailed, ExceptionGroup)
        assert [str(e).split(":")[0] for e in failed.exceptions] == ["claude", "openai"]
        assert failed.attempts == 8 and "claude" in str(failed) and "openai" in str(failed)

    run(test)


def test_concurrent_queries_keep_their_order_and_fail_independently() -> None:
    async def test(world: World) -> None:
        from koo.ai.types import Query

        world.claude.script(error(400, "invalid_request_error"))
        queries = [Query(service="claude", prompt="a"), Query(service="openai", prompt="b")]
        first, second = await world.gateway.query_many(queries)
        assert isinstance(first, InvalidRequest) and not isinstance(second, Exception)
        assert second.service == "openai"

    run(test)


# ── money ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_hundred_concurrent_callers_never_exceed_the_budget() -> None:
    """Booked plus held money never exceeds the budget, and the ledger equals the provider's own bill."""

    async def test(world: World) -> None:
        highest = Decimal(0)

        async def ask() -> bool:
            nonlocal highest
            try:
                await world.ask(max_tokens=1000)
            except BudgetExceeded:
                return False
            finally:
                view = world.budgets.view("claude")
                highest = max(highest, view.spent_usd + view.held_usd)
            return True

        answered = sum(await asyncio.gather(*(ask() for _ in range(200))))
        assert 0 < answered < 200 and highest <= Decimal("0.10")
        assert world.spent_usd() == world.claude.billed_usd and world.nothing_is_taken()

    run(test, daily_budget_usd=Decimal("0.10"), limits=LimitOptions())


def test_a_refusal_over_budget_shows_the_amounts_and_when_the_day_ends() -> None:
    async def test(world: World) -> None:
        refused = await failure_of(world.ask())
        assert isinstance(refused, BudgetExceeded) and world.claude.queries == []
        assert "$0.0001" in str(refused) and refused.retry_after_s is not None
        assert 0 < refused.retry_after_s <= 86_400

    run(test, daily_budget_usd=Decimal("0.0001"))


def test_an_unknown_price_is_refused_and_never_zero() -> None:
    async def test(world: World) -> None:
        refused = await failure_of(world.ask(model="claude-unheard-of"))
        assert (
            isinstance(refused, PriceUnknown) and "INPUT_PRICE" in str(refused) and world.claude.queries == []
        )

    run(test)


def test_responses_with_status_400_and_above_are_not_billed() -> None:
    async def test(world: World) -> None:
        world.claude.script(error(400, "invalid_request_error"))
        await failure_of(world.ask())
        world.claude.script(error(401, "authentication_error"))
        await failure_of(world.ask())
        assert world.spent_usd() == 0 and world.nothing_is_taken()

    run(test)


def test_an_answer_lost_on_the_way_back_is_booked_at_its_bound() -> None:
    async def test(world: World) -> None:
        world.claude.script(cut(after_bytes=60))
        await failure_of(world.ask(max_tokens=100))
        assert world.spent_usd() >= world.claude.billed_usd > 0

    run(test, retry=RetryOptions(attempts_max=1))


def test_a_cancelled_caller_returns_everything_and_pays_for_the_request_that_was_sent() -> None:
    async def test(world: World) -> None:
        gate = Gate()
        world.claude.script(gate)
        task = asyncio.ensure_future(world.ask())
        await gate.arrived()
        assert world.budgets.view("claude").held_usd > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        assert world.nothing_is_taken() and world.spent_usd() > 0
        assert world.guard().breaker.consecutive == 0, "a caller that leaves is not the provider's failure"

    run(test)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": ""},
        {"prompt": "  \n"},
        {"prompt": 5},
        {"prompt": None},
        {"prompt": b"bytes"},
        {"prompt": "\ud800"},
        {"prompt": "x" * 10_000_000},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": 10**18},
        {"max_tokens": 10**400},
        {"system": 5},
        {"system": "\ud800"},
        {"tag": 5},
        {"temperature": 3},
        {"temperature": float("nan")},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"on_limit": "later"},
        {"model": ""},
        {"model": "claude\ud800"},
        {"model": "claude\r\nx: y"},
        {"model": "claude\0"},
        {"fallback": None},
        {"fallback": "openai"},
        {"fallback": b"openai"},
        {"fallback": (["openai"],)},
        {"fallback": ("openai",) * 21},
        {"metadata": 5},
    ],
)
def test_bad_input_raises_before_anything_is_sent(options: dict[str, Any]) -> None:
    async def test(world: World) -> None:
        refused = await failure_of(world.ask(**options))
        assert isinstance(refused, InvalidRequest) and len(str(refused)) < 200
        assert world.claude.queries == [] and world.nothing_is_taken()

    run(test)


@pytest.mark.parametrize("name", ["cloude", "", "x" * 10_000, None, 7, b"claude", ["claude"], {}, "\ud800"])
def test_an_unknown_service_raises_with_the_known_names(name: Any) -> None:
    """The error can be encoded and is short, whatever was passed: a log or a terminal cannot write a lone surrogate."""

    async def test(world: World) -> None:
        refused = await failure_of(world.ask(service=name))
        assert isinstance(refused, UnknownService) and "claude, openai" in str(refused)
        assert len(str(refused).encode()) < 200

    run(test)


def test_a_prompt_passed_as_the_service_is_not_quoted() -> None:
    async def test(world: World) -> None:
        refused = await failure_of(world.ask(service="the secret plan", prompt="claude"))
        assert isinstance(refused, UnknownService) and "secret" not in str(refused) + refused.service

    run(test)


def test_no_error_quotes_the_prompt_or_the_key() -> None:
    steps: list[Step] = [
        error(400, "invalid_request_error", message="bad: MARKED-PROMPT with test-key"),
        error(401, "authentication_error", message="invalid x-api-key: test-key"),
        error(500, "api_error", message="MARKED-PROMPT"),
        html(502),
    ]

    async def test(world: World) -> None:
        for step in steps:
            world.claude.script(step)
            failed = await failure_of(world.ask("MARKED-PROMPT"))
            world.gateway.services["claude"].service.reset()
            shown = f"{failed} {failed!r} {failed.__dict__} {failed.__cause__!r} {world.events.recent}"
            assert "MARKED" not in shown and "test-key" not in shown

    run(test, retry=RetryOptions(attempts_max=1))


def test_an_unreachable_server_is_a_failure_of_the_service() -> None:
    async def test(world: World) -> None:
        await world.claude.stop()
        failed = await failure_of(world.ask())
        assert isinstance(failed, ServiceFailed) and failed.kind == Kind.CONNECTION and failed.attempts == 4
        assert world.spent_usd() == 0, "nothing was sent, so nothing was billed"

    run(test)
