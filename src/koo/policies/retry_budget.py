"""A token bucket that bounds the load added by retries: a share of the successes, plus a floor per second.

Without it, clients that all repeat three times turn an overload into four times the load, and the overload persists
after its cause is gone. An empty bucket never fails a first attempt.

Deposits are not made call by call. They are computed from the count of successes when a call is about to be repeated.
Between two withdrawals there are only deposits, so capping once gives the same result as capping after each deposit.
"""

from __future__ import annotations

from typing import Protocol

from koo.options import RetryOptions


class Earner(Protocol):
    """One guard's count of first attempts that succeeded."""

    @property
    def first_successes(self) -> int: ...


class RetryBudget:
    """The bucket of one dependency, shared by all of its guards; it starts full."""

    __slots__ = ("_earned_by_others", "_earners", "_options", "_seen_at", "_successes_seen", "tokens")

    def __init__(self, options: RetryOptions, now: float) -> None:
        self._options = options
        self.tokens = options.budget_tokens
        self._earners: list[Earner] = []
        self._earned_by_others = self._successes_seen = 0
        self._seen_at = now

    def join(self, earner: Earner) -> None:
        """Count this guard's successes too."""
        self._earners.append(earner)

    def leave(self, earner: Earner) -> None:
        """Stop counting a guard, but keep what it has earned."""
        # Its successes so far stay in the sum as a constant. Without them, the sum could fall below its last value,
        # and the next `take` would compute a negative income.
        self._earners.remove(earner)
        self._earned_by_others += earner.first_successes

    def take(self, now: float) -> bool:
        """Take one token for one repeat; False if there is none."""
        # Both incomes are measured since the last call of `take`: successes and seconds. The cap comes before the
        # withdrawal, so a quiet hour saves no more than one full bucket for the next outage.
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
        """Return the token of a repeat that was never made."""
        self.tokens = min(self._options.budget_tokens, self.tokens + 1.0)
