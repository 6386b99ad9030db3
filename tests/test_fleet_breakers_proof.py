"""A short version of `make prove-fleet ARGS=breakers`: real processes and a provider that fails and recovers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proofs.fleet_breakers import Size, comes_back, goes_down, loses_its_leader, try_out


def test_an_outage_costs_a_fleet_few_calls_and_a_killed_leader_causes_no_second_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test takes a quarter of a minute: real processes are killed, and a leader is replaced after four missed
    beats.
    """
    monkeypatch.setattr("proofs.fleet_breakers.TELLING_S", 2.0)
    size = Size(processes=6, busy=3, recovery_s=1.0)
    trials = (goes_down, comes_back, loses_its_leader)
    findings = asyncio.run(try_out(f"sqlite:///{tmp_path}/state.db", str(tmp_path), size, trials))
    assert len(findings.lines) == 4
    assert findings.found == []
