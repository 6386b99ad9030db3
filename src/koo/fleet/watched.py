"""One guard as the fleet sees it: what is reported of it, and what other processes' reports change in it."""

from __future__ import annotations

from koo.guard import Guard
from koo.policies.breaker import CLOSED, HALF_OPEN, NONE, OPEN, Trigger
from koo.policies.fleet import GuardKey, GuardLine, Lately, Opinion, ProbeAsk
from koo.policies.priming import why_primed
from koo.policies.probing import Sight, Terms, Unit

CALLS_TOLD_S = 10.0
"""How often a new number of calls alone is reported; that a guard is called again, or no longer, goes out at once."""


def asked(guard: Guard) -> int:
    """How often it was called, admitted or not."""
    return guard.breaker.given + sum(guard.tally.refused.values())


class Watched:
    """One guard, what was last reported of it, and its units of probes."""

    __slots__ = (
        "_calls",
        "_generation",
        "_is_proved",
        "_lately",
        "_ok",
        "_phase_at",
        "has_heard",
        "told",
        "told_at",
        "unit",
    )

    def __init__(self, guard: Guard, now: float, *, is_new: bool = False) -> None:
        self.told: GuardLine | None = None
        self.told_at = self._phase_at = now
        self.unit = Unit()
        self.has_heard = False
        """It tests recovery because a probe of another process succeeded."""
        # A guard made before the fleet's first beat: when it was last called is unknown.
        self._lately = Lately(0 if is_new else asked(guard), now)
        self._calls = 0
        self._generation, self._ok = guard.breaker.generation, guard.breaker.ok
        self._is_proved = False

    # ── up ────────────────────────────────────────────────────────────────────────────────────────────────────

    def line(self, key: GuardKey, guard: Guard, now: float) -> GuardLine:
        """How it is now."""
        breaker = guard.breaker
        if breaker.generation != self._generation:
            self._generation, self._phase_at = breaker.generation, now
            self.has_heard = self.has_heard and breaker.phase is HALF_OPEN
            self._is_proved |= breaker.phase is CLOSED and breaker.closed_by is Trigger.PROBES_SUCCEEDED
        self._is_proved |= breaker.ok > self._ok
        self._ok = breaker.ok
        self._calls = self._lately.note(asked(guard), now)
        is_down = breaker.phase is OPEN or (breaker.phase is HALF_OPEN and not (breaker.ok or self.has_heard))
        return GuardLine(
            key, breaker.phase.value, is_down, now - self._phase_at, self._calls, self._is_proved
        )

    def is_news(self, line: GuardLine, now: float) -> bool:
        """Must it be reported to the store?"""
        told = self.told
        if told is None:
            return line.is_called or line.phase != "closed"
        if line.is_proved:
            return True
        if (told.phase, told.is_down, told.is_called) != (line.phase, line.is_down, line.is_called):
            return True
        return told.calls != line.calls and now - self.told_at >= CALLS_TOLD_S

    def note_told(self, line: GuardLine, now: float) -> None:
        """The store has it."""
        self.told, self.told_at = line, now
        self._is_proved = False

    def ask(self, key: GuardKey, guard: Guard, beat_s: float, now: float) -> ProbeAsk | None:
        """What the next beat says about units of probes."""
        breaker, options = guard.breaker, guard.options.breaker
        if breaker.phase is CLOSED and not self.unit.count:
            return None
        is_open = breaker.phase is OPEN
        sight = Sight(
            is_closed=breaker.phase is CLOSED,
            is_open=is_open,
            is_due=breaker.override is NONE
            and (breaker.phase is HALF_OPEN or (is_open and breaker.opens_until() - now < beat_s)),
            is_probing=bool(breaker.leases),
            is_wanted=self._calls > 0,
            given=breaker.given,
        )
        return self.unit.ask(Terms(key, options.probe_concurrency, options.recovery_s, beat_s), sight, now)

    # ── down ──────────────────────────────────────────────────────────────────────────────────────────────────

    def heed(self, guard: Guard, opinion: Opinion | None, now: float) -> None:
        """What others say of it: it is primed, or a probe of theirs has succeeded since it opened here."""
        breaker = guard.breaker
        if breaker.primed != (why := why_primed(opinion)):
            breaker.prime(why)
        if opinion is not None and breaker.phase is OPEN and now - opinion.proved_ago_s > breaker.opened_at:
            self.has_heard = breaker.hear_of_success(now)
        if breaker.happened:
            guard.tick()  # it publishes, and opens a breaker that is primed and whose last call has failed

    def let_probe(self, guard: Guard, *, is_governed: bool) -> None:
        """As many probes as it has units for; its own maximum if no other process shares them."""
        if is_governed:
            guard.breaker.probes_max = self.unit.count
        else:
            guard.breaker.probes_max = guard.options.breaker.probe_concurrency
            self.unit.give_up()


def release(guard: Guard) -> None:
    """What others said is no longer known to hold: it decides as if it were alone."""
    guard.breaker.prime("")
    guard.breaker.probes_max = guard.options.breaker.probe_concurrency
