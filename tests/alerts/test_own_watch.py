"""Background checks are watched: their signs of life must change, and the beat must come."""

from __future__ import annotations

import asyncio
from functools import partial

from koo.alerts.signs import Signs
from koo.beats import KEPT_S, LATE_S, Beats
from koo.testing.clock import run_virtual


def test_a_check_is_late_if_its_sign_of_life_stays_the_same_for_too_many_steps() -> None:
    signs = Signs()
    for _ in range(4):
        signs.see("probe", "first", 3)
    assert signs.late == []
    signs.see("probe", "first", 3)
    assert signs.late == ["probe"]
    signs.see("probe", "second", 3)
    assert signs.late == [], "the check has run"


def test_a_check_that_is_not_meant_to_run_is_not_late() -> None:
    signs = Signs()
    for _ in range(9):
        signs.see("probe", None, 3)
    signs.forget("probe")
    assert signs.late == []


def test_a_missing_beat_is_late_and_a_late_beat_is_shown_for_five_minutes() -> None:
    async def main() -> None:
        beats, loop = Beats(), asyncio.get_running_loop()
        await asyncio.sleep(LATE_S + 1)
        assert not beats.is_late, "nothing is late before the first beat"
        beats.beat(loop.time())
        await asyncio.sleep(LATE_S)
        assert not beats.is_late
        await asyncio.sleep(1)
        assert beats.is_late and beats.blocked_s(loop.time()) == 0
        beats.beat(loop.time())
        assert not beats.is_late and beats.blocked_s(loop.time()) == LATE_S + 1
        await asyncio.sleep(KEPT_S)
        assert beats.blocked_s(loop.time()) == 0
        beats.stop()
        assert not beats.is_late, "it was closed"

    run_virtual(main)


def test_a_beat_on_another_loop_starts_again() -> None:
    beats = Beats()

    async def main(later_s: float) -> float:
        await asyncio.sleep(later_s)
        beats.beat(0.0)
        return beats.blocked_s(0.0)

    assert run_virtual(partial(main, 0.0)) == 0
    assert run_virtual(partial(main, 1000.0)) == 0
