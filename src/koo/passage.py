"""What a call passes to the gates: how long it may wait, and the charge that pays for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from koo.errors import Failure

LOOK_AGAIN_S = 1.0
"""A call waiting for something that may happen early (a unit of a limit, the end of a pause) checks at least this
often."""

OnLimit = Literal["refuse", "wait"]
"""None, the default: wait for a pause that the provider requested, but be refused by koo's own limits."""


class Charge(Protocol):
    """Money for the attempts of one call: each hold ends in exactly one `settle` or `release`.

    `hold` raises `BudgetExceeded`. If it has to wait, it waits no longer than `deadline` (monotonic seconds). If it
    raises anything, including a cancellation, nothing is held.
    """

    async def hold(self, deadline: float) -> None: ...

    def settle(self) -> None: ...

    def release(self) -> None: ...


@dataclass(slots=True)
class Passage:
    """One call on its way through the gates, from its first attempt to its last.

    `deadline` is in monotonic seconds; `is_ours`: it comes from koo's own options, not from the caller. `has_next`: a
    fallback service is called if this one fails. `attempt` counts from 1; `anew` counts the attempts that sent the same
    call in another form or were not made; `ahead`: this one follows such an attempt, and waits for its slot in front of
    the others. `paced`: this attempt has booked a cell of the pacer. `met`: the failure of the previous
    attempt. A passage is created only for a call that waits, repeats, or is settled by its owner. Most calls take the
    fast path and need none.
    """

    charge: Charge | None
    deadline: float
    on_limit: OnLimit | None
    is_ours: bool = False
    has_next: bool = False
    attempt: int = 1
    anew: int = 0
    ahead: bool = False
    paced: bool = False
    met: Failure | None = None
