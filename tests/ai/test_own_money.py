"""The money of a user's own operation counts as spent once it is awaited, whatever it raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from koo.ai.budgets import Budgets
from koo.ai.operation_money import Money
from koo.ai.operations import execute
from koo.ai.registration import compose, read_options
from koo.ai.service import Service
from koo.deadlines import Deadlines
from koo.errors import CircuitOpen
from koo.policies.verdict import NEUTRAL, Fault
from koo.storage.memory import MemoryLedger
from koo.testing.clock import VirtualClock, run_virtual

OPTIONS: dict[str, Any] = {"max_cost_usd": 1, "daily_budget": 10}


async def spent(operation: Callable[..., Any], *args: Any, **more: Any) -> Decimal:
    """The amount booked after one run of an operation that raises. Checks that nothing stays held."""
    clock = VirtualClock()
    options, ledger = OPTIONS | more, MemoryLedger(clock)
    service = Service(
        "own", read_options(options), default_model=None, clock=clock, deadlines=Deadlines(),
        classify=compose(options.get("classify"), "own"), allowance=Money(options).allowance,
    )  # fmt: skip
    budgets = Budgets(ledger)
    budgets.add_service("own", service.allowance)
    beats = asyncio.create_task(ledger.run())
    with pytest.raises(BaseException):  # noqa: B017 - whatever it is
        await execute(service, Money(options), budgets, operation, args, {})
    beats.cancel()
    view = budgets.view("own")
    assert not view.held_usd
    return view.spent_usd


@pytest.mark.parametrize(
    "error",
    [
        TypeError(),
        ValueError(),
        KeyError(),
        AttributeError(),
        RuntimeError(),
        OSError(),
        CircuitOpen("other", "open"),
    ],
    ids=repr,
)
def test_an_operation_that_raises_once_awaited_is_booked_at_its_maximum(error: Exception) -> None:
    async def operation() -> None:
        await asyncio.sleep(0)
        raise error

    assert run_virtual(lambda: spent(operation)) == 1


def test_an_operation_that_was_never_awaited_costs_nothing() -> None:
    async def operation() -> None: ...

    assert run_virtual(lambda: spent(operation, "too", "many", "arguments")) == 0


def test_a_blocking_operation_that_returned_is_paid_for() -> None:
    """A blocking client has sent its request and received the response by the time it returns."""
    assert run_virtual(lambda: spent(lambda: "an answer")) == 1


def test_a_classifier_may_say_that_nothing_was_billed() -> None:
    async def operation() -> None:
        raise ValueError

    def classify(error: Exception) -> Fault:
        return Fault(verdict=NEUTRAL, billed=False)

    assert run_virtual(lambda: spent(operation, classify=classify)) == 0
