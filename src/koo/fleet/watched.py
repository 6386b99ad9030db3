"""One guard as the fleet sees it: what is reported about it, and how other processes' reports affect it."""

from __future__ import annotations

from koo.guard import Guard
from koo.policies.breaker import CLOSED, HALF_OPEN, NONE, OPEN, Trigger
from koo.policies.fleet import GuardKey, GuardLine, Lately, Opinion, ProbeAsk
from koo.policies.priming import why_primed
from koo.policies.probing import Sight, Terms, Unit

CALLS_TOLD_S = 10.0
"""If only the number of calls has changed, it is reported this often. The next beat reports that calls have begun or
stopped."""


def asked(guard: Guard) -> int:
    """How many calls it has received, refused ones included."""
    return guard.breaker.given + sum(guard.tally.refused.values())


class Watched:
    """One guard, what was last reported about it, and its probe units."""

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
        """Whether it is testing recovery because a probe of another process succeeded."""
        # For a guard older than the fleet's first beat it is unknown when its calls were made, so they do not count as
        # calls of the last minute.
        self._lately = Lately(0 if is_new else asked(guard), now)
        self._calls = 0
        self._generation, self._ok = guard.breaker.generation, guard.breaker.ok
        self._is_proved = False

    # ── up ────────────────────────────────────────────────────────────────────────────────────────────────────

    def line(self, key: GuardKey, guard: Guard, now: float) -> GuardLine:
        """The guard's current state, as it is reported."""
        # A new generation means that a new phase has begun since the last line. Its beginning is set to now, at most a
        # beat late. A success is reported once: as the step from half open to closed, or as a probe that succeeded
        # while the breaker still tests. Other processes then test recovery too, without waiting for the end of their
        # own pause.
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
        """Whether the line must be reported to the store."""
        told = self.told
        if told is None:
            return line.is_called or line.phase != "closed"
        if line.is_proved:
            return True
        if (told.phase, told.is_down, told.is_called) != (line.phase, line.is_down, line.is_called):
            return True
        return told.calls != line.calls and now - self.told_at >= CALLS_TOLD_S

    def note_told(self, line: GuardLine, now: float) -> None:
        """The store has this line."""
        self.told, self.told_at = line, now
        self._is_proved = False

    def ask(self, key: GuardKey, guard: Guard, beat_s: float, now: float) -> ProbeAsk | None:
        """The next beat's request about probe units, if any."""
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
        """Apply the other processes' reports: prime the breaker, or test recovery after a probe of theirs succeeded."""
        # Only a success later than the opening here counts. An older one is about the time before this outage, and
        # would end the pause of a breaker that has just opened.
        breaker = guard.breaker
        if breaker.primed != (why := why_primed(opinion)):
            breaker.prime(why)
        if opinion is not None and breaker.phase is OPEN and now - opinion.proved_ago_s > breaker.opened_at:
            self.has_heard = breaker.hear_of_success(now)
        if breaker.happened:
            guard.tick()  # publishes the events, and opens a primed breaker whose last call failed

    def let_probe(self, guard: Guard, *, is_governed: bool) -> None:
        """Limit its probes to its units; to its own maximum if no other process shares them."""
        if is_governed:
            guard.breaker.probes_max = self.unit.count
        else:
            guard.breaker.probes_max = guard.options.breaker.probe_concurrency
            self.unit.give_up()


def release(guard: Guard) -> None:
    """Forget the other processes' reports: the guard decides as in a single process."""
    guard.breaker.prime("")
    guard.breaker.probes_max = guard.options.breaker.probe_concurrency
