"""Money that is granted after the deadline: no attempt starts, and the money is released."""

from __future__ import annotations

import pytest

from koo.deadlines import Deadlines
from koo.errors import Kind, ServiceTimeout
from koo.gates import Gates
from koo.guard import Guard
from koo.options import GuardOptions
from koo.testing.clock import VirtualClock, run_virtual


class LateCharge:
    """A ledger that ignores the deadline."""

    def __init__(self, clock: VirtualClock, after_s: float) -> None:
        self.clock, self.after_s = clock, after_s
        self.ended = list[str]()

    async def hold(self, deadline: float) -> None:
        await self.clock.sleep(self.after_s)

    def settle(self) -> None:
        self.ended.append("settled")

    def release(self) -> None:
        self.ended.append("released")


@pytest.mark.parametrize(("after_s", "begun"), [(0.5, True), (1.0, False), (2.0, False)])
def test_no_attempt_starts_after_the_deadline(after_s: float, begun: bool) -> None:
    async def main() -> None:
        clock, ran = VirtualClock(), list[str]()
        guard = Guard(Gates("own", GuardOptions(), deadlines=Deadlines(), clock=clock))
        charge = LateCharge(clock, after_s)

        async def operation() -> None:
            ran.append("begun")

        if begun:
            await guard.call(operation, charge=charge, timeout_s=1.0)
        else:
            with pytest.raises(ServiceTimeout) as caught:
                await guard.call(operation, charge=charge, timeout_s=1.0)
            assert caught.value.kind is Kind.DEADLINE
        assert ran == ["begun"] * begun and charge.ended == ["settled" if begun else "released"]
        assert not guard.gates.bulkhead.used and not guard.breaker.running

    run_virtual(main)
