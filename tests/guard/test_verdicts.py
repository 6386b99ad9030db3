"""A call that ends is counted and settled, and returns everything it took, through each of the guard's interfaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from koo.deadlines import Deadline
from koo.errors import DatabaseTimeout, InvalidRequest, Kind, ServiceFailed, ServiceTimeout
from koo.guard import Guard
from koo.options import BreakerOptions
from koo.policies.breaker import CLOSED, OPEN
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED, Fault
from koo.refusals import DATABASES
from tests.guard.support import (
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
)

Operation = Callable[[], Awaitable[str]]
Face = Callable[[Guard, Operation, Wallet | None], Awaitable[Any]]


async def by_call(guard: Guard, operation: Operation, wallet: Wallet | None) -> str:
    return await guard.call(operation, charge=wallet)


async def by_begin(guard: Guard, operation: Operation, wallet: Wallet | None) -> str:
    scope = await guard.begin(operation, charge=wallet)
    assert guard.gates.bulkhead.used == 1 and guard.breaker.running, "a success keeps its permit"
    scope.settle()
    return scope.value


async def by_permit(guard: Guard, operation: Operation, wallet: Wallet | None) -> str:
    async with guard.permit(wallet):
        assert guard.gates.bulkhead.used == 1
        return await operation()


FACES: dict[str, Face] = {"call": by_call, "begin": by_begin, "permit": by_permit}
ENDS: list[tuple[str, Operation, type[BaseException] | None, int]] = [
    ("an answer", answer, None, SUCCESS),
    ("a server error", fail, ServiceFailed, FAILURE),
    ("a lost connection", reset_by_peer, ConnectionResetError, FAILURE),
    ("too many requests", throttled(), Exception, THROTTLED),
]


async def mistake() -> str:
    raise InvalidRequest("claude", "the prompt is empty")


async def keyboard() -> str:
    raise KeyboardInterrupt


async def end_of_program() -> str:
    raise SystemExit(3)


class Strange(BaseException):
    """An exception that no code expects."""


async def strange() -> str:
    raise Strange


async def cancelled_inside() -> str:
    raise asyncio.CancelledError


ENDS += [
    ("the caller's mistake", mistake, InvalidRequest, NEUTRAL),
    ("a strange BaseException", strange, Strange, NEUTRAL),
    ("a cancellation from inside", cancelled_inside, asyncio.CancelledError, NEUTRAL),
]


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
@pytest.mark.parametrize(("story", "operation", "error", "verdict"), ENDS, ids=[one[0] for one in ENDS])
def test_a_call_settles_once_and_returns_everything(
    story: str, operation: Operation, error: type[BaseException] | None, verdict: int, face: Face
) -> None:
    async def main() -> None:
        guard, wallet = make_guard(), Wallet()
        seen = await error_of(face(guard, operation, wallet))
        assert (seen is None) if error is None else isinstance(seen, error)
        counts = [0, 0, 0, 0]
        counts[verdict] = 1
        assert guard.tally.totals().verdicts == counts
        assert nothing_is_taken(guard, wallet) and wallet.held == 1
        assert guard.breaker.consecutive == (verdict == FAILURE)

    run_virtual(main)


def test_a_success_records_its_latency() -> None:
    async def main() -> None:
        guard = make_guard()
        assert await guard.call(answer_in, 0.25) == "answer"
        total = guard.tally.totals()
        assert total.latency_sum_s == pytest.approx(0.25) and total.slow == 0
        assert await guard.call(answer_in, 31.0) == "answer"
        assert guard.tally.totals().slow == 1 and guard.breaker.window.slow == 1

    run_virtual(main)


# ── whose timeout was it? ─────────────────────────────────────────────────────────────────────────────────────────


def test_koos_own_timeout_of_an_attempt_is_a_failure() -> None:
    async def main() -> None:
        guard, wallet = make_guard(attempt_timeout_s=5), Wallet()
        error = await error_of(guard.call(hang, charge=wallet))
        assert (
            isinstance(error, ServiceTimeout)
            and isinstance(error, TimeoutError)
            and error.kind is Kind.TIMEOUT
        )
        assert str(error) == "claude: no response within the attempt timeout"
        assert isinstance(error.__cause__, TimeoutError)
        assert guard.tally.totals().verdicts[FAILURE] == 1 and guard.breaker.consecutive == 1
        assert wallet.settled == 1, "the work may have been done: it may be billed"
        assert nothing_is_taken(guard, wallet)

    run_virtual(main)


@pytest.mark.parametrize("slow", [False, True])
def test_the_callers_deadline_is_neutral_but_may_count_as_slow(slow: bool) -> None:
    async def main() -> None:
        guard = make_guard(slow_s=1.0 if slow else 10.0)
        error = await error_of(guard.call(hang, timeout_s=2.0))
        assert isinstance(error, ServiceTimeout) and error.kind is Kind.DEADLINE
        assert guard.tally.totals().verdicts[NEUTRAL] == 1 and guard.tally.totals().slow == slow
        assert guard.breaker.consecutive == 0
        assert (guard.breaker.window.calls, guard.breaker.window.slow) == (slow, slow)
        assert nothing_is_taken(guard)

    run_virtual(main)


@pytest.mark.parametrize("slow", [False, True])
def test_a_deadline_around_the_call_counts_like_the_calls_own(slow: bool) -> None:
    """Both end at the same moment and the outer one is raised, but the guard still records that the call was slow."""

    async def main() -> None:
        guard = make_guard(slow_s=1.0 if slow else 10.0)
        with pytest.raises(TimeoutError):
            async with Deadline(2.0):
                await guard.call(hang)
        assert guard.tally.totals().verdicts[NEUTRAL] == 1
        assert guard.tally.errors == {"deadline": 1}
        assert guard.breaker.window.slow == slow and guard.breaker.consecutive == 0
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_hung_backend_behind_short_deadlines_opens_the_breaker() -> None:
    async def main() -> None:
        guard = make_guard(slow_s=1.0)
        for _ in range(20):
            assert guard.breaker.phase is CLOSED
            await error_of(guard.call(hang, timeout_s=1.0))
        assert guard.breaker.phase is OPEN and "slow" in guard.breaker.reason

    run_virtual(main)


def test_the_users_own_timeout_error_is_the_operations_failure_and_is_raised_unchanged() -> None:
    async def main() -> None:
        guard, mine = make_guard(), TimeoutError("the user's own")

        async def late() -> str:
            raise mine

        assert await error_of(guard.call(late)) is mine
        assert guard.tally.errors == {"timeout": 1} and guard.breaker.consecutive == 1

    run_virtual(main)


def test_an_earlier_deadline_shortens_and_a_later_one_does_not_lengthen() -> None:
    async def main() -> None:
        guard, clock = make_guard(timeout_s=30, attempt_timeout_s=30), asyncio.get_running_loop()
        cases = [(3.0, None, 3.0), (100.0, None, 30.0), (100.0, 7.0, 7.0), (2.0, 7.0, 2.0)]
        for around_s, timeout_s, expected_s in cases:
            began = clock.time()
            with pytest.raises(TimeoutError):
                async with Deadline(around_s):
                    await guard.call(hang, timeout_s=timeout_s)
            assert clock.time() - began == pytest.approx(expected_s)

    run_virtual(main)


def test_a_call_whose_deadline_has_passed_is_not_made() -> None:
    async def main() -> None:
        guard, calls, wallet = make_guard(), 0, Wallet()

        async def operation() -> None:
            nonlocal calls
            calls += 1

        for charge in (None, wallet):
            error = await error_of(guard.call(operation, charge=charge, timeout_s=0.0))
            assert isinstance(error, ServiceTimeout) and error.kind is Kind.DEADLINE
        assert calls == 0 and wallet.held == 0 and guard.tally.refused == {"deadline": 2}
        assert nothing_is_taken(guard, wallet)

    run_virtual(main)


def test_a_databases_guard_raises_database_errors() -> None:
    async def main() -> None:
        guard = make_guard(name="db", family=DATABASES, attempt_timeout_s=1)
        assert isinstance(await error_of(guard.call(hang)), DatabaseTimeout)

    run_virtual(main)


# ── classifiers ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_classifier_decides_and_its_error_is_raised_from_the_original() -> None:
    async def main() -> None:
        class VendorError(Exception):
            pass

        def classify(error: Exception) -> Fault:
            ours = ServiceFailed("claude", "the vendor is down", kind=Kind.OVERLOADED)
            return Fault(verdict=FAILURE, kind=Kind.OVERLOADED, error=ours)

        async def operation() -> None:
            raise VendorError("529")

        guard = make_guard(classify=classify)
        error = await error_of(guard.call(operation))
        assert (
            isinstance(error, ServiceFailed)
            and isinstance(error.__cause__, VendorError)
            and error.attempts == 1
        )
        assert guard.tally.errors == {"overloaded": 1}

    run_virtual(main)


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
@pytest.mark.parametrize("broken", ["raises", "returns nonsense"])
def test_a_broken_classifier_is_neutral_and_keeps_nothing(broken: str, face: Face) -> None:
    async def main() -> None:
        def classify(error: Exception) -> Fault:
            if broken == "raises":
                raise RuntimeError("a bug")
            return None  # type: ignore[return-value]

        guard, wallet = make_guard(classify=classify), Wallet()
        error = await error_of(face(guard, reset_by_peer, wallet))
        assert isinstance(error, ConnectionResetError), "the operation's own error is what the caller sees"
        assert guard.tally.totals().verdicts[NEUTRAL] == 1 and nothing_is_taken(guard, wallet)

    run_virtual(main)


def test_an_exception_classified_as_a_success_counts_as_one() -> None:
    """Some protocols end successfully by raising."""

    async def main() -> None:
        guard = make_guard(classify=lambda error: Fault(verdict=SUCCESS))
        assert isinstance(await error_of(guard.call(reset_by_peer)), ConnectionResetError)
        assert guard.tally.totals().verdicts == [1, 0, 0, 0] and guard.tally.last_failure_at is None
        assert sum(guard.tally.totals().latency) == 1

    run_virtual(main)


@pytest.mark.parametrize("billed", [False, True])
def test_a_charge_that_may_be_billed_is_settled_and_any_other_is_released(billed: bool) -> None:
    async def main() -> None:
        guard = make_guard(classify=lambda error: Fault(verdict=FAILURE, billed=billed))
        wallet = Wallet()
        await error_of(guard.call(reset_by_peer, charge=wallet))
        assert (wallet.settled, wallet.released) == ((1, 0) if billed else (0, 1))

    run_virtual(main)


def test_a_charge_that_fails_to_settle_keeps_nothing_else() -> None:
    async def main() -> None:
        class Broken(Wallet):
            def settle(self) -> None:
                raise RuntimeError("the ledger is broken")

        guard = make_guard()
        assert isinstance(await error_of(guard.call(answer, charge=Broken())), RuntimeError)
        assert isinstance(await error_of(guard.call(reset_by_peer, charge=Broken())), RuntimeError)
        assert nothing_is_taken(guard) and sum(guard.tally.totals().verdicts) == 2

    run_virtual(main)


# ── scopes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scope_settles_once() -> None:
    async def main() -> None:
        guard, wallet = make_guard(), Wallet()
        scope = await guard.begin(answer, charge=wallet)
        for _ in range(3):
            scope.settle()
            scope.settle(Fault(verdict=FAILURE))
        assert guard.tally.totals().verdicts == [1, 0, 0, 0] and wallet.settled == 1
        assert nothing_is_taken(guard, wallet)

    run_virtual(main)


def test_a_scope_that_was_never_entered_settles_nothing() -> None:
    async def main() -> None:
        guard = make_guard()
        guard.permit().settle()
        assert sum(guard.tally.totals().verdicts) == 0 and guard.gates.bulkhead.used == 0

    run_virtual(main)


def test_a_scope_can_be_used_for_one_block_at_a_time() -> None:
    async def main() -> None:
        guard = make_guard()
        scope = guard.permit()
        async with scope:
            with pytest.raises(RuntimeError, match="in use"):
                await scope.__aenter__()
        async with scope:
            pass
        assert guard.tally.totals().verdicts == [2, 0, 0, 0] and nothing_is_taken(guard)

    run_virtual(main)


def test_the_time_of_a_scopes_owner_does_not_count_against_the_other_side() -> None:
    async def main() -> None:
        guard = make_guard(slow_s=1.0)
        scope = await guard.begin(answer_in, 0.1)
        await asyncio.sleep(500)
        scope.settle(took_s=0.2)
        total = guard.tally.totals()
        assert total.slow == 0 and total.latency_sum_s == pytest.approx(0.2)
        scope = await guard.begin(answer)
        await asyncio.sleep(500)
        scope.settle(slow=False)
        assert guard.tally.totals().slow == 0
        scope = await guard.begin(answer)
        scope.settle(took_s=1.0)
        assert guard.tally.totals().slow == 1

    run_virtual(main)


def test_twenty_slow_readers_do_not_open_the_breaker() -> None:
    """A started stream, or a session in its user's hands, is not a hung call."""

    async def main() -> None:
        guard = make_guard(slow_s=1.0)
        scopes = [await guard.begin(answer) for _ in range(20)]
        await asyncio.sleep(500)
        guard.tick()
        assert guard.breaker.phase is CLOSED
        for scope in scopes:
            scope.settle(slow=False)
        await asyncio.sleep(60)  # and the window no longer contains them
        hung = [asyncio.create_task(guard.call(hang)) for _ in range(20)]
        await asyncio.sleep(1.5)
        guard.tick()
        assert guard.breaker.phase is OPEN, "twenty calls without any response open it"
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_scope_has_a_deadline_but_no_timer() -> None:
    async def main() -> None:
        guard = make_guard(timeout_s=9)
        now = asyncio.get_running_loop().time()
        async with guard.permit() as scope:
            assert scope.deadline == now + 9 and not guard.gates.deadlines.grains
            await asyncio.sleep(100)
        async with Deadline(4), guard.permit() as scope:
            assert scope.deadline == asyncio.get_running_loop().time() + 4
        begun = await guard.begin(answer, timeout_s=3)
        assert begun.deadline == asyncio.get_running_loop().time() + 3 and begun.attempts == 1
        begun.settle()

    run_virtual(main)


def test_a_consumer_that_stops_reading_is_neutral() -> None:
    async def main() -> None:
        guard, wallet = make_guard(), Wallet()

        async def stream() -> AsyncIterator[str]:
            async with guard.permit(wallet) as scope:
                for chunk in "abc":
                    scope.renew()
                    yield chunk

        chunks = stream()
        assert await anext(chunks) == "a"
        await chunks.aclose()  # type: ignore[attr-defined]
        assert guard.tally.totals().verdicts[NEUTRAL] == 1 and nothing_is_taken(guard, wallet)
        assert wallet.settled == 1, "what was used is settled"

    run_virtual(main)


def test_a_coroutine_closed_before_its_end_is_neutral() -> None:
    async def main() -> None:
        guard = make_guard()
        coroutine = guard.call(hang)
        waits = coroutine.send(None)
        coroutine.close()
        assert waits is not None
        waits.cancel()
        assert guard.tally.totals().verdicts[NEUTRAL] == 1 and nothing_is_taken(guard)

    run_virtual(main)


def test_the_repr_of_a_guard_with_unusual_options_is_readable() -> None:
    async def main() -> None:
        guard = make_guard(breaker=BreakerOptions(failure_threshold=1))
        assert repr(guard) == "<Guard 'claude' closed | 0 calls, 0 failed>"
        await error_of(guard.call(fail))
        assert repr(guard) == "<Guard 'claude' open, back in 60 s | 1 calls, 1 failed>"

    run_virtual(main)
