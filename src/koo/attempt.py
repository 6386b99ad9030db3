"""One attempt of a guarded call: until when it may run, whose deadline ended it, and what its error says.

An attempt ends at the earliest of three times: its own limit, a probe's lease, and the deadline of the whole call.
Whose deadline it is decides what its end means. Our own, from an option, is a timeout like an attempt's: a FAILURE,
because otherwise a dependency that hangs behind a short one would stay healthy forever. The caller's is NEUTRAL: a
caller in a hurry must not open the circuit for the others.
"""

from __future__ import annotations

from asyncio import CancelledError
from dataclasses import replace

from koo.callbacks import outlive
from koo.deadlines import Alarm, Deadlines, Lasting, WrongLoop
from koo.errors import Failure, Kind, KooError
from koo.failures import failure_of
from koo.passage import Passage
from koo.policies.permit import Permit
from koo.policies.verdict import CANCELLED, FAILURE, NEUTRAL, UNJUDGED, Classify, Fault

OVERDUE = Fault(
    verdict=NEUTRAL,
    kind=Kind.DEADLINE,
    failure=Failure(Kind.DEADLINE, "the deadline passed before an answer came"),
)
"""The caller's deadline cut the attempt short: not the other side's fault, but it may have been slow."""
TIMED_OUT = Fault(
    verdict=FAILURE, kind=Kind.TIMEOUT, failure=Failure(Kind.TIMEOUT, "no answer within the time of a call")
)
"""Our own time was over when the caller's cancellation came: a failure, and the cancellation is raised on."""


class AlarmOfProbe(Lasting):
    """A probe ends with its lease: content or reasoning renews that, and an operator's reset lifts it."""

    __slots__ = ("_permit", "_until")

    def __init__(self, registry: Deadlines, permit: Permit, until: float) -> None:
        super().__init__(registry)
        self._permit = permit
        self._until = until

    def ends(self) -> float:
        return min(self._until, self._permit.lease_ends_at)


def fault_of_time(
    name: str, timeout: type[KooError], error: BaseException, alarm: Alarm, passage: Passage, now: float
) -> Fault | None:
    """The fault of an attempt whose time was over; None if its error has another cause.

    `timeout` is the class of the error that its caller receives.
    """
    whole = alarm.when >= passage.deadline  # the call's time, not only an attempt's or a lease's
    if not alarm.expired:
        # If the caller's own timeout ends at the same moment, its cancellation wins; the call was just as late.
        if isinstance(error, CancelledError) and now >= alarm.when:
            return OVERDUE if whole and not passage.is_ours else TIMED_OUT
        return None
    if not whole:
        late = timeout(name, "no answer within the time of an attempt", kind=Kind.TIMEOUT)
        return Fault(verdict=FAILURE, kind=Kind.TIMEOUT, repeatable=True, error=late)
    if passage.is_ours:
        late = timeout(name, "no answer within the time of the whole call", kind=Kind.TIMEOUT)
        return Fault(verdict=FAILURE, kind=Kind.TIMEOUT, error=late)
    late = timeout(name, "the deadline passed before an answer came", kind=Kind.DEADLINE)
    return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE, error=late)


def judge(classify: Classify, error: BaseException) -> Fault:
    """What an error means. Never raises: a non-Exception is NEUTRAL, and so is a classifier's own failure."""
    if not isinstance(error, Exception):
        return CANCELLED
    if isinstance(error, WrongLoop):
        return UNJUDGED
    try:
        fault = classify(error)
    except Exception:  # noqa: BLE001 - a failing classifier must not keep the permit
        return UNJUDGED
    except BaseException as worse:  # noqa: BLE001 - nor one that ends the program, which still ends it
        outlive(worse, "a classifier failed")
        return UNJUDGED
    if not isinstance(fault, Fault):
        return UNJUDGED
    is_said = fault.error is not None or fault.failure is not None
    if not is_said and (fault.verdict is not NEUTRAL or fault.block is not None):
        return replace(fault, failure=failure_of(error, fault.kind))
    return fault


def met_by(fault: Fault) -> Failure | None:
    """What an attempt met that is followed by another one."""
    if fault.failure is None and isinstance(fault.error, KooError):
        return Failure(fault.kind, fault.error.reason)
    return fault.failure


def explain(
    name: str, real: BaseException, attempt: int, why_not: str = "", met: Failure | None = None
) -> None:
    """Write on the error how many attempts were made, and why no more; `met`: what the previous attempt met.

    If only the time ran out, that is what a person needs to know: a pooler that had no connection left three times, and
    did not answer the fourth.
    """
    if isinstance(real, KooError):
        real.attempts, real.not_repeated = attempt, why_not
        if met is not None and real.kind in (Kind.DEADLINE, Kind.TIMEOUT) and met.kind is not real.kind:
            real.last_error = met
            real.reason += before_that(real)
    elif why_not:
        note = f"{name}: not repeated after {attempt} attempt{'s' * (attempt > 1)}: {why_not}"
        if note not in getattr(real, "__notes__", ()):
            real.add_note(note)


def before_that(error: KooError) -> str:
    """What its `last_error` adds to a reason."""
    return f"; before that: {error.last_error.brief}" if error.last_error is not None else ""
