"""A short version of `make prove-money`: two processes, of which one is killed, and the control."""

from __future__ import annotations

import asyncio
import random

import pytest

from proofs import money
from proofs.money import Fleet, control, on_sqlite, passes_the_cap


async def one_killed(fleet: Fleet, rng: random.Random) -> None:
    await fleet.until_share(0.3)
    fleet.kill_one(rng)


@pytest.mark.slow
def test_a_fleet_with_a_killed_process_stays_within_its_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(money, "CALLERS", 60)
    monkeypatch.setattr(money, "QUIET_S", 2.0)
    run = asyncio.run(on_sqlite("one killed", one_killed, "3", processes=2, spares=1))
    assert run.found == []
    assert run.fleet.spent_share() > 0.3


@pytest.mark.slow
def test_counters_synchronised_in_batches_exceed_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(money, "QUIET_S", 1.0)
    assert passes_the_cap(asyncio.run(control()))
