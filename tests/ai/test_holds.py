"""Holds are as large as what can still be billed, and no larger."""

from __future__ import annotations

import asyncio
import decimal
from decimal import Decimal
from typing import Any

import pytest

from koo.ai.providers.base import CompletionChunk, Request
from koo.ai.providers.transport import FRAMING_TOKENS
from koo.ai.types import Query, Usage
from koo.budget_options import BudgetOptions
from koo.errors import BudgetExceeded, ExternalServiceError, InvalidRequest, Kind
from koo.testing.clock import run_virtual
from koo.testing.providers import answer, stream
from tests.ai.virtual import INPUT_TOKENS_MAX, VirtualWorld, words
from tests.ai.worlds import World, run

PAST = "You are a careful engineer, and this is what was said. " * 100


def held(world: VirtualWorld) -> Decimal:
    return world.budgets.view("first").held_usd


# ── what a stream reports ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_with_counted_input_holds_only_that_input_and_its_longest_answer() -> None:
    async def main() -> None:
        world = VirtualWorld()
        read = Usage(input_tokens=2, cache_read_tokens=3, output_tokens=1)
        world.first.chunks = [
            (0, CompletionChunk(usage=read, input_counted=True, output_counted=False)),
            *words("a", "b", pause_s=1),
        ]
        chunks = world.stream(max_tokens=50)
        await anext(chunks)
        assert held(world) == (5 * Decimal(3) + 50 * Decimal(15)) / 1_000_000 < world.bound_usd(50)
        assert [str(chunk) async for chunk in chunks] == ["b"]
        assert held(world) == 0

    run_virtual(main)


def test_a_report_without_a_final_input_count_shrinks_no_hold() -> None:
    async def main() -> None:
        world = VirtualWorld()
        world.first.chunks = [
            (0, CompletionChunk(text="a", usage=Usage(input_tokens=2))),
            *words("b", pause_s=1),
        ]
        chunks = world.stream(max_tokens=50)
        await anext(chunks)
        assert held(world) == world.bound_usd(50)

    run_virtual(main)


def test_an_agents_calls_fit_into_the_daily_budget_once_their_prompts_are_counted() -> None:
    """The prompts of ten concurrent calls are nearly all cached. Each call holds its longest answer, not its prompt's
    bytes.
    """

    async def test(world: World) -> None:
        prompt = PAST * 60
        world.claude.script(answer("ok", input_tokens=500, cache_read_tokens=80_000))
        await world.ask(prompt, max_tokens=32_000)
        assert len(prompt) * Decimal(2) / 1_000_000 > Decimal("0.6")
        world.claude.default = stream(["ok "] * 3, input_tokens=81_000)
        streams = [
            world.gateway.stream(Query(service="claude", prompt=f"{prompt} And {number}?", max_tokens=32_000))
            for number in range(10)
        ]
        await asyncio.gather(*(anext(one) for one in streams))
        view = world.budgets.view("claude")
        assert view.held_usd < Decimal(5) and view.limit_usd == Decimal(10)
        for one_stream in streams:
            await one_stream.aclose()

    run(test)


# ── clamp and max_cost_usd ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_attempt_above_max_cost_usd_is_refused_and_nothing_is_sent() -> None:
    async def main() -> None:
        world = VirtualWorld()
        with pytest.raises(BudgetExceeded) as caught:
            await world.ask(max_tokens=1000, max_cost_usd=0.01)
        assert caught.value.kind is Kind.BUDGET_EXCEEDED and "max_cost_usd" in str(caught.value)
        assert "$0.0153" in str(caught.value) and "($0.01)" in str(caught.value)
        assert world.first.asked == 0 and held(world) == 0
        assert str(await world.ask(max_tokens=1000, max_cost_usd=world.bound_usd(1000))) == "ok"

    run_virtual(main)


def test_a_refusal_for_cost_moves_on_to_a_fallback() -> None:
    async def main() -> None:
        world = VirtualWorld()
        with pytest.raises(ExternalServiceError):
            await world.ask(max_tokens=1000, max_cost_usd=0, fallback=("second",))
        assert world.second.asked == 0
        assert not (await world.ask(max_tokens=1000, fallback=("second",))).clamped

    run_virtual(main)


def test_clamp_lowers_max_tokens_to_what_the_query_may_cost() -> None:
    async def main() -> None:
        world = VirtualWorld()
        asked: list[Request] = []

        async def note(request: Request) -> Any:
            asked.append(request)
            return await world.second.complete(request)

        world.first.script = [note]
        most = (3 * Decimal(INPUT_TOKENS_MAX) + 15 * Decimal(40) + 14) / 1_000_000
        response = await world.ask(max_tokens=1000, max_cost_usd=most, clamp=True)
        assert response.clamped and response.max_tokens == 40 == asked[0].max_tokens

    run_virtual(main)


@pytest.mark.parametrize("streamed", [False, True])
def test_clamp_lowers_max_tokens_to_what_all_budgets_allow(streamed: bool) -> None:
    async def main() -> None:
        room = (3 * Decimal(INPUT_TOKENS_MAX) + 15 * Decimal(20)) / 1_000_000
        own = BudgetOptions(name="nightly", limit_usd=room, tag="night")
        world = VirtualWorld(own=[own])
        world.first.chunks = words("a", pause_s=0)
        if streamed:
            chunks = world.stream(max_tokens=1000, clamp=True, tag="night")
            assert [str(chunk) async for chunk in chunks] == ["a"]
            assert chunks.answer is not None and chunks.answer.clamped and chunks.answer.max_tokens == 20
        else:
            response = await world.ask(max_tokens=1000, clamp=True, tag="night")
            assert response.clamped and response.max_tokens == 20
        free = await world.ask(max_tokens=1000, clamp=True)
        assert not free.clamped and free.max_tokens == 1000

    run_virtual(main)


def test_clamp_takes_the_holds_of_other_calls_into_account() -> None:
    async def main() -> None:
        world = VirtualWorld(daily_budget_usd=Decimal("0.01"))
        world.first.chunks = words("a", "b", pause_s=1)
        chunks = world.stream(max_tokens=400)
        await anext(chunks)
        left = Decimal("0.01") - world.bound_usd(400)
        response = await world.ask(max_tokens=1000, clamp=True)
        assert response.clamped and response.max_tokens is not None
        assert world.bound_usd(response.max_tokens) <= left < world.bound_usd(response.max_tokens + 1)
        await chunks.aclose()

    run_virtual(main)


def test_a_call_without_room_is_refused_with_a_short_wait() -> None:
    """Running calls hold their worst case, and most of it is released when they end."""

    async def main() -> None:
        world = VirtualWorld(daily_budget_usd=Decimal("0.01"))
        world.first.chunks = words("a", "b", pause_s=1)
        chunks = world.stream(max_tokens=400)
        await anext(chunks)
        with pytest.raises(BudgetExceeded) as caught:
            await world.ask(max_tokens=400)
        assert caught.value.retry_after_s == 2.0
        await chunks.aclose()
        assert str(await world.ask(max_tokens=100)) == "ok"
        with pytest.raises(BudgetExceeded) as caught:
            await world.ask(max_tokens=640)
        assert caught.value.retry_after_s is not None and caught.value.retry_after_s > 60

    run_virtual(main)


def test_a_clamped_query_is_refused_if_not_even_one_token_fits() -> None:
    async def main() -> None:
        world = VirtualWorld(daily_budget_usd=Decimal("0.0001"))
        with pytest.raises(BudgetExceeded):
            await world.ask(max_tokens=1000, clamp=True)
        assert world.first.asked == 0 and held(world) == 0

    run_virtual(main)


def test_clamp_respects_the_providers_minimum() -> None:
    """With a smaller max_tokens the provider would refuse the request, with an error that says nothing about money."""

    async def main() -> None:
        world = VirtualWorld()
        world.first.output_tokens_min = 16
        input_usd = 3 * Decimal(INPUT_TOKENS_MAX) / 1_000_000
        with pytest.raises(BudgetExceeded):
            await world.ask(
                max_tokens=1000, max_cost_usd=input_usd + 15 * Decimal(15) / 1_000_000, clamp=True
            )
        assert world.first.asked == 0 and held(world) == 0
        least = input_usd + 15 * Decimal(16) / 1_000_000
        assert (await world.ask(max_tokens=1000, max_cost_usd=least, clamp=True)).max_tokens == 16
        assert (await world.ask(max_tokens=9, max_cost_usd=least, clamp=True)).max_tokens == 9

    run_virtual(main)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_cost_usd": -1},
        {"max_cost_usd": "1"},
        {"max_cost_usd": float("nan")},
        {"max_cost_usd": True},
        {"clamp": 1},
    ],
)
def test_invalid_options_are_refused(wrong: dict[str, Any]) -> None:
    async def main() -> None:
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            await VirtualWorld().ask(**wrong)

    run_virtual(main)


# ── the last answer bounds the next prompt ────────────────────────────────────────────────────────────────────────────


def test_a_conversations_next_prompt_is_held_by_its_last_count() -> None:
    async def test(world: World) -> None:
        ledger = world.budgets.ledger
        amounts = []
        hold = ledger.hold

        def note(budgets: Any, amount: int) -> Any:
            amounts.append(amount)
            return hold(budgets, amount)

        ledger.hold = note  # type: ignore[method-assign]
        world.claude.script(answer("ok", input_tokens=1400), answer("ok", input_tokens=1410))
        await world.ask(PAST, max_tokens=1)
        await world.ask(PAST + "And now?", max_tokens=1)
        first, second = (amount / amounts[0] for amount in amounts)
        bytes_first, bytes_second = len(PAST) + FRAMING_TOKENS, 1400 + 1400 // 32 + 8 + FRAMING_TOKENS
        assert second / first == pytest.approx(bytes_second / bytes_first, rel=0.01)

    run(test)


# ── the arithmetic ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_callers_decimal_context_changes_no_amount() -> None:
    """The caller's context has three digits and traps inexact results."""

    async def main() -> None:
        world = VirtualWorld(input_price=Decimal("3.123456789"), output_price=Decimal("15.987654321"))
        with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact, decimal.Rounded])):
            response = await world.ask(max_tokens=777, clamp=True, max_cost_usd=Decimal("0.012345678901"))
            world.first.chunks = [
                (0, CompletionChunk(usage=Usage(input_tokens=9), input_counted=True, output_counted=False)),
                *words("a", pause_s=0),
            ]
            chunks = world.stream()
            assert [str(chunk) async for chunk in chunks] == ["a"]
        assert response.cost_usd == (10 * Decimal("3.123456789") + 5 * Decimal("15.987654321")) / 1_000_000
        assert response.max_tokens == 752

    run_virtual(main)
