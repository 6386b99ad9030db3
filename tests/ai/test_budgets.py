"""Budgets of every kind: which of them hold a call, what happens if one has no room, and when it will run out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from koo.ai import budgets
from koo.budget_options import BudgetOptions
from koo.errors import AllServicesFailed, BudgetExceeded, UnknownService
from koo.options import DAY_S
from koo.storage.memory import MemoryLedger
from koo.testing.clock import run_virtual
from tests.ai.virtual import VirtualWorld, words

BOUND = Decimal("0.0018")
"""What a call with max_tokens=100 holds: 100 input tokens at 3 and 100 output tokens at 15 USD per million."""
COST = Decimal("0.000105")
"""What the call costs: 10 input tokens and 5 output tokens."""


def own(name: str = "team", limit: str = "1", **more: Any) -> BudgetOptions:
    return BudgetOptions(name=name, limit_usd=Decimal(limit), **more)


def in_world(test: Callable[[VirtualWorld], Awaitable[None]], *given: BudgetOptions, **options: Any) -> None:
    """Run a test in a world with these budgets."""

    async def main() -> None:
        world = VirtualWorld(own=given, max_tokens=100, **options)
        try:
            await test(world)
        finally:
            world.beats.cancel()

    run_virtual(main)


def spent(world: VirtualWorld) -> dict[tuple[str, str | None], Decimal]:
    """The amount booked in each budget that the operator has set."""
    return {
        (one.options.name, one.tag): one.view.spent_usd for one in world.budgets.views(world.clock.wall())
    }


# ── which budgets hold a call ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_booked_in_every_budget_that_applies_and_in_no_other() -> None:
    async def test(world: VirtualWorld) -> None:
        await world.ask(tag="night")
        assert spent(world) == {
            ("all", None): COST, ("month", None): COST, ("of_first", None): COST, ("of_second", None): 0,
            ("model", None): COST, ("other_model", None): 0, ("night", None): COST, ("day", None): 0,
            ("each", "night"): COST,
        }  # fmt: skip
        await world.ask()
        await world.ask(tag="noon", model="n")
        assert spent(world)["all", None] == 3 * COST and spent(world)["model", None] == 2 * COST
        assert (
            spent(world)["night", None]
            == spent(world)["each", "noon"]
            == spent(world)["each", "night"]
            == COST
        )
        assert world.spent_usd == 3 * COST

    in_world(
        test,
        own("all"), own("month", period="month"), own("of_first", service="first"), own("of_second", service="second"),
        own("model", model="m"), own("other_model", model="x"), own("night", tag="night"), own("day", tag="day"),
        own("each", tag="*"),
    )  # fmt: skip


def test_a_refusal_names_the_budget_without_room_and_the_amounts() -> None:
    async def test(world: VirtualWorld) -> None:
        with pytest.raises(BudgetExceeded) as refusal:
            await world.ask()
        assert refusal.value.reason == (
            "the budget 'team' of $0.001 does not cover this call: $0.00 spent, $0.00 held for running calls, "
            "up to $0.0018 needed"
        )
        assert world.first.asked == 0 and world.spent_usd == 0, "nothing is held in the other budgets"

    in_world(test, own(limit="0.001", period="month"))


def test_a_refusal_says_when_nothing_of_the_budget_is_left() -> None:
    async def test(world: VirtualWorld) -> None:
        with pytest.raises(BudgetExceeded, match=r"the budget 'team' of \$0\.00 is used up: \$0\.00 spent, "):
            await world.ask()

    in_world(test, own(limit="0"))


def test_each_tag_has_its_own_budget_and_calls_without_a_tag_have_none() -> None:
    async def test(world: VirtualWorld) -> None:
        await world.ask(tag="a")
        with pytest.raises(BudgetExceeded, match=r"the budget 'team/a' of \$0\.0018 does not cover"):
            await world.ask(tag="a")
        await world.ask(tag="b")
        await world.ask()
        await world.ask()

    in_world(test, own(limit=str(BOUND), tag="*"))


def test_a_tag_that_databases_reject_as_text_is_cleaned() -> None:
    async def test(world: VirtualWorld) -> None:
        await world.ask(tag="a\0b\ud800" + "c" * 300)
        assert list(spent(world)) == [("team", "ab?" + "c" * 196)]

    in_world(test, own(tag="*"))


def test_tags_beyond_the_limit_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each beat reports every budget. With a tag for each call, it would grow without limit."""
    monkeypatch.setattr(budgets, "TAGS_MAX", 10)

    async def test(world: VirtualWorld) -> None:
        for number in range(15):
            world.budgets.of("first", "m", str(number))
        assert len({world.budgets.of("first", "m", str(n))[1].name for n in range(10, 15)}) == 1
        await world.ask(tag="7")
        await world.clock.sleep(5)
        world.budgets.forget_unused_tags()
        assert list(spent(world)) == [("team", "7")], "spent money is not forgotten"
        assert world.budgets.of("first", "m", "2000")[1].name == "budget/team/2000"

    in_world(test, own(tag="*"))


def test_a_tag_without_room_does_not_affect_the_service_and_can_be_forgotten() -> None:
    """Callers with other tags can still use the service."""

    async def test(world: VirtualWorld) -> None:
        for _ in range(2):
            with pytest.raises(BudgetExceeded, match="the budget 'team/a'"):
                await world.ask(tag="a")
            assert world.budgets.view("first").shortage == "" and list(spent(world)) == [("team", "a")]
            world.budgets.forget_unused_tags()
            assert world.budgets.view("first").shortage == "" and spent(world) == {}

    in_world(test, own(limit="0.001", tag="*"))


# ── the service to use instead
# ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusing_budget_sends_the_query_to_the_service_that_it_names(streamed: bool) -> None:
    async def test(world: VirtualWorld) -> None:
        world.second.chunks = words("ok", pause_s=0.1)
        if streamed:
            stream = world.stream()
            assert "".join([chunk.text async for chunk in stream]) == "ok"
            answer = stream.answer
        else:
            answer = await world.ask()
        assert answer is not None and (answer.service, world.first.asked, world.second.asked) == (
            "second",
            0,
            1,
        )

    in_world(test, own(limit="0.001", service="first", on_exhausted="second"))


def test_the_named_services_own_budget_applies_and_each_reason_is_given() -> None:
    async def test(world: VirtualWorld) -> None:
        with pytest.raises(AllServicesFailed) as failure:
            await world.ask()
        said = str(failure.value)
        assert failure.value.service == "first, second"
        assert "the budget 'team'" in said and "the budget 'cap'" in said
        assert world.first.asked == world.second.asked == 0

    in_world(
        test, own(limit="0.001", on_exhausted="second", service="first"), own("cap", "0", service="second")
    )


def test_a_service_already_in_the_fallback_is_called_once_and_in_its_place() -> None:
    async def test(world: VirtualWorld) -> None:
        answer = await world.ask(fallback=("second",))
        assert (answer.service, world.second.asked) == ("second", 1)
        with pytest.raises(UnknownService):
            await world.ask(fallback=("unknown",))

    in_world(test, own(limit="0.001", service="first", on_exhausted="second"))


def test_a_budget_that_refuses_without_its_store_also_moves_the_query_to_the_named_service() -> None:
    async def test(world: VirtualWorld) -> None:
        assert isinstance(world.budgets.ledger, MemoryLedger)
        world.budgets.ledger.exchange.trouble = "the disk is full"  # type: ignore[assignment]
        answer = await world.ask()
        assert (answer.service, world.first.asked) == ("second", 0)
        with pytest.raises(AllServicesFailed) as failure:
            await world.ask(tag="x")
        assert str(failure.value).count("the disk is full") == 2

    in_world(test, own(service="first", on_exhausted="second"), own("x", tag="x"))


def test_two_budgets_that_name_each_others_service_do_not_loop() -> None:
    async def test(world: VirtualWorld) -> None:
        with pytest.raises(AllServicesFailed):
            await world.ask()

    in_world(
        test,
        own("a", "0.001", service="first", on_exhausted="second"),
        own("b", "0.001", service="second", on_exhausted="first"),
    )


# ── for display ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_too_small_for_a_call_is_a_shortage_at_any_percentage() -> None:
    async def test(world: VirtualWorld) -> None:
        assert world.budgets.view("first").shortage == ""
        with pytest.raises(BudgetExceeded):
            await world.ask()
        assert world.budgets.view("first").shortage == (
            "the day's budget of $0.001 does not cover the last call: up to $0.0018 needed, $0.001 left"
        )
        assert world.budgets.view("second").shortage == ""
        await world.ask(max_tokens=10)
        assert world.budgets.view("first").shortage == "", "a smaller call was answered"
        with pytest.raises(BudgetExceeded):
            await world.ask()
        world.clock.set_wall(world.clock.wall() + 86_400)
        await world.clock.sleep(5)
        assert world.budgets.view("first").shortage == "", "it is another day"

    in_world(test, daily_budget_usd=Decimal("0.001"))


def test_a_used_up_common_budget_is_a_shortage_of_each_service() -> None:
    async def test(world: VirtualWorld) -> None:
        assert world.budgets.view("second").shortage == "the budget 'team' of $0.00 is used up"
        assert world.budgets.view("first", "m").shortage == "the budget 'team' of $0.00 is used up"

    in_world(test, own(limit="0"))


def test_a_forecast_ranges_from_the_last_hours_pace_to_the_periods_pace() -> None:
    async def test(world: VirtualWorld) -> None:
        began = world.clock.wall()
        world.clock.set_wall(began - began % 86_400)  # midnight
        for _ in range(120):  # one call each minute for two hours
            await world.ask()
            await world.clock.sleep(60)
            world.budgets.note_paces(world.clock.wall())
        view = world.budgets.view("first", "m", world.clock.wall())
        pace = COST / 60
        left_s = float((Decimal("0.03") - view.spent_usd) / pace)
        assert view.runs_out is not None and view.runs_out.latest is not None
        assert view.runs_out.earliest - world.clock.wall() == pytest.approx(left_s, rel=0.05)
        await world.clock.sleep(7200)  # two quiet hours
        world.budgets.note_paces(world.clock.wall())
        later = world.budgets.view("first", "m", world.clock.wall())
        assert later.runs_out is not None and later.runs_out.latest is None, "never, at the last hour's pace"
        assert later.runs_out.earliest > view.runs_out.earliest

    in_world(test, daily_budget_usd=Decimal("0.03"))


def test_a_call_that_two_budgets_refuse_gets_the_later_reset_time() -> None:
    """At midnight the day's budget has room again, but the month's budget still refuses."""

    async def test(world: VirtualWorld) -> None:
        await world.ask()
        with pytest.raises(BudgetExceeded) as refusal:
            await world.ask()
        wait_s = refusal.value.retry_after_s
        ends_at = max(one.view.resets_at for one in world.budgets.views(world.clock.wall()))
        assert wait_s is not None and wait_s == pytest.approx(ends_at - world.clock.wall(), abs=5.0)
        assert wait_s > DAY_S

    in_world(test, own("day", limit=str(BOUND)), own("month", limit=str(BOUND), period="month"))
