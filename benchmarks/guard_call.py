"""One guarded call with everything on, compared with the stack that people assemble by hand, and with interlock.

Everything on: a deadline, the breaker, three windows, metrics, and the money of a paid query as the gateway holds and
books it. Without money: the same for a free service. The stack by hand: stamina (retry), purgatory (breaker), limits
with three fixed windows, prometheus-client (counter and histogram).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal

from benchmarks import guard_keys
from benchmarks.guard_peers import (
    INTERLOCK,
    MANY,
    PIPELINE,
    STACK,
    Call,
    Refusal,
    bare,
    hand_stack,
    interlock_breaker,
    interlock_open,
    interlock_pipeline,
    limits_full,
    pipeline_open,
    purgatory_open,
    stack_open,
)
from benchmarks.measure import AsyncRun, Report, add_up, compare
from benchmarks.peers import NotMeasured
from koo.ai.assembly import assemble
from koo.ai.budgets import Budgets
from koo.ai.pricing import Prices
from koo.ai.providers.base import Completion, Request
from koo.ai.query_charge import QueryCharge
from koo.ai.types import Usage
from koo.clock import SYSTEM_CLOCK
from koo.deadlines import Deadlines
from koo.errors import CircuitOpen, RateLimited
from koo.gates import Gates
from koo.guard import Guard
from koo.http.client import HttpClient
from koo.options import GuardOptions, LimitOptions, PlatformOptions, ServiceOptions
from koo.policies.breaker import FORCED_OPEN
from koo.policies.limiter import DayCount, Limits, SlidingCount
from koo.storage.base import Bill
from koo.storage.memory import MemoryLedger

YARDSTICK = "a thousand additions"
BARE = "bare await"
KOO = "koo, everything on"
WITHOUT_MONEY = "koo, without money"
OVER = "over a bare await, us"


def make_paid_call() -> Call:
    """A paid query without its network part: a service's guard and the charge that the gateway makes for each query.

    The ledger is in memory. Whole queries with a durable one are measured in `query.py`.
    """
    options = ServiceOptions(
        name="bench",
        kind="openai",
        model="bench",
        api_key="none",
        limits=LimitOptions(per_minute=MANY, per_hour=MANY, per_day=MANY),
        daily_budget_usd=Decimal(1_000_000),
        input_price=Decimal(1),
        output_price=Decimal(5),
    )
    services = assemble(
        PlatformOptions(services=(options,)),
        http=HttpClient(),
        clock=SYSTEM_CLOCK,
        deadlines=Deadlines(),
        publish=lambda event: None,
    )
    one, budgets = services["bench"], Budgets(MemoryLedger(SYSTEM_CLOCK))
    budgets.add_service("bench", one.service.allowance)
    price = Prices().find(options, options.model)
    assert price is not None, "the options say it"
    request = Request(prompt="What is the capital of France?", model=options.model, max_tokens=64)
    completion = Completion(text="Paris.", model=options.model, usage=Usage(input_tokens=12, output_tokens=3))
    guard = one.service.default_guard

    async def call() -> None:
        charge = QueryCharge(one.service, budgets, one.provider, request, price)

        async def ask() -> Bill:
            return charge.note(completion)

        await guard.call(ask, charge=charge)

    return call


def make_guard(name: str = "bench", deadlines: Deadlines | None = None, *, limit: int = MANY) -> Guard:
    """A guard with three windows."""
    now = time.monotonic()
    windows = Limits(
        SlidingCount("requests a minute", limit, 60.0, now),
        SlidingCount("requests an hour", limit, 3600.0, now),
        DayCount("requests a day", limit, now + 40_000.0, 1),
    )
    options = GuardOptions(idempotent=True)
    return Guard(Gates(name, options, deadlines=deadlines or Deadlines(), limits=windows))


def repeat(call: Call) -> AsyncRun:
    async def run(times: int) -> None:
        for _ in range(times):
            await call()

    return run


def repeat_refused(call: Call, error: type[BaseException]) -> AsyncRun:
    async def run(times: int) -> None:
        for _ in range(times):
            try:
                await call()
            except error as refusal:
                # purgatory raises the same exception object each time. Its traceback, and with it the cost, would grow
                # with each refusal, and the figure would only depend on the number of refusals.
                refusal.__traceback__ = None
                continue
            raise AssertionError("this call should be refused")

    return run


async def calls(rounds: int) -> Report:
    """A bare await, koo with and without money, and the peers, which have no money."""
    guard = make_guard()

    async def run_without_money(times: int) -> None:
        for _ in range(times):
            await guard.call(bare)

    contenders = {
        BARE: repeat(bare),
        YARDSTICK: add_up,
        KOO: repeat(make_paid_call()),
        WITHOUT_MONEY: run_without_money,
    }
    report = Report()
    peers = {STACK: hand_stack, INTERLOCK: interlock_breaker, PIPELINE: interlock_pipeline}
    for name, make in peers.items():
        try:
            contenders[name] = repeat(make())
        except NotMeasured as error:
            report.not_measured[f"{name}: {OVER}"] = str(error)
    table = await compare(contenders, times=4000, rounds=rounds)
    for name in contenders.keys() - {BARE, YARDSTICK}:
        report.figures[f"{name}: {OVER}"] = table.over_us(name, BARE)
    pairs = zip(table.over_us(WITHOUT_MONEY, BARE), table.seconds[YARDSTICK], strict=True)
    report.figures["guarded call over a bare await, in thousands of additions"] = [
        over / (yardstick * 1e6) for over, yardstick in pairs
    ]
    if STACK in contenders:
        report.figures["stack by hand / koo"] = table.ratios(STACK, WITHOUT_MONEY, less=BARE)
    return report


class Fresh(Exception):
    """An exception with three fields, like a refusal's."""

    def __init__(self, service: str, reason: str, retry_after_s: float) -> None:
        self.service = service
        self.reason = reason
        self.retry_after_s = retry_after_s


async def fail() -> None:
    raise Fresh("bench", "open", 1.0)


async def koo_open() -> Refusal:
    guard = make_guard()
    guard.set_override(FORCED_OPEN)
    return (lambda: guard.call(bare)), CircuitOpen


async def koo_full() -> Refusal:
    guard = make_guard(limit=1)
    await guard.call(bare)
    return (lambda: guard.call(bare)), RateLimited


OPEN, FULL = "refusal by an open breaker, us", "refusal by a limit, us"
REFUSALS: Mapping[tuple[str, str], Callable[[], Awaitable[Refusal]]] = {
    ("koo", OPEN): koo_open,
    ("purgatory", OPEN): purgatory_open,
    (INTERLOCK, OPEN): interlock_open,
    (PIPELINE, OPEN): pipeline_open,
    (STACK, OPEN): stack_open,
    ("koo", FULL): koo_full,
    ("limits x3", FULL): limits_full,
}


async def refusals(rounds: int) -> Report:
    """The cost of a refusal over raising and catching a new exception from an awaited coroutine."""
    raised = "raise and catch"
    contenders = {raised: repeat_refused(fail, Fresh)}
    report = Report()
    for (who, kind), make in REFUSALS.items():
        try:
            call, error = await make()
            contenders[f"{who}: {kind}"] = repeat_refused(call, error)
        except NotMeasured as missing:
            report.not_measured[f"{who}: {kind}"] = str(missing)
    table = await compare(contenders, times=6000, rounds=rounds)
    for name in contenders.keys() - {raised}:
        report.figures[name] = table.over_us(name, raised)
    return report


async def report(rounds: int = 7) -> Report:
    """Measure calls and refusals."""
    found = await calls(rounds)
    found.add(await refusals(rounds))
    found.add(await guard_keys.report(make_guard, rounds))
    return found
