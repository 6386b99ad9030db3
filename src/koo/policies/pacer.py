"""Keeps calls under the provider's own limits, before a 429 comes.

The headers of every answer say how much is left of each of the provider's limits, and when it is full again. That was
true when the answer's call arrived there: so the calls that left after it are subtracted, and an answer to an earlier
call than the last one heard brings nothing new. Of several limits, each counted in calls, the one with the longest wait
decides; what one limit allows is in `koo.policies.provider_limit`.

Sometimes it is unknown what is allowed: before the first answer, after a 429, and when a used-up limit should be full
again. Then a few calls go ahead as pilots, and the others wait for their answers. Otherwise two hundred callers at once
would meet an unknown limit of fifty with a hundred and fifty refused calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from koo.options import NEVER
from koo.policies.bulkhead import Bulkhead
from koo.policies.provider_limit import Limit, Told

PILOTS = 10
"""Below the limits per minute of nearly all vendors' first tiers."""
PILOTS_DOUBLE_AFTER_S = 5.0
"""Longer than a usual answer; a service whose first answer takes minutes does not wait for it with ten calls."""
DOUBTS_DOUBLE_AFTER_S = 30.0
"""After a limit was met each wrong guess is another 429, so one call asks for as long as answers take."""
DOUBLINGS_MAX = 30
WAIT_S_MIN = 0.001
"""Less is rounding."""
PILOT_LOOK_S = 0.05
"""How soon a caller that waits for a pilot looks again: an answer may have come."""


class Pacer:
    """The limits of one model at one provider.

    `line`: callers that wait for them, one after another. `sizes`: how many tokens a call takes, by resource.
    """

    __slots__ = (
        "_booked", "_counted", "_doubles_after_s", "_heard", "_hears", "_limits", "_pilots", "_pilots_from",
        "_pilots_out", "_pilots_since", "line", "sizes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.line = Bulkhead(1)
        self.sizes: dict[str, float] = {}
        self._limits: dict[str, Limit] = {}
        self._heard = self._counted = self._booked = 0
        self._pilots = self._pilots_from = self._pilots_out = 0
        self._pilots_since: float | None = None
        self._hears = False
        self._doubles_after_s = PILOTS_DOUBLE_AFTER_S

    # ── what is heard ─────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, told: Sequence[Told], serial: int, sent: int, now: float, took_s: float = 0.0) -> float:
        """Take in all limits that an answer's headers name; impossible values are ignored.

        `serial`: the number of its call, counted from 1; `sent`: how many have left by now; `took_s`: how long it took.
        Returns how many more may leave at once.
        """
        if serial > self._pilots_from:
            self._pilots = 0
        least = NEVER
        if serial < self._heard or not told:
            return least
        self._heard, self._counted, self._hears = serial, sent, True
        since = sent - serial + self._booked
        for size, remaining, resets_in_s, resource in told:
            if remaining is None or remaining < 0 or (size is not None and size <= 0):
                continue
            if resets_in_s is not None and resets_in_s <= 0:
                continue
            known = self._limits.get(resource)
            if known is None:
                known = self._limits[resource] = Limit()
            spare = known.hear(size, remaining, resets_in_s, since, took_s, now)
            if spare < least:  # noqa: PLR1730 - this runs with each answer
                least = spare
        return least

    def send_pilots(self, few: int) -> None:
        """Before the first answer: let `few` calls go ahead and ask what is allowed."""
        self._pilots, self._hears = few, True

    def doubt(self, sent: int) -> None:
        """A call met the provider's limit: of the calls that have not left yet, let one ask what is allowed."""
        if not self._hears:
            return  # operations whose answers have no such headers could never end the doubt
        self._heard = sent + 1
        self._pilots, self._pilots_from, self._pilots_out, self._pilots_since = 1, sent, 0, None
        self._doubles_after_s = DOUBTS_DOUBLE_AFTER_S

    def skip(self, by_s: float) -> None:
        """The clock missed `by_s` seconds: the machine was suspended."""
        for limit in self._limits.values():
            limit.skip(by_s)

    # ── what is allowed ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def knows(self) -> bool:
        """Whether the provider has ever said what it allows."""
        return bool(self._limits)

    @property
    def resources(self) -> list[str]:
        """What the provider limits, as far as it has said."""
        return list(self._limits)

    @property
    def asks(self) -> bool:
        """Whether a pilot is under way, so that any answer is news."""
        return self._pilots > 0

    def allows(self, calls: int, now: float) -> bool:
        """Whether `calls` may leave at once, without being counted."""
        self._fill(now)
        return not self._pilots and all(limit.spare >= calls for limit in self._limits.values())

    def _fill(self, now: float) -> None:
        for limit in self._limits.values():
            limit.fill_up(now)
            if limit.is_over(now) and limit.fill(now):
                self.doubt(self._counted)

    def wait_s(self, now: float, ahead: int = 0) -> float:
        """How long a call behind `ahead` others waits at least, for the limits; takes nothing."""
        self._fill(now)
        wait_s = max((limit.wait_s(now, ahead) for limit in self._limits.values()), default=0.0)
        return wait_s if wait_s > WAIT_S_MIN else 0.0

    def count(self, sent: int) -> None:
        """`sent` calls have left by now: those that left without a cell are subtracted too."""
        uncounted = sent - self._counted
        if uncounted:
            self._counted = sent
            for limit in self._limits.values():
                limit.left -= uncounted

    def must_follow(self, now: float, ended: int) -> bool:
        """Whether as many pilots are out as allowed. `ended`: how many calls have ever ended."""
        if not self._pilots:
            return False
        if self._pilots_since is None:
            self._pilots_since = now
        doublings = min(int((now - self._pilots_since) / self._doubles_after_s), DOUBLINGS_MAX)
        flying = self._pilots_out - max(0, ended - self._pilots_from)
        return flying >= self._pilots << doublings

    def take(self, now: float) -> None:
        """Book a cell for one call."""
        self._pilots_out += 1
        self._booked += 1
        for limit in self._limits.values():
            limit.take(now)

    def give_back(self) -> None:
        """A call that has a cell is never made: later callers need not wait for it."""
        self._pilots_out -= 1
        self._booked -= 1
        for limit in self._limits.values():
            limit.give_back()

    def use(self) -> None:
        """A call that has a cell has left."""
        self._booked -= 1
        self._counted += 1
