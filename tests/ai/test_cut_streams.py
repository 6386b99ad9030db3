"""Streams that were cut or left, in every wire format: bookings cover the bill, and no estimate exceeds its hold."""

from __future__ import annotations

from collections import Counter

import pytest

from koo.ai.query_charge import QueryCharge
from koo.ai.types import Usage
from proofs.running import ProofFailed
from proofs.streams import ENDS, FORMATS, cut_and_left


@pytest.mark.parametrize("seed", range(1))
def test_no_stream_is_booked_above_its_hold_or_below_what_was_reported(seed: int) -> None:
    seen: Counter[str] = cut_and_left(600, seed)
    assert len(seen) == len(FORMATS) * len(ENDS)


def test_the_check_detects_an_estimate_above_its_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QueryCharge, "_estimate_usd", lambda self, usage, _: self.price.cost_usd(usage))
    with pytest.raises(ProofFailed):
        cut_and_left(600)


def test_the_check_detects_counts_that_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Usage, "grown", lambda self, later: later)
    with pytest.raises(ProofFailed, match="booked"):
        cut_and_left(1500)
