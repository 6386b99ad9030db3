"""A short version of the limits' part of `make prove-fleet`: real processes, a kill and an unreachable store."""

from __future__ import annotations

import asyncio

import pytest

from koo.testing.postgres import PostgresServer
from proofs.fleet_limits import Run, run


def test_a_limit_of_sixty_a_minute_holds_over_three_processes(
    postgres18: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test takes some seconds: processes start, two are killed, and others replace them."""
    monkeypatch.setattr("proofs.fleet_limits.CUT_S", 2.0)
    # A killed process keeps the units of its lease until the minute is over. How many depends on the machine, because
    # leases are longer where trips to the store take longer. All others are used, at ten times the limit.
    found = asyncio.run(run(postgres18, 60, 3, 9.0, demand=10.0))
    assert found.worst <= 60
    assert len(found.asked_at) + found.unreported >= 0.85 * 60
    assert len(found.asked_at) > found.unreported


def test_a_broken_limit_is_found() -> None:
    seconds = [float(second) for second in range(120)]
    assert Run(60, 4, seconds, 120.0).found() == []
    assert Run(59, 4, seconds, 120.0).found() == ["60 of 59 a minute over 4 processes"]
    assert Run(120, 1, seconds, 120.0).found() == ["50% of 120 a minute used over 1 processes"]
