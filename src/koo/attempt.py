"""One attempt of a guarded call: how long it may run, whose deadline ended it, and what its error means.

An attempt ends at the earliest of three times: its own timeout, a probe's lease, and the deadline of the whole call.
The owner of the deadline decides how its end is judged. koo's own deadline, from an option, counts as a timeout: a
FAILURE, because a dependency that hangs behind a short deadline would otherwise look healthy forever. The caller's
deadline is NEUTRAL: one impatient caller must not open the circuit for the others.
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

CHAIN_MAX = 16
OVERDUE = Fault(
    verdict=NEUTRAL,
    kind=Kind.DEADLINE,
    failure=Failure(Kind.DEADLINE, "the deadline passed before a response arrived"),
)
"""The caller's deadline cut the attempt short. That is not the dependency's fault, although it may have been slow."""
TIMED_OUT = Fault(
    verdict=FAILURE, kind=Kind.TIMEOUT, failure=Failure(Kind.TIMEOUT, "no response within the call timeout")
)
"""koo's own timeout had passed when the caller's cancellation arrived: a failure, and the cancellation is still
raised."""


class AlarmOfProbe(Lasting):
    """Ends a probe when its lease ends. Content or reasoning renews the lease, and an operator's reset removes it."""

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
    """The fault of an attempt that ran out of time; None if its error has another cause.

    `timeout` is the class of the error that its caller receives.
    """
    whole = (
        alarm.when >= passage.deadline
    )  # the deadline of the whole call, not only an attempt's or a lease's
    if not alarm.expired:
        # A caller's own `asyncio.timeout` often ends at the same moment as koo's, and its timer may run first. Then the
        # task sees the caller's cancellation and koo's alarm never expires, but the call was just as late. If only the
        # cancellation counted, a backend that hangs for such callers would never count as failed or slow.
        if not is_from_cancellation(error, alarm):
            return None
        if now >= alarm.when:
            return OVERDUE if whole and not passage.is_ours else TIMED_OUT
        return CANCELLED
    # An attempt that reached its own timeout or lease may be repeated. At the deadline no time is left.
    if not whole:
        late = timeout(name, "no response within the attempt timeout", kind=Kind.TIMEOUT)
        return Fault(verdict=FAILURE, kind=Kind.TIMEOUT, repeatable=True, error=late)
    if passage.is_ours:
        late = timeout(name, "no response within the timeout of the whole call", kind=Kind.TIMEOUT)
        return Fault(verdict=FAILURE, kind=Kind.TIMEOUT, error=late)
    late = timeout(name, "the deadline passed before a response arrived", kind=Kind.DEADLINE)
    return Fault(verdict=NEUTRAL, kind=Kind.DEADLINE, error=late)


def is_from_cancellation(error: BaseException, alarm: Alarm) -> bool:
    """Whether an attempt ended because its caller cancelled it. Never raises."""
    if isinstance(error, CancelledError):
        return True
    # Clients often raise an error of their own when they are cancelled ("connection lost"). As failures, five callers
    # that leave would open the breaker. `is_cancelled` alone proves nothing: up to Python 3.12 a task group that fails
    # leaves its cancellation behind.
    return alarm.is_cancelled() and _follows_cancellation(error)


def _follows_cancellation(error: BaseException | None) -> bool:
    try:
        for _ in range(CHAIN_MAX):
            if error is None or isinstance(error, CancelledError):
                break
            before = error.__context__ if error.__cause__ is None else error.__cause__
            # A timeout of the operation's own is a cancellation too, but not its caller's.
            is_own = isinstance(error, TimeoutError) and isinstance(before, CancelledError)
            error = before.__context__ if is_own and before is not None else before
        return isinstance(error, CancelledError)
    except Exception:  # noqa: BLE001 - any attribute of an application's error may raise
        return False


def judge(classify: Classify, error: BaseException) -> Fault:
    """Classify an error. Never raises: a non-Exception is NEUTRAL, and so is a failure of the classifier itself."""
    # This runs while the permit, the slot and the money are still to be returned. An exception from a user's `classify`
    # would skip all three, so it is logged or dropped, and the call ends as if nothing were known.
    if not isinstance(error, Exception):
        return CANCELLED
    if isinstance(error, WrongLoop):
        return UNJUDGED
    try:
        fault = classify(error)
    except Exception:  # noqa: BLE001 - a failing classifier must not keep the permit
        return UNJUDGED
    except BaseException as worse:  # noqa: BLE001 - an exit is handed to the event loop, and the permit is still returned
        outlive(worse, "a classifier failed")
        return UNJUDGED
    if not isinstance(fault, Fault):
        return UNJUDGED
    is_said = fault.error is not None or fault.failure is not None
    if not is_said and (fault.verdict is not NEUTRAL or fault.block is not None):
        return replace(fault, failure=failure_of(error, fault.kind))
    return fault


def met_by(fault: Fault) -> Failure | None:
    """The failure of an attempt that will be repeated."""
    if fault.failure is None and isinstance(fault.error, KooError):
        return Failure(fault.kind, fault.error.reason)
    return fault.failure


def explain(
    name: str, real: BaseException, attempt: int, why_not: str = "", met: Failure | None = None
) -> None:
    """Record on the error how many attempts were made, and why no more; `met`: the failure of the previous attempt.

    If the last attempt only ran out of time, the failure before it is what helps: for example if a pooler had no
    connection left for three attempts and did not respond to the fourth.
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
    """The text that an error's `last_error` adds to its reason."""
    return f"; before that: {error.last_error.brief}" if error.last_error is not None else ""
