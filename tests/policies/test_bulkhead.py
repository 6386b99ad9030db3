"""The bulkhead: first come, first served, no waiter is lost, and a ramp follows an outage."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from koo.policies.bulkhead import Bulkhead


class Caller:
    """A waiter that can be woken like an asyncio future."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.woken = self.gone = False

    def done(self) -> bool:
        return self.woken or self.gone

    def set_result(self, result: None, /) -> None:
        assert not self.done(), "woken twice"
        self.woken = True


def test_a_call_that_leaves_passes_its_slot_to_the_longest_waiter() -> None:
    slots, callers = Bulkhead(1), [Caller(n) for n in range(3)]
    assert slots.take()
    slots.line.extend(callers)
    for caller in callers:
        assert not slots.take(), "a newcomer does not overtake the queue"
        slots.give_back()
        assert caller.woken and slots.used == 1
    slots.give_back()
    assert slots.used == 0 and slots.take()


def test_a_waiter_that_gave_up_is_skipped() -> None:
    slots, first, second = Bulkhead(1), Caller(1), Caller(2)
    slots.take()
    slots.line.extend([first, second])
    first.gone = True  # cancelled, and has not run yet
    slots.give_back()
    assert second.woken and slots.used == 1
    slots.leave(first, granted=False)
    assert slots.used == 1


def test_a_waiter_that_gives_up_after_it_was_handed_a_slot_passes_it_on() -> None:
    slots, first, second = Bulkhead(1), Caller(1), Caller(2)
    slots.take()
    slots.line.extend([first, second])
    slots.give_back()
    slots.leave(first, granted=True)
    assert second.woken and slots.used == 1
    slots.leave(second, granted=True)
    assert slots.used == 0


@given(
    limit=st.integers(1, 3),
    acts=st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "go", "go", "give up", "slip", "ramp"]),
            st.integers(0, 9),
        ),
        max_size=80,
    ),
)
@settings(deadline=None, max_examples=300)
def test_no_waiter_is_lost_and_none_overtakes_another(limit: int, acts: list[tuple[str, int]]) -> None:
    """Callers arrive, leave, and give up in the queue or after they were handed a slot; a ramp begins and widens."""
    slots, inside, line, served, numbers = Bulkhead(limit), list[int](), list[Caller](), list[int](), 0
    for act, pick in acts:
        if act == "come":
            numbers += 1
            if slots.take():
                assert not line, "barged in"
                inside.append(numbers)
                served.append(numbers)
            else:
                line.append(Caller(numbers))
                slots.line.append(line[-1])
        elif act == "go" and inside:
            inside.pop(pick % len(inside))
            slots.give_back()
        elif act == "give up" and line:
            caller = line.pop(pick % len(line))
            caller.gone = True
            slots.leave(caller, granted=False)
        elif act == "ramp":
            ramp(slots, pick, float(numbers))
        woken = [caller for caller in line if caller.woken]
        for caller in woken:
            line.remove(caller)
            if act == "slip":
                slots.leave(caller, granted=True)
            else:
                inside.append(caller.number)
                served.append(caller.number)
        if act == "slip":
            for caller in [caller for caller in line if caller.woken]:
                line.remove(caller)
                inside.append(caller.number)
                served.append(caller.number)
        assert slots.used == len(inside) <= limit
        assert not line or slots.used >= slots.cap, "a slot is free while a call waits"
        assert served == sorted(served), "overtaken"


def ramp(slots: Bulkhead, pick: int, now: float) -> None:
    """Begin a ramp, or continue it for some seconds."""
    if pick < 5:
        slots.narrow(pick % 3, now)
    else:
        slots.widen(now + pick - 5)


# ── the ramp ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_an_outage_a_few_calls_may_run_and_the_number_doubles_every_second() -> None:
    slots = Bulkhead(50)
    slots.narrow(4, 100.0)
    caps = []
    for second in range(6):
        slots.widen(100.0 + second)
        caps.append(slots.cap)
    assert caps == [4, 8, 16, 32, 50, 50]
    slots.widen(100.999)
    assert slots.cap == 4 and slots.widens_at == 101.0


def test_a_ramp_does_not_stop_calls_to_other_models() -> None:
    slots = Bulkhead(1000)
    for _ in range(150):
        slots.take()
    slots.narrow(4, 0.0)
    assert sum(slots.take() for _ in range(100)) == 4
    for _ in range(50):
        slots.give_back()
    assert sum(slots.take() for _ in range(100)) == 50, "a healthy model keeps its slots"
    slots.widen(1.0)
    assert sum(slots.take() for _ in range(100)) == 4


def test_a_ramp_that_widens_wakes_waiters_in_order() -> None:
    slots, callers = Bulkhead(100), [Caller(n) for n in range(10)]
    slots.narrow(2, 0.0)
    assert slots.take() and slots.take() and not slots.take()
    slots.line.extend(callers)
    slots.widen(1.0)
    assert [caller.woken for caller in callers] == [True] * 2 + [False] * 8 and slots.used == 4
    slots.widen(3.0)
    assert all(caller.woken for caller in callers) and slots.used == 12 <= slots.cap


def test_during_a_ramp_a_call_that_leaves_passes_its_slot_on() -> None:
    slots, caller = Bulkhead(3), Caller(1)
    slots.narrow(1, 0.0)
    assert slots.take() and not slots.take()
    slots.line.append(caller)
    slots.give_back()
    assert caller.woken and slots.used == 1


def test_a_ramp_never_passes_the_limit_and_never_overflows() -> None:
    slots = Bulkhead(3)
    slots.narrow(4, 0.0)
    assert slots.cap == 3
    slots.widen(1e9)
    assert slots.cap == 3
    none = Bulkhead(0)
    none.narrow(4, 0.0)
    assert none.cap == 0 and not none.take()
