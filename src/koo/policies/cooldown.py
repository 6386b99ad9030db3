"""The pause that a provider asked for with a 429, a `Retry-After` or quota headers.

A cooldown is not a breaker: a 429 never opens one, but is counted. All callers with the same credential wait, not only
the one that received the 429. The later end wins: a short hint never shortens a longer pause.
"""

from __future__ import annotations

from collections.abc import Callable

from koo.errors import Kind
from koo.policies.backoff import HINT_SLACK
from koo.policies.opening_times import HINT_S_MAX

GUESS_S_MIN = 1.0
"""The shortest pause: after less than a second, the next call would hit the same used-up limit."""
RATE_BASE_S, RATE_CAP_S = 1.0, 60.0
"""The pause doubles from one second to one minute. Most rate limits are per second or per minute, so a longer guess
would keep calls away for nothing."""
QUOTA_BASE_S, QUOTA_CAP_S = 60.0, 900.0
"""A spent quota without a known end is tried again after 1, 2, 4, ... 15 minutes. A refused call is not billed."""


class Cooldown:
    """A pause: no calls are sent between `since` and `until` (monotonic seconds).

    `level`: how many pauses there were without a success between them.
    """

    __slots__ = ("kind", "level", "reason", "since", "until")

    def __init__(self) -> None:
        self.since = self.until = 0.0
        self.level = 0
        self.kind = Kind.THROTTLED
        self.reason = ""

    def extend(
        self, now: float, hint_s: float | None, draw: Callable[[], float], kind: Kind, reason: str
    ) -> float:
        """Process one throttled response; returns for how many seconds no calls are sent."""
        # Responses during the pause belong to calls that were sent before it. Fifty of them are one step. If they were
        # counted as fifty, one used-up minute would be followed by the longest pause.
        if now >= self.until:
            self.since = now
            self.level += 1
        # The exponent is bounded because 2.0 ** 1024 raises OverflowError, and the level grows as long as a provider
        # throttles every call.
        if hint_s is None:
            base_s, cap_s = (
                (RATE_BASE_S, RATE_CAP_S) if kind is Kind.THROTTLED else (QUOTA_BASE_S, QUOTA_CAP_S)
            )
            for_s = max(GUESS_S_MIN, min(base_s * 2.0 ** min(max(self.level - 1, 0), 30), cap_s))
        else:
            for_s = min(max(hint_s, 0.0), HINT_S_MAX)
        until = now + for_s * (1.0 + HINT_SLACK * draw())
        if until > self.until:
            self.until, self.kind, self.reason = until, kind, reason
        return self.until - now

    def ease(self) -> None:
        """A call succeeded: the next guess starts small again."""
        self.level = 0

    def skip(self, by_s: float) -> None:
        """The machine was suspended for `by_s` seconds that the clock does not show; the provider meant real time."""
        self.until -= by_s

    def clear(self) -> None:
        """An operator's reset."""
        self.until, self.level = 0.0, 0
