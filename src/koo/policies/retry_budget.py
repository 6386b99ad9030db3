"""A token bucket that bounds the load that retries add: a share of the successes, plus a floor each second.

Without it, every client repeating three times turns an overload into four times the load, and the overload stays when
its cause is gone. An empty bucket never fails a first attempt.

Deposits are not made call by call: they are computed from the count of successes when a call is to be repeated. Between
two withdrawals there are only deposits, so capping once is the same as capping each time.
"""

from __future__ import annotations

from typing import Protocol

from koo.options import RetryOptions


class Earner(Protocol):
    """One guard's count of the first attempts that ever succeeded."""

    @property
    def first_successes(self) -> int: ...


class RetryBudget:
    """The bucket of one dependency, whatever the number of its guards; starts full."""

    __slots__ = ("_earned_by_others", "_earners", "_options", "_seen_at", "_successes_seen", "tokens")

    def __init__(self, options: RetryOptions, now: float) -> None:
        self._options = options
        self.tokens = options.budget_tokens
        self._earners: list[Earner] = []
        self._earned_by_others = self._successes_seen = 0
        self._seen_at = now

    def join(self, earner: Earner) -> None:
        """Count its successes from now on."""
        self._earners.append(earner)

    def leave(self, earner: Earner) -> None:
        """Forget it, but keep what it earned."""
        self._earners.remove(earner)
        self._earned_by_others += earner.first_successes

    def take(self, now: float) -> bool:
        """Take one token for one repeat."""
        options = self._options
        successes = self._earned_by_others + sum(earner.first_successes for earner in self._earners)
        earned = options.budget_per_success * (successes - self._successes_seen)
        earned += options.budget_per_s * (now - self._seen_at)
        self.tokens = min(options.budget_tokens, self.tokens + earned)
        self._successes_seen = successes
        self._seen_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def give_back(self) -> None:
        """The repeat was never made."""
        self.tokens = min(self._options.budget_tokens, self.tokens + 1.0)
