"""Keeps calls under the provider's own limits, so that a 429 rarely happens.

The headers of every response say how much is left of each of the provider's limits, and when it will be full again.
That was true when the response's own call arrived at the provider. So the calls that were sent after it are subtracted,
and the response to a call that is older than the last one read is ignored. Of several limits, each converted to calls,
the one with the longest wait decides. `koo.policies.provider_limit` computes what one limit allows.

At some moments it is unknown what is allowed: before the first response, after a 429, and when a used-up limit should
be full again. Then a few calls are sent ahead as pilots, and the others wait for the pilots' responses. Otherwise two
hundred callers that arrive together under an unknown limit of fifty would cause a hundred and fifty refused calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from koo.options import NEVER
from koo.policies.bulkhead import Bulkhead
from koo.policies.provider_limit import Limit, Told

PILOTS = 10
"""How many pilots are sent before the first response. Ten is below the limit per minute of nearly every vendor's first
tier."""
PILOTS_DOUBLE_AFTER_S = 5.0
"""How often the number of pilots doubles while no response arrives. Five seconds are longer than most responses take,
and a service that takes minutes for the first one is not limited to ten calls until then."""
DOUBTS_DOUBLE_AFTER_S = 30.0
"""How often the number of pilots doubles after a 429. Each pilot beyond what is allowed may get another 429, so a
single one is given the time that slow responses take."""
DOUBLINGS_MAX = 30
"""A billion times the first number of pilots: above any limit, and small enough to compute."""
WAIT_S_MIN = 0.001
"""A shorter wait than this is a rounding error, and counts as none."""
PILOT_LOOK_S = 0.05
"""How often a caller that waits for a pilot checks whether the response has arrived."""


class Pacer:
    """The limits of one model at one provider.

    `line`: the queue of callers that wait for the limits. `sizes`: how many tokens a call takes, by resource.
    """

    __slots__ = (
        "_booked", "_counted", "_doubles_after_s", "_heard", "_hears", "_limits", "_pilots", "_pilots_from",
        "_pilots_out", "_pilots_since", "line", "sizes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.line = Bulkhead(1)
        self.sizes: dict[str, float] = {}
        self._limits: dict[str, Limit] = {}
        # Calls are numbered in the order in which they were sent. `_heard`: the newest call whose response was read.
        # `_counted`: how many sent calls are subtracted from the limits. `_booked`: cells that were taken by calls not
        # sent yet. `_pilots`: how many pilots may be out, 0 if none are needed; `_pilots_from`: the last call sent
        # before them; `_pilots_out`: how many were sent; `_pilots_since`: when the first was.
        self._heard = self._counted = self._booked = 0
        self._pilots = self._pilots_from = self._pilots_out = 0
        self._pilots_since: float | None = None
        self._hears = False
        self._doubles_after_s = PILOTS_DOUBLE_AFTER_S

    # ── responses ─────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, told: Sequence[Told], serial: int, sent: int, now: float, took_s: float = 0.0) -> float:
        """Process all limits that a response's headers name; impossible values are ignored.

        `serial`: the number of its call, counted from 1; `sent`: how many calls have been sent by now; `took_s`: how
        long the call took. Returns how many more calls may be sent immediately.
        """
        # The response to any call sent since the pilots began ends the pilots, even if it has no headers: waiting for
        # more responses would not help.
        if serial > self._pilots_from:
            self._pilots = 0
        least = NEVER
        # Responses overtake each other. The headers of an older call show a limit before later calls were subtracted.
        # If they were taken as the present state, units that are in use would look free.
        if serial < self._heard or not told:
            return least
        self._heard, self._counted, self._hears = serial, sent, True
        # The provider has not counted the calls that were sent after this one, and those that hold a cell and are
        # about to be sent.
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
        """Before the first response: send `few` calls ahead to find out what is allowed."""
        self._pilots, self._hears = few, True

    def doubt(self, sent: int) -> None:
        """A call hit the provider's limit: let only one of the calls that are not sent yet find out what is allowed."""
        # Responses without these headers could never answer that question, and the other callers would wait for them
        # until their deadlines.
        if not self._hears:
            return
        # Responses to the calls that are under way are older than the 429, and say nothing about what is left after
        # it.
        self._heard = sent + 1
        self._pilots, self._pilots_from, self._pilots_out, self._pilots_since = 1, sent, 0, None
        self._doubles_after_s = DOUBTS_DOUBLE_AFTER_S

    def skip(self, by_s: float) -> None:
        """The machine was suspended for `by_s` seconds that the clock does not show."""
        for limit in self._limits.values():
            limit.skip(by_s)

    # ── what is allowed ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def knows(self) -> bool:
        """Whether any response has named a limit."""
        return bool(self._limits)

    @property
    def resources(self) -> list[str]:
        """The resources that the provider limits, as far as its responses have named them."""
        return list(self._limits)

    @property
    def asks(self) -> bool:
        """Whether pilots are under way, so that any response matters."""
        return self._pilots > 0

    def allows(self, calls: int, now: float) -> bool:
        """Whether `calls` may be sent immediately, without taking a cell each."""
        self._fill(now)
        return not self._pilots and all(limit.spare >= calls for limit in self._limits.values())

    def _fill(self, now: float) -> None:
        # A limit whose reset time has passed is taken as full. If that is a guess, one pilot tests it: if it were
        # wrong, every caller that waited for the reset would get a 429 at the same moment.
        for limit in self._limits.values():
            limit.fill_up(now)
            if limit.is_over(now) and limit.fill(now):
                self.doubt(self._counted)

    def wait_s(self, now: float, ahead: int = 0) -> float:
        """How long a call behind `ahead` others has to wait at least for the limits; takes nothing."""
        self._fill(now)
        wait_s = max((limit.wait_s(now, ahead) for limit in self._limits.values()), default=0.0)
        return wait_s if wait_s > WAIT_S_MIN else 0.0

    def count(self, sent: int) -> None:
        """Subtract the calls that were sent without a cell; `sent`: how many calls have been sent by now."""
        uncounted = sent - self._counted
        if uncounted:
            self._counted = sent
            for limit in self._limits.values():
                limit.left -= uncounted

    def must_follow(self, now: float, ended: int) -> bool:
        """Whether a call must wait, because the allowed number of pilots is already under way. `ended`: how many calls
        have ended."""
        if not self._pilots:
            return False
        # The allowed number doubles with time, because a pilot's response may never arrive: its call may hang, or its
        # caller may cancel it. Otherwise every other caller would wait for it forever.
        if self._pilots_since is None:
            self._pilots_since = now
        doublings = min(int((now - self._pilots_since) / self._doubles_after_s), DOUBLINGS_MAX)
        flying = self._pilots_out - max(0, ended - self._pilots_from)
        return flying >= self._pilots << doublings

    def take(self, now: float) -> None:
        """Take a cell of every limit for one call, which is sent soon."""
        self._pilots_out += 1
        self._booked += 1
        for limit in self._limits.values():
            limit.take(now)

    def give_back(self) -> None:
        """Return the cell of a call that is never made, so that later callers need not wait for it."""
        self._pilots_out -= 1
        self._booked -= 1
        for limit in self._limits.values():
            limit.give_back()

    def use(self) -> None:
        """A call that has a cell has been sent."""
        self._booked -= 1
        self._counted += 1
