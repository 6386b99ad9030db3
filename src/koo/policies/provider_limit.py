"""One of the provider's limits, as its headers report it: how many calls may be sent now, and when more may be.

The remaining calls may be sent immediately, except the last twentieth. That is spread over the time until the limit is
full, so that a late caller, or another process, gets a turn too.

A limit refills gradually (a bucket), all at once (a window), or call by call. The headers do not say which. But in a
bucket, the missing part and the time until it is full always have the same ratio. Such a limit is refilled here at that
speed. Any other is taken as full when its headers say it will be; if much of it was used, that is a guess.
"""

from __future__ import annotations

from koo.options import NEVER

RESERVE = 0.05
"""The share of a limit that is spread over time. A larger share would leave much of a gradually refilled limit
unused."""
INTERVAL_S_MAX = 60.0
"""The longest pause between two calls of the spread part. The rest of a daily limit could be spread over hours, but
then no caller with a usual deadline would get a turn."""
LOOK_S_MAX = 600.0
"""If a limit will be full only in hours or days, one call every ten minutes tests whether that is still true."""
PERIOD_S = 60.0
"""The assumed reset time if the headers say what is left but not until when. Most limits are per minute."""
SLACK, SLACK_S_MAX = 0.05, 1.0
"""A limit is taken as full this much later than its headers say, as a share of its period and in seconds at most: dates
in headers are whole seconds, so they may be a second early."""
GUESS_BELOW = 0.5
"""If less than this share was left of a limit that should be full now, one call tests it before the others follow."""
APART, ALIKE, ALIKE_MIN = 0.2, 0.1, 2
"""How a bucket is recognised. Responses are compared only if their counts are at least a fifth of the limit apart
(`APART`): the times in which a window would fill then differ by more than a tenth (`ALIKE`). Those of a bucket differ
by less, although its counts are whole calls and its times whole seconds. Two matches (`ALIKE_MIN`) rule out chance."""


Told = tuple[float | None, float | None, float | None, str]
"""One of the provider's limits, counted in calls: its size, how many are left, in how many seconds it is full again,
and the resource that it limits ("requests").

None if the provider does not say. The numbers may be fractions, because a limit in tokens is converted to calls. It is
a plain tuple because one is made for every response, and an object of a class would cost as much as all that is done
with it.
"""


class Limit:
    """What is known about one limit: `left` calls of `size` may be sent until it is full, at `full_at`."""

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
        """Process the headers of a response that took `took_s`; returns how many calls may be sent immediately."""
        if resets_in_s is None:
            resets_in_s = PERIOD_S
        size = size or max(self.size, remaining, 1.0)
        if size < 1.0:
            # A limit on tokens can be smaller than one huge prompt, which makes it less than one call. It is scaled up
            # to one call, because otherwise no call would ever fit, however long it waited.
            remaining, size = remaining / size, 1.0
        self.size = size
        self.left = left = remaining - sent_since
        full_at = now + resets_in_s
        # Some servers count the seconds from the call's arrival, others from their response. The two differ by up to
        # `took_s`. So a reset time that is later than the known one by at most `took_s` is the same reset time,
        # reported by a slow response, and the known one is kept. Otherwise each slow response would push the end of a
        # window further away.
        if not now < self.full_at < full_at <= self.full_at + took_s:
            self.full_at = full_at
        if self._period_s < resets_in_s:  # noqa: PLR1730 - this runs with each answer
            self._period_s = resets_in_s
        self._look_at, self._seen_at = now + LOOK_S_MAX, now
        # Only responses that are well apart show whether the limit refills steadily. If they are close together, the
        # responses of a fixed window also look like a steady refill.
        if remaining < (1 - APART) * size and abs(remaining - self._compared) >= APART * size:
            self._compare(remaining, resets_in_s)
        return left - RESERVE * size

    def _compare(self, remaining: float, resets_in_s: float) -> None:
        """Compare the time in which the whole limit would fill with that of the last compared response."""
        missing = self.size - remaining
        fills_in_s = resets_in_s * self.size / missing
        is_alike = abs(fills_in_s - self._fills_in_s) < ALIKE * fills_in_s
        self._alike = self._alike + 1 if is_alike else 0
        self._compared, self._fills_in_s = remaining, fills_in_s

    @property
    def _is_bucket(self) -> bool:
        return self._alike >= ALIKE_MIN

    def fill_up(self, now: float) -> None:
        """Add what has been refilled by now, if the refill speed is known."""
        if self._is_bucket:
            come_back = (now - self._seen_at) * self.size / self._fills_in_s
            self.left, self._seen_at = min(self.left + come_back, self.size), now

    def is_over(self, now: float) -> bool:
        """Whether the limit should be full again."""
        return now >= self.full_at + self._slack_s and not self._is_bucket

    def fill(self, now: float) -> bool:
        """Take the limit as full; True if that is a guess, which a response must confirm."""
        # After a quiet period it is certainly full. If much of it was used a moment ago, it may not be. A server that
        # returns each call one period after it was made reports the time when the *first* of them is returned.
        is_guess = self.left < GUESS_BELOW * self.size and now < self.full_at + self._period_s
        self.left, self.full_at, self._next_at = self.size, now + self._period_s, now
        return is_guess

    @property
    def spare(self) -> float:
        """How many calls may be sent immediately."""
        return self.left - RESERVE * self.size

    @property
    def _slack_s(self) -> float:
        return min(SLACK * self._period_s, SLACK_S_MAX)

    def wait_s(self, now: float, ahead: int) -> float:
        """How long a call behind `ahead` others has to wait at least; takes nothing."""
        # Three cases after the free part. In a bucket, the next call waits for the refill. In a window that has
        # nothing left, it waits for the end of the window, or for the next test of a very distant end. Otherwise the
        # last twentieth is sent one call at a time.
        if ahead + 1 <= self.spare:
            return 0.0
        if self._is_bucket:
            return max(self._next_at - now, (ahead + 1 - self.left) * self._interval_s(now), 0.0)
        if ahead + 1 > self.left:
            return max(0.0, min(self.full_at + self._slack_s, self._look_at) - now)
        return max(0.0, self._next_at - now) + (ahead - int(max(self.spare, 0.0))) * self._interval_s(now)

    def take(self, now: float) -> None:
        """Count one call that is sent."""
        self._step_s = 0.0
        if self.spare < 1.0:
            self._step_s = self._interval_s(now)
            self._next_at = max(self._next_at, now) + self._step_s
        if self.left < 1.0:
            self._look_at = now + LOOK_S_MAX
        self.left -= 1.0

    def give_back(self) -> None:
        """Return the cell of a call that is not sent."""
        self.left += 1.0
        # The next free time moves back by the step of the last call that was counted; earlier steps are not known.
        self._next_at -= self._step_s
        self._step_s = 0.0

    def skip(self, by_s: float) -> None:
        """The machine was suspended for `by_s` seconds that the clock does not show."""
        self.full_at -= by_s
        self._next_at -= by_s
        self._seen_at -= by_s

    def _interval_s(self, now: float) -> float:
        if self._is_bucket:
            return self._fills_in_s / self.size
        return min(max((self.full_at - now) / max(self.left, 1.0), 0.0), INTERVAL_S_MAX)
