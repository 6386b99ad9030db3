"""Recovery from an outage: probes, leases, the ramp; what models share; operators and listeners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from koo.clock import SystemClock
from koo.deadlines import WrongLoop
from koo.errors import CircuitOpen, Failure, Kind, ServiceFailed, ServiceTimeout
from koo.events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CooldownBegan,
    Event,
    EventBus,
    KeyBlocked,
    OverrideSet,
)
from koo.guard import Guard
from koo.options import BreakerOptions
from koo.policies.breaker import CLOSED, DISABLED, FORCED_OPEN, HALF_OPEN, METRICS_ONLY, NONE, OPEN
from koo.policies.key_block import CHECK_S_MIN
from koo.policies.limiter import Limits
from koo.policies.reported import DatabaseState, database_state
from koo.policies.verdict import FAILURE, NEUTRAL, SUCCESS, THROTTLED, Fault
from koo.testing.clock import VirtualClock
from tests.guard.support import (
    BEGIN_S,
    Script,
    answer,
    answer_in,
    error_of,
    fail,
    hang,
    make_guard,
    make_peers,
    nothing_is_taken,
    open_breaker,
    reset_by_peer,
    run_virtual,
    throttled,
)

UNREACHABLE = ServiceFailed("claude", "the connection failed", kind=Kind.CONNECTION)


def now() -> float:
    return asyncio.get_running_loop().time() - BEGIN_S


# ── probes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_probes_run_one_at_a_time_and_two_successes_close_the_breaker() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        assert isinstance(await error_of(guard.call(answer)), CircuitOpen)
        await asyncio.sleep(60)
        told = await asyncio.gather(*(guard.call(answer_in, 1.0) for _ in range(5)), return_exceptions=True)
        assert told[0] == "answer" and all(isinstance(one, CircuitOpen) for one in told[1:])
        assert guard.breaker.phase is HALF_OPEN
        await guard.call(answer)
        assert guard.breaker.phase is CLOSED and nothing_is_taken(guard)

    run_virtual(main)


def test_a_hanging_probe_is_cut_at_the_end_of_its_lease_and_counts_as_failed() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        await asyncio.sleep(60)
        error = await error_of(guard.call(hang))
        assert isinstance(error, ServiceTimeout) and now() == 90, (
            "not only after the attempt timeout of a minute"
        )
        assert guard.breaker.phase is OPEN and guard.breaker.streak == 1 and guard.breaker.open_for_s == 120
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_the_lease_of_a_slow_services_probe_covers_its_usual_latency() -> None:
    async def main() -> None:
        guard = make_guard(breaker=BreakerOptions(recovery_s=10))
        for _ in range(5):
            await guard.call(answer_in, 14.0)
        await open_breaker(guard)
        await asyncio.sleep(10)
        assert await guard.call(answer_in, 14.0) == "answer", (
            "half of the recovery time would be five seconds"
        )
        slow = make_guard(breaker=BreakerOptions(recovery_s=10))
        for _ in range(5):
            await slow.call(answer_in, 59.0)
        await open_breaker(slow)
        assert slow.breaker.lease_s == 60.0, "and never more than the attempt timeout"

    run_virtual(main)


def test_a_probes_lease_follows_the_latency_of_the_last_healthy_period() -> None:
    """A model that was slow in the morning does not keep the long lease in the evening."""

    async def main() -> None:
        guard = make_guard(breaker=BreakerOptions(recovery_s=10))
        for _ in range(500):
            await guard.call(answer_in, 14.0)
        for _ in range(200):
            await guard.call(answer_in, 2.0)
        await asyncio.sleep(3600.0)  # an hour without calls changes nothing
        guard.tick()
        await open_breaker(guard)
        assert guard.breaker.lease_s == pytest.approx(5.0, abs=0.1), (
            "half of the recovery time, because twice two seconds is less"
        )

    run_virtual(main)


def test_a_probe_cut_by_its_callers_deadline_is_inconclusive() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        await asyncio.sleep(60)
        for _ in range(9):
            await error_of(guard.call(hang, timeout_s=1.0))
            assert guard.breaker.phase is HALF_OPEN
        await error_of(guard.call(hang, timeout_s=1.0))
        assert guard.breaker.phase is OPEN and guard.breaker.streak == 0

    run_virtual(main)


def test_a_streaming_probe_keeps_its_lease_while_content_arrives() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        await asyncio.sleep(60)
        scope = await guard.begin(answer)
        for _ in range(5):
            await asyncio.sleep(25)
            scope.renew()
            guard.tick()
        assert guard.breaker.phase is HALF_OPEN
        scope.settle()
        assert guard.breaker.ok == 1
        silent = await guard.begin(answer)
        await asyncio.sleep(30)
        guard.tick()
        assert guard.breaker.phase is OPEN
        silent.settle()
        assert guard.breaker.phase is OPEN and guard.breaker.stale == 1 and nothing_is_taken(guard)

    run_virtual(main)


def test_a_late_result_from_before_the_outage_changes_nothing() -> None:
    async def main() -> None:
        guard = make_guard()
        late = [
            asyncio.create_task(error_of(guard.call(work))) for work in (answer_after_50_s, fail_after_50_s)
        ]
        await asyncio.sleep(0)
        await open_breaker(guard)
        await asyncio.sleep(50)
        await asyncio.gather(*late)
        assert guard.breaker.phase is OPEN and guard.breaker.stale == 2
        assert guard.tally.totals().verdicts == [1, 6, 0, 0], "but it is counted"

    run_virtual(main)


async def answer_after_50_s() -> str:
    return await answer_in(50)


async def fail_after_50_s() -> str:
    await asyncio.sleep(50)
    return await fail()


def test_without_traffic_the_monitors_tick_and_check_close_the_breaker() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        for second in range(1, 241):
            await asyncio.sleep(1)
            guard.tick()
            assert guard.breaker.phase is (OPEN if second < 60 else HALF_OPEN)
            if second < 240:
                guard.note_check(None)
        guard.note_check(None)
        assert guard.breaker.phase is CLOSED
        assert guard.gates.bulkhead.cap == 1, "no probe has tested it: one call at first"

    run_virtual(main)


def test_failed_checks_are_reported_until_a_call_succeeds() -> None:
    async def main() -> None:
        guard = make_guard()
        for _ in range(3):
            guard.note_check(UNREACHABLE)
        assert database_state(guard.evidence())[0] is DatabaseState.UNHEALTHY
        await guard.call(answer)
        assert database_state(guard.evidence())[0] is DatabaseState.HEALTHY
        await asyncio.sleep(1)
        for _ in range(3):
            guard.note_check(UNREACHABLE)
        guard.note_check(None)
        assert database_state(guard.evidence())[0] is DatabaseState.HEALTHY

    run_virtual(main)


# ── the ramp ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def recover(guard: Guard) -> None:
    await open_breaker(guard)
    await asyncio.sleep(60)
    for _ in range(2):
        await guard.call(answer)
    assert guard.breaker.phase is CLOSED


def test_after_an_outage_callers_are_admitted_gradually_and_none_is_refused() -> None:
    async def main() -> None:
        guard, at = make_guard(concurrency_max=1000), list[float]()
        await recover(guard)
        began = now()

        async def work() -> None:
            at.append(now() - began)
            await asyncio.sleep(20)

        await asyncio.gather(*(guard.call(work) for _ in range(100)))
        # Two probes were running when the second closed it, and one of them was still counted.
        running = [sum(one <= second for one in at) for second in range(6)]
        assert running[0] in (4, 5) and running[-1] == 100
        for before, after in pairwise(running):
            assert after <= 2 * before + 1
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_fast_calls_pass_a_ramp_without_waiting_for_its_steps() -> None:
    async def main() -> None:
        guard = make_guard()
        await recover(guard)
        began = now()
        for _ in range(500):
            await asyncio.gather(*(guard.call(answer) for _ in range(3)))
        assert now() == began

    run_virtual(main)


def test_the_ramp_widens_for_waiting_calls_without_a_tick_and_without_a_leaving_call() -> None:
    async def main() -> None:
        guard = make_guard()
        await recover(guard)
        began, tasks = now(), [asyncio.create_task(guard.call(hang)) for _ in range(12)]
        await asyncio.sleep(0)
        assert guard.gates.bulkhead.used in (4, 5)
        await asyncio.sleep(3)
        assert guard.gates.bulkhead.used == 12 and now() == began + 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_ramp_has_one_timer_however_often_its_queue_empties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would set the next one, and in a shortage of connections, which narrows again and again, they add up."""

    async def main() -> None:
        guard, timers = make_guard(), list[float]()
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def note(
            when: float, callback: Callable[..., object], *args: Any, **more: Any
        ) -> asyncio.TimerHandle:
            if callback == guard.gates._widen:
                timers.append(when)
            return call_at(when, callback, *args, **more)

        monkeypatch.setattr(loop, "call_at", note)
        guard.gates.bulkhead.narrow(1, guard.now())
        for _ in range(50):
            await asyncio.gather(guard.call(answer_soon), guard.call(answer_soon))
        assert timers == [guard.gates.bulkhead.widens_at]

    run_virtual(main)


def test_a_ramp_that_outlives_its_event_loop_widens_on_the_next_one() -> None:
    """The timer for its next step ended with the first loop."""
    guards = list[Guard]()

    async def begin() -> None:
        guards.append(make_guard(clock=LoopClock()))
        guards[0].gates.bulkhead.narrow(1, guards[0].now())
        await asyncio.wait([asyncio.create_task(guards[0].call(one)) for one in (hang, answer)], timeout=0.5)

    async def go_on() -> None:
        running = asyncio.create_task(guards[0].call(hang))
        await asyncio.sleep(0)
        assert await guards[0].call(answer) == "answer" and now() == 1.0
        running.cancel()

    run_virtual(begin)
    run_virtual(go_on)


class LoopClock(SystemClock):
    """Reads the time of whichever loop runs."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


async def answer_soon() -> None:
    await asyncio.sleep(0.001)


def test_the_ramp_of_one_model_takes_no_slots_from_the_others() -> None:
    async def main() -> None:
        sick, well = make_peers("sick", "well")
        gates = sick.gates
        await open_breaker(sick)
        await asyncio.sleep(60)
        running = [asyncio.create_task(well.call(answer_in, 30.0)) for _ in range(50)]
        await asyncio.sleep(0)
        for _ in range(2):
            await sick.call(answer)
        assert sick.breaker.phase is CLOSED and gates.bulkhead.used == 50 and 54 <= gates.bulkhead.cap < 60
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        began = now()
        await asyncio.gather(*(well.call(answer_in, 0.5) for _ in range(50)))
        assert now() == began + 0.5, "it keeps its own number of slots"

    run_virtual(main)


def test_a_tick_ends_a_ramp_and_resetting_a_closed_breaker_starts_none() -> None:
    async def main() -> None:
        guard = make_guard(concurrency_max=100)
        guard.reset()
        assert guard.gates.bulkhead.cap == 100
        await recover(guard)
        assert guard.gates.bulkhead.cap < 100
        await asyncio.sleep(5)
        guard.tick()
        assert guard.gates.bulkhead.cap == 100
        await open_breaker(guard)
        guard.reset()
        assert guard.gates.bulkhead.cap == 4, "a reset in an outage does"

    run_virtual(main)


def test_metrics_only_starts_no_ramp() -> None:
    async def main() -> None:
        guard = make_guard(breaker=BreakerOptions(success_threshold=1))
        guard.set_override(METRICS_ONLY)
        for _ in range(5):
            await error_of(guard.call(fail))
        await asyncio.sleep(60)
        await guard.call(answer)
        assert guard.breaker.phase is CLOSED and guard.gates.bulkhead.cap == guard.gates.bulkhead.limit

    run_virtual(main)


# ── what models of one service share ──────────────────────────────────────────────────────────────────────────────


def test_an_unreachable_host_counts_for_all_its_models_and_an_overloaded_model_only_for_itself() -> None:
    async def main() -> None:
        def classify(error: Exception) -> Fault:
            kind = error.kind if isinstance(error, ServiceFailed) else Kind.UNKNOWN
            return Fault(verdict=FAILURE, kind=kind, reach="service" if kind is Kind.CONNECTION else "model")

        async def unreachable() -> None:
            raise ServiceFailed("claude", "connection refused", kind=Kind.CONNECTION)

        opus, haiku = make_peers("opus", "haiku", classify=classify)
        for _ in range(4):
            await error_of(opus.call(fail))
        assert (opus.breaker.consecutive, haiku.breaker.consecutive) == (4, 0)
        await opus.call(answer)
        for n in range(1, 5):
            await error_of(opus.call(unreachable))
            assert (opus.breaker.consecutive, haiku.breaker.consecutive) == (n, n)
        await error_of(haiku.call(unreachable))
        assert opus.breaker.phase is OPEN and haiku.breaker.phase is OPEN
        assert haiku.tally.totals().verdicts[FAILURE] == 1, "another model's call is not in its own counts"

    run_virtual(main)


def test_a_late_failure_does_not_spread_to_the_other_models() -> None:
    async def main() -> None:
        def classify(error: Exception) -> Fault:
            unreachable = isinstance(error, ConnectionError)
            return Fault(verdict=FAILURE, reach="service" if unreachable else "model")

        async def reset_after_a_while() -> None:
            await asyncio.sleep(5)
            raise ConnectionResetError("reset")

        opus, haiku = make_peers("opus", "haiku", classify=classify)
        late = asyncio.create_task(error_of(opus.call(reset_after_a_while)))
        await asyncio.sleep(0)
        await open_breaker(opus)
        assert isinstance(await late, ConnectionResetError) and opus.breaker.stale == 1
        assert haiku.breaker.consecutive == 0 and haiku.breaker.window.calls == 0

    run_virtual(main)


def test_one_reset_that_hits_all_calls_is_one_step_for_each_model() -> None:
    async def main() -> None:
        def classify(error: Exception) -> Fault:
            return Fault(verdict=FAILURE, kind=Kind.CONNECTION, reach="service")

        cut = asyncio.Event()

        async def cut_off() -> None:
            await cut.wait()
            raise ConnectionResetError("reset")

        sturdy = BreakerOptions(calls_min=1000)
        guards = make_peers("a", "b", "c", classify=classify, breaker=sturdy)
        tasks = [asyncio.create_task(error_of(guard.call(cut_off))) for guard in guards for _ in range(10)]
        await asyncio.sleep(1)
        cut.set()
        await asyncio.gather(*tasks)
        assert [guard.breaker.consecutive for guard in guards] == [1, 1, 1]
        assert [guard.breaker.window.failures for guard in guards] == [30, 30, 30]

    run_virtual(main)


def test_a_refused_key_is_blocked_with_an_event_and_the_next_call_is_refused() -> None:
    async def main() -> None:
        events = list[Event]()

        def classify(error: Exception) -> Fault:
            return Fault(verdict=NEUTRAL, kind=Kind.AUTH, block="service")

        guard, script = make_guard(classify=classify, events=events), Script(reset_by_peer)
        for _ in range(3):
            await error_of(guard.call(script))
        refusal = Failure(Kind.AUTH, "it raised ConnectionResetError", at=guard.gates.clock.wall())
        assert script.calls == 1
        expected = KeyBlocked(
            "claude", "the provider refused the key", last_error=refusal, again_in_s=CHECK_S_MIN
        )
        assert events == [expected]
        assert guard.tally.refused == {"key_refused": 2}

    run_virtual(main)


def returning(fault: Fault, error: Exception) -> Fault:
    return fault


def test_a_key_block_or_quota_with_a_known_end_ends_at_that_time() -> None:
    async def main() -> None:
        clock = VirtualClock(wall_s=1_000_000.0)
        ends: list[Fault] = [
            Fault(verdict=NEUTRAL, kind=Kind.AUTH, block="service", until_wall_s=1_000_500.0),
            Fault(verdict=THROTTLED, kind=Kind.QUOTA, reach="service", until_wall_s=1_000_500.0),
        ]
        for fault in ends:
            clock.set_wall(1_000_000.0)
            guard = make_guard(classify=partial(returning, fault), clock=clock)
            began = now()
            await error_of(guard.call(reset_by_peer))
            await asyncio.sleep(499)
            assert await error_of(guard.call(answer)) is not None
            await asyncio.sleep(1)
            assert await guard.call(answer) == "answer" and now() == began + 500

    run_virtual(main)


# ── operators ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_operator_forces_a_breaker_open_and_lifts_the_override_again() -> None:
    async def main() -> None:
        guard = make_guard()
        guard.set_override(FORCED_OPEN)
        error = await error_of(guard.call(answer))
        assert isinstance(error, CircuitOpen) and "operator" in str(error)
        guard.set_override(NONE)
        assert await guard.call(answer) == "answer"

    run_virtual(main)


def test_disabled_and_metrics_only_admit_and_count_everything() -> None:
    async def main() -> None:
        for override, phase in ((DISABLED, CLOSED), (METRICS_ONLY, OPEN)):
            guard, script = make_guard(), Script(*[fail] * 20)
            guard.set_override(override)
            for _ in range(20):
                assert isinstance(await error_of(guard.call(script)), ServiceFailed)
            assert script.calls == 20 and guard.breaker.phase is phase
            assert guard.tally.totals().verdicts == [0, 20, 0, 0] and nothing_is_taken(guard)

    run_virtual(main)


def test_metrics_only_cuts_no_call_short() -> None:
    async def main() -> None:
        guard = make_guard()
        guard.set_override(METRICS_ONLY)
        for _ in range(5):
            await error_of(guard.call(fail))
        await asyncio.sleep(60)
        assert await guard.call(answer_in, 50.0) == "answer", "the lease of a probe would be half a minute"
        assert nothing_is_taken(guard)

    run_virtual(main)


def test_a_reset_clears_streak_checks_and_pause_but_not_counts_or_limits() -> None:
    async def main() -> None:
        guard = make_guard()
        await open_breaker(guard)
        guard.cooldown.extend(guard.now(), 100.0, lambda: 0.0, Kind.THROTTLED, "why")
        guard.note_check(UNREACHABLE)
        guard.reset()
        assert await guard.call(answer) == "answer"
        assert (guard.breaker.phase, guard.breaker.streak, guard.checks_failed) == (CLOSED, 0, 0)
        assert guard.tally.totals().verdicts == [1, 5, 0, 0] and guard.gates.limits.counts[0].used == 6

    run_virtual(main)


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_are_published_in_order_after_the_state_is_set() -> None:
    async def main() -> None:
        seen = list[tuple[Event, str]]()
        guard = make_guard(publish=lambda event: seen.append((event, guard.breaker.phase.value)))
        opened_at = guard.gates.clock.wall()
        await recover(guard)
        guard.set_override(FORCED_OPEN)
        guard.reset()
        at = guard.gates.clock.wall()
        await error_of(guard.call(throttled(9.0)))
        down = Failure(Kind.SERVER_ERROR, "it is down", at=opened_at)
        throttle = Failure(Kind.THROTTLED, "too many requests", at=at)
        assert seen == [
            (CircuitOpened("claude", "5 failures in a row, the last: it is down", 60.0, down), "open"),
            (CircuitHalfOpened("claude"), "half_open"),
            (CircuitClosed("claude"), "closed"),
            (OverrideSet("claude", "forced_open"), "closed"),
            (CircuitClosed("claude", by_operator=True), "closed"),
            (
                CooldownBegan("claude", 9.0, "the provider limits the request rate", last_error=throttle),
                "closed",
            ),
        ]

    run_virtual(main)


def test_a_burst_of_throttled_calls_is_one_event_and_one_step() -> None:
    async def main() -> None:
        events = list[Event]()
        guard = make_guard(events=events)

        async def throttled_together() -> str:
            await asyncio.sleep(1)
            return await throttled()()

        await asyncio.gather(*(error_of(guard.call(throttled_together)) for _ in range(50)))
        assert len(events) == 1 and guard.cooldown.level == 1 and guard.cooldown.until == guard.now() + 1.0

    run_virtual(main)


def test_a_listener_that_raises_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def listener(event: Event) -> None:
            raise RuntimeError("a bug in a listener")

        bus = EventBus()
        bus.listen(listener)
        for publish in (bus.publish, listener):
            guard = make_guard(publish=publish)
            await recover(guard)
            assert nothing_is_taken(guard) and guard.tally.totals().verdicts[SUCCESS] == 2

    with caplog.at_level(logging.ERROR, "koo"):
        run_virtual(main)
    assert "a bug in a listener" in caplog.text


def test_a_listener_that_calls_the_guard_receives_events_in_order() -> None:
    async def main() -> None:
        bus, seen = EventBus(), list[str]()
        guard = make_guard(publish=bus.publish)

        def reset(event: Event) -> None:
            seen.append(type(event).__name__)
            if isinstance(event, CircuitOpened):
                guard.reset()

        bus.listen(reset)
        for _ in range(5):
            await error_of(guard.call(fail))
        assert seen == ["CircuitOpened", "CircuitClosed"] and guard.breaker.phase is CLOSED
        assert nothing_is_taken(guard)

    run_virtual(main)


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_guard_works_in_one_run_after_another() -> None:
    guard = make_guard(limits=Limits(), clock=SystemClock())
    assert [asyncio.run(guard.call(answer)) for _ in range(3)] == ["answer"] * 3
    assert nothing_is_taken(guard)


def test_use_from_another_threads_loop_is_a_clear_error_and_no_failure_of_the_service() -> None:
    """This test uses a real loop, because threads do not follow virtual time."""

    async def main() -> None:
        guard, said, ended = (
            make_guard(limits=Limits(), clock=SystemClock()),
            list[BaseException](),
            asyncio.Event(),
        )

        async def elsewhere() -> None:
            said.append(await error_of(guard.call(answer)))

        running = asyncio.create_task(guard.call(ended.wait))
        await asyncio.sleep(0)
        await asyncio.to_thread(asyncio.run, elsewhere())
        ended.set()
        assert await running is True
        assert isinstance(said[0], WrongLoop) and "another event loop" in str(said[0])
        assert guard.tally.totals().verdicts == [1, 0, 1, 0] and nothing_is_taken(guard)

    asyncio.run(main())
