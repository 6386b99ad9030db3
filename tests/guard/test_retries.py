"""Repeats: when, how often, after what pause, and what the error says if there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from koo.errors import CircuitOpen, InvalidRequest, Kind, RateLimited, ServiceFailed, ServiceTimeout
from koo.options import BreakerOptions
from koo.passage import OnLimit
from koo.policies.breaker import FORCED_OPEN, OPEN
from koo.policies.repeat import ANEW_MAX
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED, Fault
from tests.guard.support import (
    BEGIN_S,
    Script,
    Wallet,
    answer,
    answer_in,
    error_of,
    fail,
    hang,
    make_guard,
    nothing_is_taken,
    reset_by_peer,
    run_virtual,
    throttled,
    used,
)

STURDY = BreakerOptions(failure_threshold=1000, calls_min=100_000)


def half() -> float:
    return 0.5


def now() -> float:
    return asyncio.get_running_loop().time() - BEGIN_S


async def asks_to_wait(seconds: float = 7.0) -> str:
    raise ServiceFailed("claude", "it is overloaded", seconds, kind=Kind.OVERLOADED)


def test_a_failed_call_is_repeated_after_growing_pauses() -> None:
    async def main() -> None:
        guard, script, wallet = (
            make_guard(attempts=4, breaker=STURDY, draw=half),
            Script(fail, fail, fail),
            Wallet(),
        )
        assert await guard.call(script, charge=wallet) == "answer"
        assert script.at == [0.0, 0.5, 1.5, 3.5], "half of 1, 2 and 4 seconds"
        assert guard.tally.totals().verdicts == [1, 3, 0, 0] and guard.tally.retries == 3
        assert guard.tally.first_successes == 0, "the success of a repeat earns no repeats"
        assert wallet.held == 4 and nothing_is_taken(guard, wallet), "money is held for each attempt"
        assert used(guard) == [4, 4, 4], "and each one counts for the limits"

    run_virtual(main)


def test_when_the_attempts_are_used_up_the_last_error_has_their_number() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=3, breaker=STURDY), Script(fail, fail, fail)
        error = await error_of(guard.call(script))
        assert isinstance(error, ServiceFailed) and error.attempts == script.calls == 3
        assert str(error) == "claude: it is down (after 3 attempts)"

    run_virtual(main)


@pytest.mark.parametrize(("operation", "calls"), [(fail, 1), (reset_by_peer, 1), (hang, 1), (throttled(1.0), 4)],
                         ids=["failure", "lost connection", "timeout", "throttled"])  # fmt: skip
def test_a_non_idempotent_operation_is_repeated_only_if_it_was_not_carried_out(
    operation: object, calls: int
) -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, idempotent=False, breaker=STURDY, attempt_timeout_s=5)
        assert callable(operation)
        script = Script(*[operation] * 9)
        assert await error_of(guard.call(script)) is not None
        assert script.calls == calls

    run_virtual(main)


def test_the_callers_mistakes_and_hopeless_failures_are_not_repeated() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY)

        async def mistake() -> str:
            raise ValueError("negative")

        async def strange() -> str:
            raise RuntimeError("strange")

        spent = throttled(kind=Kind.QUOTA)
        for operation, error in ((mistake, ValueError), (strange, RuntimeError), (spent, RateLimited)):
            script = Script(operation, operation)
            assert isinstance(await error_of(guard.call(script)), error) and script.calls == 1

    run_virtual(main)


def test_an_attempt_that_ran_out_of_time_is_repeated_within_the_deadline() -> None:
    async def main() -> None:
        guard, script = (
            make_guard(attempts=9, attempt_timeout_s=10, timeout_s=25, breaker=STURDY),
            Script(*[hang] * 9),
        )
        error = await error_of(guard.call(script))
        assert script.at == [0.0, 10.0, 20.0]
        assert isinstance(error, ServiceTimeout) and error.kind is Kind.TIMEOUT and error.attempts == 3
        assert guard.tally.totals().verdicts == [0, 3, 0, 0] and now() == 25, (
            "the timeout is koo's own, so it is a failure"
        )

    run_virtual(main)


def test_an_error_for_lack_of_time_names_the_failure_before_it() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=9, breaker=STURDY), Script(reset_by_peer, fail, hang)
        error = await error_of(guard.call(script, timeout_s=10))
        assert isinstance(error, ServiceTimeout) and error.kind is Kind.DEADLINE
        assert str(error) == (
            "claude: the deadline passed before a response arrived; before that: it is down (after 3 attempts)"
        )
        assert error.last_error is not None and error.last_error.kind is Kind.SERVER_ERROR

    run_virtual(main)


def test_a_first_attempt_that_runs_out_of_time_names_no_earlier_failure() -> None:
    async def main() -> None:
        guard = make_guard(attempts=9, breaker=STURDY)
        error = await error_of(guard.call(hang, timeout_s=10))
        assert isinstance(error, ServiceTimeout)
        assert (error.reason, error.last_error) == ("the deadline passed before a response arrived", None)

    run_virtual(main)


# ── the deadline ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repeat_that_does_not_fit_the_deadline_is_not_started() -> None:
    """A repeat needs the pause and at least a second. Otherwise the caller gets the real error now, not a timeout
    later.
    """

    async def main() -> None:
        guard, script = make_guard(attempts=4, breaker=STURDY, draw=half), Script(fail, fail)
        error = await error_of(guard.call(script, timeout_s=1.4))
        assert script.calls == 1 and now() == 0
        assert str(error) == "claude: it is down, and is not repeated: the deadline is too near"

    run_virtual(main)


def test_the_usual_latency_must_fit_the_deadline_too() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY)

        async def slow() -> str:
            await asyncio.sleep(20)
            return "answer"

        for _ in range(5):
            await guard.call(slow)
        script = Script(fail, fail)
        error = await error_of(guard.call(script, timeout_s=10))
        assert script.calls == 1 and "deadline" in str(error)
        script = Script(fail)
        assert await guard.call(script, timeout_s=30) == "answer"

    run_virtual(main)


# ── hints ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_servers_hint_is_the_minimum_pause() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=4, breaker=STURDY, draw=half), Script(asks_to_wait)
        await guard.call(script)
        assert script.at == [0.0, pytest.approx(7.0 * 1.025)]

    run_virtual(main)


def test_a_hint_beyond_the_deadline_raises_immediately_with_the_hint() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=4, breaker=STURDY), Script(asks_to_wait)
        error = await error_of(guard.call(script, timeout_s=7.0))
        assert script.calls == 1 and now() == 0 and error.retry_after_s == 7.0
        assert "deadline" in str(error) and str(error).endswith("try again in 7.0 s")

    run_virtual(main)


def test_a_hint_beyond_the_cap_raises_immediately_with_the_hint() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY, timeout_s=10_000)
        script = Script(lambda: asks_to_wait(31.0))
        error = await error_of(guard.call(script))
        assert script.calls == 1 and error.retry_after_s == 31.0 and "asks for a pause of 31 s" in str(error)

    run_virtual(main)


def test_a_throttled_call_waits_for_the_providers_time_if_it_fits() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=4), Script(throttled(50.0))
        assert await guard.call(script) == "answer"
        assert script.at == [0.0, 50.0], "longer than koo's own cap"
        assert guard.breaker.consecutive == 0 and guard.breaker.window.calls == 1
        assert guard.tally.totals().verdicts[THROTTLED] == 1

    run_virtual(main)


def test_a_throttled_call_without_a_hint_waits_for_a_guessed_time_and_its_final_error_has_a_retry_time() -> (
    None
):
    async def main() -> None:
        guard, script = make_guard(attempts=3), Script(*[throttled()] * 3)
        error = await error_of(guard.call(script))
        assert script.at == [0.0, 1.0, 3.0]
        assert error.attempts == 3 and error.retry_after_s == 4.0

    run_virtual(main)


def test_with_on_limit_refuse_a_throttled_call_does_not_wait() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=4), Script(throttled(1.0))
        error = await error_of(guard.call(script, on_limit="refuse"))
        assert (
            isinstance(error, RateLimited) and error.retry_after_s == 1.0 and script.calls == 1 and now() == 0
        )

    run_virtual(main)


# ── the breaker ───────────────────────────────────────────────────────────────────────────────────────────────────


QUICKLY = BreakerOptions(failure_threshold=2)


@pytest.mark.parametrize("on_limit", [None, "refuse"])
def test_a_call_whose_own_failure_opens_the_breaker_ends_there(on_limit: OnLimit | None) -> None:
    """The next caller is refused immediately, and this one must not wait a minute for the same refusal."""

    async def main() -> None:
        guard, script = make_guard(attempts=9, breaker=QUICKLY, timeout_s=200), Script(fail, fail)
        error = await error_of(guard.call(script, on_limit=on_limit))
        assert isinstance(error, ServiceFailed) and script.calls == 2 and now() == 0
        assert error.not_repeated == "the circuit has opened after 2 failures in a row"
        assert str(error).endswith(
            f"not repeated: {error.not_repeated} (after 2 attempts); try again in 60 s"
        )
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_with_on_limit_wait_a_call_waits_for_an_open_breaker_within_its_deadline() -> None:
    async def main() -> None:
        patient = make_guard(attempts=9, breaker=QUICKLY, timeout_s=200)
        script = Script(fail, fail)
        assert await patient.call(script, on_limit="wait") == "answer"
        assert script.at == [0.0, 0.0, 60.0], "the third attempt is the probe"
        hurried = make_guard(attempts=9, breaker=QUICKLY, timeout_s=50)
        script, began = Script(fail, fail), now()
        error = await error_of(hurried.call(script, on_limit="wait"))
        assert isinstance(error, ServiceFailed) and script.calls == 2 and now() == began

    run_virtual(main)


def test_with_a_fallback_a_call_does_not_wait_for_an_open_breaker() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=9, breaker=QUICKLY, timeout_s=200), Script(fail, fail)
        error = await error_of(guard.call(script, on_limit="wait", has_next=True))
        assert isinstance(error, ServiceFailed) and script.calls == 2 and now() == 0

    run_virtual(main)


def test_a_call_that_waited_and_found_the_probe_taken_is_refused_with_its_attempts() -> None:
    async def main() -> None:
        guard = make_guard(attempts=9, breaker=QUICKLY, timeout_s=200)
        calls = (guard.call(Script(fail, lambda: answer_in(5.0)), on_limit="wait") for _ in range(2))
        told = await asyncio.gather(*calls, return_exceptions=True)
        (error,) = (one for one in told if one != "answer")
        assert isinstance(error, CircuitOpen) and error.attempts == 1
        assert isinstance(error.__context__, ServiceFailed), "and why it had to be repeated"
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_nothing_is_repeated_while_an_operator_forces_the_breaker_open() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY, timeout_s=10_000)

        async def forced() -> str:
            guard.set_override(FORCED_OPEN)
            return await fail()

        error = await error_of(guard.call(Script(forced)))
        assert isinstance(error, ServiceFailed) and "operator" in str(error) and now() == 0

    run_virtual(main)


# ── the retry budget ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_retry_budget_fails_no_first_attempt_and_the_error_names_it() -> None:
    async def main() -> None:
        guard, calls = make_guard(attempts=4, breaker=STURDY, retry={"budget_per_s": 0.0}), 0

        async def counted() -> str:
            nonlocal calls
            calls += 1
            return await fail()

        errors = [await error_of(guard.call(counted)) for _ in range(50)]
        assert calls == 50 + 20 and guard.tally.retries == 20
        assert str(errors[-1]) == "claude: it is down, and is not repeated: the retry budget is empty"
        for _ in range(10):
            await guard.call(answer)
        calls = 0
        await error_of(guard.call(counted))
        assert calls == 2, "ten successes at the first attempt earn one repeat"

    run_virtual(main)


def test_a_foreign_error_is_raised_unchanged_with_a_note() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY, retry={"budget_tokens": 0.0, "budget_per_s": 0.0})
        mine = ConnectionResetError("reset by peer")

        async def operation() -> str:
            raise mine

        for _ in range(3):
            assert await error_of(guard.call(operation)) is mine and mine.args == ("reset by peer",)
        assert mine.__notes__ == ["claude: not repeated after 1 attempt: the retry budget is empty"]

    run_virtual(main)


def test_an_error_raised_twice_gets_one_note() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY, retry={"budget_tokens": 0.0, "budget_per_s": 0.0})
        same = ServiceFailed("claude", "it is down", kind=Kind.SERVER_ERROR)

        async def operation() -> str:
            raise same

        said = {str(await error_of(guard.call(operation))) for _ in range(5)}
        assert said == {"claude: it is down, and is not repeated: the retry budget is empty"}

    run_virtual(main)


def test_a_repeat_that_does_not_fit_the_deadline_takes_no_token() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY, draw=half, retry={"budget_per_s": 0.0})
        error = await error_of(guard.call(fail, timeout_s=1.2))
        assert "the deadline is too near" in str(error)
        assert guard.gates.retry_budget.tokens == 20.0

    run_virtual(main)


def test_a_repeat_that_is_never_made_costs_no_token() -> None:
    async def main() -> None:
        guard = make_guard(attempts=4, breaker=STURDY, draw=half, retry={"budget_per_s": 0.0})
        task = asyncio.create_task(guard.call(fail))
        await asyncio.sleep(0.1)
        assert guard.gates.retry_budget.tokens == 19.0
        task.cancel()
        await error_of(task)
        assert guard.gates.retry_budget.tokens == 20.0 and guard.tally.retries == 0
        refused = make_guard(attempts=4, breaker=STURDY, per_minute=1, retry={"budget_per_s": 0.0})
        error = await error_of(refused.call(fail))
        assert isinstance(error, RateLimited) and error.kind is Kind.RATE_LIMITED and error.attempts == 1
        assert refused.gates.retry_budget.tokens == 20.0 and nothing_is_taken(refused)

    run_virtual(main)


def test_a_storm_of_failures_adds_only_the_load_that_the_retry_budget_allows() -> None:
    """A backend that fails for a minute at 20 calls a second gets 1.1 times that load plus the floor, not four
    times."""

    async def main() -> None:
        guard, calls = make_guard(attempts=4, breaker=STURDY), 0

        async def operation() -> str:
            nonlocal calls
            calls += 1
            return await (fail() if 60 <= now() < 120 else answer())

        tasks = []
        for _ in range(20 * 180):
            tasks.append(asyncio.create_task(error_of(guard.call(operation))))
            await asyncio.sleep(0.05)
        errors = await asyncio.gather(*tasks)
        first = 20 * 180
        assert calls - first <= 20 + 0.1 * first + 180
        assert sum(error is not None for error in errors) >= 0.85 * 20 * 60, (
            "repeats within the outage do not help"
        )
        assert errors[-1] is None and nothing_is_taken(guard)

    run_virtual(main)


def test_begin_repeats_like_call_and_its_scope_has_the_number_of_attempts() -> None:
    async def main() -> None:
        guard, wallet = make_guard(attempts=4, breaker=STURDY), Wallet()
        scope = await guard.begin(Script(fail, fail), charge=wallet)
        assert (scope.value, scope.attempts, wallet.held, wallet.open) == ("answer", 3, 3, 1)
        scope.settle()
        assert guard.tally.first_successes == 0 and nothing_is_taken(guard, wallet)

    run_virtual(main)


def test_permit_never_repeats() -> None:
    async def main() -> None:
        guard, script = make_guard(attempts=4), Script(fail)
        with pytest.raises(ServiceFailed):
            async with guard.permit():
                await script()
        assert script.calls == 1 and guard.tally.totals().verdicts[FAILURE] == 1

    run_virtual(main)


def test_a_repeatable_neutral_fault_is_repeated_and_does_not_count_as_a_failure() -> None:
    """A serialization failure is such a fault."""

    async def main() -> None:
        guard = make_guard(attempts=4, classify=lambda error: Fault(verdict=NEUTRAL, repeatable=True))
        script = Script(reset_by_peer, reset_by_peer)
        assert await guard.call(script) == "answer" and script.calls == 3
        assert guard.tally.totals().verdicts == [1, 0, 2, 0] and guard.breaker.window.failures == 0
        assert guard.tally.totals().verdicts[SUCCESS] == 1 and guard.breaker.phase is not OPEN

    run_virtual(main)


def test_a_call_that_was_not_made_keeps_its_place_in_the_queue() -> None:
    async def main() -> None:
        guard = make_guard(concurrency_max=1, classify=lambda error: Fault(verdict=NEUTRAL, unmade=True))
        order = list[str]()

        async def call(name: str, *steps: Callable[[], Awaitable[str]]) -> None:
            await guard.call(Script(*steps))
            order.append(name)

        async def fail_late() -> str:
            await asyncio.sleep(1)
            return await fail()

        await asyncio.gather(call("first", fail_late), call("second"), call("third"))
        assert order == ["second", "first", "third"]

    run_virtual(main)


async def asks_for_another_form() -> str:
    error = InvalidRequest("claude", "it does not accept the request", kind=Kind.INVALID_REQUEST)
    error.anew, error.billable = True, False
    raise error


def test_a_refused_form_is_sent_again_immediately_and_is_neither_a_failure_nor_a_repeat() -> None:
    """The refused form takes no token, does not count for the breaker and returns its hold. A later failure still has
    all its repeats.
    """

    async def main() -> None:
        guard, wallet = make_guard(attempts=2, breaker=STURDY, draw=half), Wallet()
        script = Script(asks_for_another_form, asks_for_another_form, fail)
        tokens = guard.gates.retry_budget.tokens
        assert await guard.call(script, charge=wallet) == "answer"
        assert script.at == [0.0, 0.0, 0.0, 0.5] and guard.tally.retries == 1
        assert guard.tally.totals().verdicts == [1, 1, 2, 0]
        assert guard.gates.retry_budget.tokens > tokens - 2
        assert (wallet.held, wallet.released) == (4, 3) and nothing_is_taken(guard, wallet)
        assert used(guard) == [4, 4, 4], "each one counts for the limits"

    run_virtual(main)


def test_a_call_that_was_not_made_enters_again_as_often_as_its_deadline_allows() -> None:
    """A database that has no connection left for a caller is such a case: the caller waits, and uses no repeat."""

    async def main() -> None:
        guard = make_guard(attempts=1, classify=lambda error: Fault(verdict=NEUTRAL, unmade=True))
        script = Script(*[fail] * 20)
        assert await guard.call(script) == "answer" and script.calls == 21
        assert guard.gates.retry_budget.tokens == guard.options.retry.budget_tokens

    run_virtual(main)


def test_a_request_whose_form_is_always_refused_is_sent_only_a_few_times() -> None:
    async def main() -> None:
        guard, wallet = make_guard(attempts=1, breaker=STURDY), Wallet()
        script = Script(*[asks_for_another_form] * 20)
        error = await error_of(guard.call(script, charge=wallet))
        assert isinstance(error, InvalidRequest) and error.attempts == len(script.at) == 1 + ANEW_MAX
        assert guard.gates.retry_budget.tokens == guard.options.retry.budget_tokens
        assert nothing_is_taken(guard, wallet)

    run_virtual(main)
