"""Cooldowns and blocked keys, which keep calls away from a provider that asks for it."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from koo.errors import Kind
from koo.policies.cooldown import Cooldown
from koo.policies.key_block import BLOCKS_MAX, KeyBlocks


def no_jitter() -> float:
    return 0.0


def throttle(
    cooldown: Cooldown, now: float, hint_s: float | None = None, kind: Kind = Kind.THROTTLED
) -> float:
    return cooldown.extend(now, hint_s, no_jitter, kind, "why")


# ── cooldown ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    answers=st.lists(
        st.tuples(st.floats(0.0, 100.0), st.one_of(st.none(), st.floats(0.0, 1e5)), st.floats(0.0, 1.0))
    ),
)
@settings(deadline=None)
def test_the_later_end_wins_and_is_never_shortened(answers: list[tuple[float, float | None, float]]) -> None:
    cooldown, now = Cooldown(), 0.0
    for gap, hint_s, draw in answers:
        now += gap
        before = cooldown.until
        for_s = cooldown.extend(now, hint_s, lambda draw=draw: draw, Kind.THROTTLED, "why")  # type: ignore[misc]
        assert cooldown.until >= before
        assert for_s == cooldown.until - now
        if hint_s is not None:
            assert cooldown.until >= now + hint_s
            assert cooldown.until <= max(before, now + 1.05 * hint_s + 1e-6)


def test_without_a_hint_each_pause_is_longer_up_to_a_minute() -> None:
    cooldown, now, waits = Cooldown(), 0.0, []
    for _ in range(9):
        waits.append(throttle(cooldown, now))
        now = cooldown.until
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    cooldown.ease()
    assert throttle(cooldown, now) == 1.0, "after a success the next pause is short again"


def test_fifty_calls_that_meet_one_limit_at_the_same_time_are_one_step() -> None:
    cooldown = Cooldown()
    for _ in range(50):
        throttle(cooldown, 0.0)
    assert cooldown.until == 1.0 and cooldown.level == 1


def test_a_spent_quota_pauses_calls_for_one_to_fifteen_minutes() -> None:
    cooldown, now, waits = Cooldown(), 0.0, []
    for _ in range(6):
        waits.append(throttle(cooldown, now, kind=Kind.QUOTA))
        now = cooldown.until
    assert waits == [60.0, 120.0, 240.0, 480.0, 900.0, 900.0]


def test_a_servers_hint_is_accepted_up_to_a_month_and_lengthened_by_at_most_a_twentieth() -> None:
    assert throttle(Cooldown(), 0.0, 1e9) == 31 * 86_400.0
    assert Cooldown().extend(0.0, 100.0, lambda: 1.0, Kind.THROTTLED, "why") == 105.0
    assert throttle(Cooldown(), 0.0, -5.0) == 0.0, "an absurd hint counts as none"


def test_the_longer_pause_keeps_its_reason() -> None:
    cooldown = Cooldown()
    cooldown.extend(0.0, 1000.0, no_jitter, Kind.QUOTA, "quota")
    cooldown.extend(0.0, 1.0, no_jitter, Kind.THROTTLED, "rate")
    assert (cooldown.kind, cooldown.reason) == (Kind.QUOTA, "quota")


def test_thousands_of_throttled_responses_do_not_overflow_and_a_reset_ends_the_pause() -> None:
    cooldown = Cooldown()
    cooldown.level = 5000
    assert throttle(cooldown, 0.0) == 60.0
    cooldown.clear()
    assert cooldown.until == 0.0 and throttle(cooldown, 0.0) == 1.0


# ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_blocked_key_stops_all_models_and_a_blocked_model_only_itself() -> None:
    blocks = KeyBlocks()
    assert not blocks and blocks.find("a", 0.0) is None
    assert blocks.set("a", "not for a", 0.0)
    assert blocks.find("b", 0.0) is None and blocks.find(None, 0.0) is None
    assert blocks.set(None, "refused", 0.0) and not blocks.set(None, "again", 1.0)
    found = blocks.find("b", 1.0)
    assert found is not None and found.reason == "refused" and blocks


def test_a_block_without_an_end_stays_and_a_block_with_an_end_expires() -> None:
    blocks = KeyBlocks()
    blocks.set(None, "refused", 0.0)
    blocks.set("a", "spent", 0.0, until=100.0)
    assert blocks.find(None, 1e9) is not None
    assert blocks.expire(99.0) == [] and blocks.expire(100.0) == ["a"] and bool(blocks)


def test_an_expired_block_refuses_no_call_before_it_is_removed() -> None:
    blocks = KeyBlocks()
    blocks.set("a", "spent", 0.0, until=100.0)
    assert blocks.find("a", 99.9) is not None and blocks.find("a", 100.0) is None and bool(blocks)


def test_a_later_end_wins() -> None:
    blocks = KeyBlocks()
    blocks.set("a", "spent", 0.0, until=100.0)
    blocks.set("a", "spent", 0.0, until=50.0)
    assert blocks.find("a", 60.0) is not None
    blocks.set("a", "refused", 0.0)
    found = blocks.find("a", 1e9)
    assert found is not None and found.until == math.inf


def test_a_block_is_checked_after_one_minute_and_then_at_intervals_that_grow_to_fifteen() -> None:
    blocks = KeyBlocks()
    blocks.set(None, "refused", 0.0)
    now, gaps = 0.0, []
    for _ in range(7):
        assert not blocks.due(now)
        block = blocks.find(None, now)
        assert block is not None
        gaps.append(block.check_at - now)
        now = block.check_at
        assert blocks.due(now)
        blocks.postpone(now)
    assert gaps == [60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0]


def test_the_interval_of_a_model_that_is_refused_again_continues_to_grow() -> None:
    """A successful check proves that the key works, not that it may use the model."""
    blocks, now, refused_at = KeyBlocks(), 0.0, []
    while now < 3600.0:
        if blocks.find("a", now) is None:
            assert blocks.set("a", "not for a", now)
            refused_at.append(now)
        now += 1.0
        if blocks.due(now):
            assert blocks.lift(now) == ["a"]
    assert refused_at == [0.0, 60.0, 180.0, 420.0, 900.0, 1800.0, 2700.0]


def test_a_block_long_after_the_last_one_is_checked_after_a_minute_again() -> None:
    for remedy in ("time", "an operator"):
        blocks = KeyBlocks()
        blocks.set("a", "not for a", 0.0)
        assert blocks.lift(60.0) == ["a"]
        if remedy == "an operator":
            blocks.clear()
        at = 61.0 if remedy == "an operator" else 2000.0
        blocks.set("a", "not for a", at)
        assert not blocks.due(at + 59.0) and blocks.due(at + 60.0)


def test_a_check_lifts_the_keys_block_immediately_and_a_models_only_when_due() -> None:
    blocks = KeyBlocks()
    blocks.set(None, "refused", 0.0)
    blocks.set("a", "not for a", 0.0)
    blocks.set("b", "spent", 0.0, until=1000.0)
    assert blocks.lift(30.0) == [None]
    assert blocks.lift(60.0) == ["a"], "a block with a known end is not checked"
    blocks.postpone(60.0)
    assert blocks.find("b", 61.0) is not None


def test_blocks_of_invented_models_do_not_fill_memory() -> None:
    blocks = KeyBlocks()
    blocks.set(None, "refused", 0.0)
    for number in range(5000):
        blocks.set(f"m{number}", "not for it", 0.0)
    assert len(blocks.by_model) == BLOCKS_MAX and None in blocks.by_model and "m4999" in blocks.by_model


def test_a_reset_removes_all_blocks() -> None:
    blocks = KeyBlocks()
    blocks.set(None, "refused", 0.0)
    blocks.set("a", "not for a", 0.0)
    assert set(blocks.clear()) == {None, "a"} and not blocks and blocks.clear() == []
