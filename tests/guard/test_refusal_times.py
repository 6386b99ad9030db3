"""No refusal gives an earlier time than koo itself admits the same call: every pair of gates.

A caller that returns at the given time must not be refused again by a gate whose time was known. So each way to shut a
gate is tested alone and together with each other one. A call is made, and made again at the time in its error: in the
attribute, in `Retry-After` and in the sentence. The random draws are the worst case: pauses and openings have their
maximum length.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from itertools import combinations_with_replacement

import pytest

from koo.errors import AuthenticationFailed, DatabaseUnavailable, Kind, KooError, RateLimited, ServiceFailed
from koo.guard import Guard
from koo.policies.breaker import HALF_OPEN, OPEN
from koo.policies.limiter import DayCount, Limits, SlidingCount
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, Fault
from koo.refusals import DATABASES
from koo.web.problems import problem_answer
from tests.guard.support import (
    Script,
    answer,
    error_of,
    fail,
    hear,
    make_guard,
    nothing_is_taken,
    run_virtual,
    throttled,
)

Setup = Callable[[Guard], None]
UNITS_S = {"s": 1, "min": 60, "h": 3600, "days": 86_400}


def nearly_one() -> float:
    return 0.999


def breaker_opens(guard: Guard) -> None:
    breaker = guard.breaker
    while breaker.phase is not OPEN:
        permit = breaker.admit(guard.now(), nearly_one)
        assert permit is not None
        breaker.settle(permit, FAILURE, False, guard.now(), nearly_one)


def breaker_opens_for_longer(guard: Guard) -> None:
    guard.breaker.streak = 3
    breaker_opens(guard)


def recovery_is_tested(guard: Guard) -> None:
    """A probe runs and succeeds within its lease."""
    breaker = guard.breaker
    breaker_opens(guard)
    breaker.open_for_s = 0.0
    probe = breaker.admit(guard.now(), nearly_one)
    assert probe is not None and breaker.phase is HALF_OPEN

    def end() -> None:
        breaker.settle(probe, SUCCESS, False, guard.now(), nearly_one)

    asyncio.get_running_loop().call_later(3.0, end)


def model_pauses(guard: Guard) -> None:
    guard.cooldown.extend(
        guard.now(), 45.0, nearly_one, Kind.THROTTLED, "the provider limits the request rate"
    )


def model_pauses_for_a_guess(guard: Guard) -> None:
    guard.cooldown.extend(
        guard.now(), None, nearly_one, Kind.THROTTLED, "the provider limits the request rate"
    )


def quota_is_used_up(guard: Guard) -> None:
    guard.gates.pause(guard.now(), 900.0, nearly_one, Kind.QUOTA, "the provider's quota is used up")


def quota_without_a_time(guard: Guard) -> None:
    guard.gates.pause(guard.now(), None, nearly_one, Kind.QUOTA, "the provider's quota is used up")


def key_is_refused(guard: Guard) -> None:
    guard.gates.block_key(None, "the provider refused the key", guard.now())


def key_is_refused_until_a_time(guard: Guard) -> None:
    guard.gates.block_key(None, "the provider refused the key", guard.now(), guard.now() + 700.0)


def key_is_refused_where_calls_are_its_checks(guard: Guard) -> None:
    guard.gates.key_blocks.by_calls = True
    key_is_refused(guard)


def minute_is_used_up(guard: Guard) -> None:
    while guard.gates.limits.take(guard.now()) is None:
        pass


def day_is_used_up(guard: Guard) -> None:
    day = guard.gates.limits.counts[2]
    day.used = day.limit
    guard.tick()


def providers_limit_is_used_up(guard: Guard) -> None:
    hear(guard, 1000, 5, 300.0)
    for _ in range(10):
        guard.pacer.take(guard.now())


SETUPS: list[Setup] = [
    breaker_opens, breaker_opens_for_longer, recovery_is_tested, model_pauses, model_pauses_for_a_guess,
    quota_is_used_up, quota_without_a_time, key_is_refused, key_is_refused_until_a_time,
    key_is_refused_where_calls_are_its_checks, minute_is_used_up, day_is_used_up, providers_limit_is_used_up,
]  # fmt: skip
OF_THE_BREAKER = SETUPS[:3]
PAIRS = [
    pair
    for pair in combinations_with_replacement(SETUPS, 2)
    if {*pair} - {*OF_THE_BREAKER} or len({*pair}) == 1
]
"""A breaker has one phase at a time; all other gates can be shut in any combination."""


def limited_guard() -> Guard:
    now = asyncio.get_running_loop().time()
    limits = Limits(
        SlidingCount("requests a minute", 20, 60.0, now),
        SlidingCount("requests an hour", 10_000, 3600.0, now),
        DayCount("requests a day", 100_000, now + 800.0, 7),
    )
    return make_guard(limits=limits, draw=nearly_one)


async def monitor(guard: Guard) -> None:
    """Do the work of a platform each second: ticks, and the unbilled check of a key when it is due."""
    blocks = guard.gates.key_blocks
    while True:
        await asyncio.sleep(1.0)
        guard.tick()
        if blocks.due(guard.now()):
            await asyncio.sleep(0.5)
            blocks.lift(guard.now())


def told_s(error: KooError) -> float:
    """The earliest time that an error gives in any of its three places."""
    assert error.retry_after_s is not None, error
    header = float(problem_answer(error).headers["Retry-After"])
    said = re.search(r"try again in (?:(\d+) h )?([\d.]+) (s|min|days)", str(error))
    assert said is not None, str(error)
    sentence = int(said[1] or 0) * 3600 + float(said[2]) * UNITS_S[said[3]]
    return min(error.retry_after_s, header, sentence)


async def comes_when_told(guard: Guard, error: KooError) -> object:
    """The outcome of the same call at the time that an error gives, plus rounding."""
    watching = asyncio.create_task(monitor(guard))
    try:
        await asyncio.sleep(told_s(error) + 1e-6)
        return await error_of(guard.call(answer, on_limit="refuse")) or "admitted"
    finally:
        watching.cancel()


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda one: one.__name__)
def test_a_caller_that_returns_at_the_given_time_is_admitted(first: Setup, second: Setup) -> None:
    async def main() -> None:
        guard = limited_guard()
        for shut in dict.fromkeys((first, second)):
            shut(guard)
        refused = await error_of(guard.call(answer, on_limit="refuse"))
        assert isinstance(refused, KooError), refused
        assert await comes_when_told(guard, refused) == "admitted"
        assert nothing_is_taken(guard)

    run_virtual(main)


async def refuse_key() -> str:
    raise AuthenticationFailed("claude", "it rejects the API key: set a valid one", kind=Kind.AUTH)


@pytest.mark.parametrize(
    ("operation", "calls"),
    [
        (throttled(45.0), 1),
        (throttled(), 1),
        (throttled(900.0, Kind.QUOTA), 1),
        (throttled(None, Kind.QUOTA), 1),
        (throttled(None, Kind.BILLING), 1),
        (fail, 5),
        (refuse_key, 1),
    ],
    ids=[
        "429 with a time",
        "429",
        "a quota with a time",
        "a quota",
        "no money there",
        "the fifth failure",
        "the key",
    ],
)
def test_the_first_caller_gets_the_same_time_as_the_second(
    operation: Callable[[], Awaitable[str]], calls: int
) -> None:
    """koo extends a provider's time by up to a twentieth, so a caller with the provider's own time would be refused
    again."""

    async def main() -> None:
        guard = limited_guard()
        for _ in range(calls):
            met = await error_of(guard.call(operation))
        refused = await error_of(guard.call(answer, on_limit="refuse"))
        assert isinstance(met, KooError) and isinstance(refused, KooError)
        assert met.retry_after_s == refused.retry_after_s
        assert await comes_when_told(guard, met) == "admitted"

    run_virtual(main)


def test_a_refusal_by_a_budget_also_gives_the_providers_later_time() -> None:
    """The day's budget resets at midnight, but the provider requested a longer pause."""

    async def main() -> None:
        guard = limited_guard()

        class Empty:
            async def hold(self, deadline: float) -> None:
                guard.gates.pause(
                    guard.now(), 1200.0, nearly_one, Kind.QUOTA, "the provider's quota is used up"
                )
                raise RateLimited("claude", "no money", 600.0)

            def settle(self) -> None: ...

            def release(self) -> None: ...

        error = await error_of(guard.call(answer, charge=Empty()))
        assert isinstance(error, KooError) and await comes_when_told(guard, error) == "admitted"

    run_virtual(main)


def test_a_caller_refused_beside_a_queue_gets_the_time_at_which_the_queue_is_served() -> None:
    async def main() -> None:
        guard = limited_guard()
        minute_is_used_up(guard)
        waiting = [
            asyncio.create_task(guard.call(answer, on_limit="wait", timeout_s=1000)) for _ in range(25)
        ]
        await asyncio.sleep(0)
        guard.gates.limits.refund(guard.now())
        error = await error_of(guard.call(answer))
        assert isinstance(error, KooError) and "waiting for koo's limit" in error.reason
        assert await comes_when_told(guard, error) == "admitted"
        assert await asyncio.gather(*waiting) == ["answer"] * 25

    run_virtual(main)


def test_a_callers_mistake_gets_no_retry_time_whatever_is_shut() -> None:
    """Returning with the same mistake never helps."""

    async def main() -> None:
        guard = make_guard(classify=lambda error: Fault(verdict=NEUTRAL, kind=Kind.INVALID_REQUEST))

        async def mistake() -> str:
            guard.gates.pause(guard.now(), 60.0, nearly_one, Kind.QUOTA, "the provider's quota is used up")
            raise ServiceFailed("claude", "it does not accept the request", kind=Kind.INVALID_REQUEST)

        error = await error_of(guard.call(mistake))
        assert isinstance(error, KooError) and error.retry_after_s is None

    run_virtual(main)


def test_a_refused_database_connection_gives_the_breakers_time_once_it_is_open() -> None:
    """Otherwise the error would say "try again in 1.0 s" while the breaker refuses for a minute."""

    async def main() -> None:
        async def connect() -> str:
            raise DatabaseUnavailable("database", "the server refuses connections", 1.0, kind=Kind.CONNECTION)

        guard = make_guard(name="database", family=DATABASES, classify=_by_kind, draw=nearly_one)
        told = [(await error_of(guard.call(connect))).retry_after_s for _ in range(5)]
        assert told[:4] == [1.0] * 4 and told[4] == pytest.approx(60.0 * 1.2, rel=0.01)
        script = Script(answer)
        assert (
            isinstance(refused := await error_of(guard.call(script)), DatabaseUnavailable)
            and script.calls == 0
        )
        assert await comes_when_told(guard, refused) == "admitted"

    run_virtual(main)


def _by_kind(error: Exception) -> Fault:
    return Fault(verdict=FAILURE, kind=Kind.CONNECTION, error=error)
