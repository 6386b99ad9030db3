"""One of the provider's limits, as its headers report it: how many calls may leave, and when more may.

What is left may leave at once, except the last twentieth: that is spread over the time until the limit is full, so that
a late caller, or another process, gets a turn too.

A limit refills gradually (a bucket), all at once (a window), or call by call. The headers do not say which, but in a
bucket what is missing and the time until it is full keep the same ratio. Such a limit is refilled at that speed. The
others are taken as full when the headers say they will be; if much of it was used, that is a guess.
"""

from __future__ import annotations

from typing import NamedTuple

from koo.options import NEVER

RESERVE = 0.05
"""The share of a limit that is spread. More would leave much of a gradually refilled limit unused."""
INTERVAL_S_MAX = 60.0
"""A limit of a whole day is spread too, yet a caller with a usual deadline gets a turn."""
LOOK_S_MAX = 600.0
"""If a limit is to be full only after hours or days, one call every ten minutes checks whether that still holds."""
PERIOD_S = 60.0
"""If headers say what is left but not until when: most limits are per minute."""
SLACK, SLACK_S_MAX = 0.05, 1.0
"""Dates in headers are whole seconds, so a limit may be full up to a second later than they say."""
GUESS_BELOW = 0.5
"""If less than this share was left of a limit that should be full now, a burst might break it: one call asks first."""
APART, ALIKE, ALIKE_MIN = 0.2, 0.1, 2
"""Only answers a fifth of the limit apart are compared: a window's times to fill then differ by more than a tenth. A
bucket's differ by less, although its counts are whole calls and its times whole seconds."""


class LimitLeft(NamedTuple):
    """One of the provider's limits, counted in calls: `remaining` of `limit`, full again in `resets_in_s`.

    None: the provider does not say. Fractions are allowed: they come from limits that count tokens.
    """

    limit: float | None
    remaining: float | None
    resets_in_s: float | None
    resource: str = "requests"


Told = tuple[float | None, float | None, float | None, str]
"""The same as a plain tuple: made for each answer, where a class would cost as much as its use."""


class Limit:
    """What is known of one limit: `left` calls of `size` may leave until it is full, at `full_at`."""

    __slots__ = (
        "_alike", "_compared", "_fills_in_s", "_look_at", "_next_at", "_period_s", "_seen_at", "_step_s", "full_at",
        "left", "size",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size = self.left = self.full_at = 0.0
        self._period_s = self._next_at = self._look_at = self._step_s = self._seen_at = 0.0
        self._alike, self._compared, self._fills_in_s = 0, NEVER, 0.0

    def hear(
        self,
        size: float | None,
        remaining: float,
        resets_in_s: float | None,
        sent_since: int,
        took_s: float,
        now: float,
    ) -> float:
        """Take in what an answer that took `took_s` says of it; returns how many calls may leave at once."""
        if resets_in_s is None:
            resets_in_s = PERIOD_S
        size = size or max(self.size, remaining, 1.0)
        if size < 1.0:
            # After one huge prompt a limit on tokens would have no room for any call, however long it waited.
            remaining, size = remaining / size, 1.0
        self.size = size
        self.left = left = remaining - sent_since
        full_at = now + resets_in_s
        # Some servers count the seconds from the call's arrival, others from its answer: counted from the answer each
        # time, a window of a minute would end later with each slow answer.
        if not now < self.full_at < full_at <= self.full_at + took_s:
            self.full_at = full_at
        if self._period_s < resets_in_s:  # noqa: PLR1730 - this runs with each answer
            self._period_s = resets_in_s
        self._look_at, self._seen_at = now + LOOK_S_MAX, now
        # Only answers well apart show whether it refills steadily; close together, a window's look alike too.
        if remaining < (1 - APART) * size and abs(remaining - self._compared) >= APART * size:
            self._compare(remaining, resets_in_s)
        return left - RESERVE * size

    def _compare(self, remaining: float, resets_in_s: float) -> None:
        """Compare whether it would fill in the same time as at the last answer."""
        missing = self.size - remaining
        fills_in_s = resets_in_s * self.size / missing
        is_alike = abs(fills_in_s - self._fills_in_s) < ALIKE * fills_in_s
        self._alike = self._alike + 1 if is_alike else 0
        self._compared, self._fills_in_s = remaining, fills_in_s

    @property
    def _is_bucket(self) -> bool:
        return self._alike >= ALIKE_MIN

    def fill_up(self, now: float) -> None:
        """Add what has come back by now, if the refill speed is known."""
        if self._is_bucket:
            come_back = (now - self._seen_at) * self.size / self._fills_in_s
            self.left, self._seen_at = min(self.left + come_back, self.size), now

    def is_over(self, now: float) -> bool:
        """Whether it should be full again."""
        return now >= self.full_at + self._slack_s and not self._is_bucket

    def fill(self, now: float) -> bool:
        """It should be full again; True if that is a guess, until an answer confirms it."""
        # After a quiet time it is certainly full. If much of it was used, it may not be: a server that gives each call
        # back a whole period after it was made reports when the first of them comes back.
        is_guess = self.left < GUESS_BELOW * self.size and now < self.full_at + self._period_s
        self.left, self.full_at, self._next_at = self.size, now + self._period_s, now
        return is_guess

    @property
    def spare(self) -> float:
        """How many calls may leave at once."""
        return self.left - RESERVE * self.size

    @property
    def _slack_s(self) -> float:
        return min(SLACK * self._period_s, SLACK_S_MAX)

    def wait_s(self, now: float, ahead: int) -> float:
        """How long a call behind `ahead` others waits at least; takes nothing."""
        if ahead + 1 <= self.spare:
            return 0.0
        if self._is_bucket:
            return max(self._next_at - now, (ahead + 1 - self.left) * self._interval_s(now), 0.0)
        if ahead + 1 > self.left:
            return max(0.0, min(self.full_at + self._slack_s, self._look_at) - now)
        return max(0.0, self._next_at - now) + (ahead - int(max(self.spare, 0.0))) * self._interval_s(now)

    def take(self, now: float) -> None:
        """One call leaves."""
        self._step_s = 0.0
        if self.spare < 1.0:
            self._step_s = self._interval_s(now)
            self._next_at = max(self._next_at, now) + self._step_s
        if self.left < 1.0:
            self._look_at = now + LOOK_S_MAX
        self.left -= 1.0

    def give_back(self) -> None:
        """The call that was to leave does not."""
        self.left += 1.0
        self._next_at -= self._step_s
        self._step_s = 0.0

    def skip(self, by_s: float) -> None:
        """The clock missed `by_s` seconds (suspend)."""
        self.full_at -= by_s
        self._next_at -= by_s
        self._seen_at -= by_s

    def _interval_s(self, now: float) -> float:
        if self._is_bucket:
            return self._fills_in_s / self.size
        return min(max((self.full_at - now) / max(self.left, 1.0), 0.0), INTERVAL_S_MAX)
