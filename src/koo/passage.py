"""What a call brings to the gates: how long it may wait, and the money for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from koo.errors import Failure

LOOK_AGAIN_S = 1.0
"""A call that waits for a time which may come earlier (a limit's unit, the end of a pause) looks at least so often."""

OnLimit = Literal["refuse", "wait"]
"""None, the default: wait for a pause that the other side asked for, be refused by our own limits."""


class Charge(Protocol):
    """Money for the attempts of one call: each hold ends in exactly one `settle` or `release`.

    `hold` raises `BudgetExceeded`; where it has to wait, it waits until `deadline` at most (monotonic seconds). If it
    raises anything, a cancellation included, nothing is held.
    """

    async def hold(self, deadline: float) -> None: ...

    def settle(self) -> None: ...

    def release(self) -> None: ...


@dataclass(slots=True)
class Passage:
    """One call on its way through the gates, from its first attempt to its last.

    `deadline` is in monotonic seconds; `is_ours`: it comes from koo's own options, not from the caller. `has_next`:
    another service is asked if this one fails. `attempt` counts from 1, `anew` those that asked the same in another
    form; `paced`: this attempt has a cell of the pacer; `met`: what the attempt before this one failed with.
    Made only for calls that something sets apart: a wait, a repeat, or an end that its owner settles. Most calls go the
    short way and need none.
    """

    charge: Charge | None
    deadline: float
    on_limit: OnLimit | None
    is_ours: bool = False
    has_next: bool = False
    attempt: int = 1
    anew: int = 0
    paced: bool = False
    met: Failure | None = None
