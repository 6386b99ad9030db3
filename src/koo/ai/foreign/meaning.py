"""Classify an error that an operation raised, by the error itself and by its causes.

Libraries wrap an SDK's error in their own (`raise AgentError() from error`), and task groups combine several errors.
The first of these sources with a result decides:

1. koo's own errors; groups, see below; the tables of SDKs, HTTP libraries and databases
2. the causes that are a service's response: those it was raised `from`, or that are in its arguments
3. the HTTP status that it carries
4. its class: `OSError`, `TimeoutError`, `ValueError` and similar ones
5. the context, if it has no cause: `except RateLimitError: raise AgentError()`. Only a service's response counts here:
a
   `KeyError` that was being handled was most likely a cache miss
6. the class of a cause

A service's response becomes an `ExternalServiceError`, to be raised `from` the original. Errors of the caller's own
classes propagate unchanged, as promised, even if they were raised from such a response; only the consequences are those
of the cause.

A group has the meaning of its worst error: a refused key is worse than a required wait, a longer wait is worse than a
shorter one, a wait is worse than a failure, and a failure is worse than a mistake. If all errors are of one kind, so is
the group; otherwise it propagates unchanged. It is unknown what the other tasks of the group did. So a group counts as
billed, and is repeated only if every error in it allows a repeat.

No error is examined twice, and at most sixteen are, so neither cycles nor deep chains can delay a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple

from koo.ai.foreign.databases import classify_database
from koo.ai.foreign.frameworks import ENDS_EARLY, ends_early
from koo.ai.foreign.peek import peek
from koo.ai.foreign.statuses import classify_status, is_answer, status_of
from koo.ai.foreign.vendors import classify_sdk
from koo.ai.providers.faults import make_error
from koo.errors import Failure, Kind, KooError
from koo.policies.treatment import CALLERS, ELSE, MISTAKEN, classify_error, fault_of
from koo.policies.verdict import FAILURE, THROTTLED, Fault
from koo.shortages import shortage_in

LOOKED_AT_MAX = 16
"""Errors to examine for one call. Chains and groups in practice are smaller."""


class Meaning(NamedTuple):
    """A fault. `spoken`: it comes from a service's response and not only from an exception's class."""

    fault: Fault
    spoken: bool


NOTHING = Meaning(ELSE, spoken=False)


def meaning_of(error: Exception, service: str = "") -> Fault:
    """Classify `error` for the service of that name. Never raises: an error that cannot be examined is a failure."""
    walk = _Walk(service)
    fault = walk.look(error).fault
    if walk.ends_early and fault.error is None and ENDS_EARLY not in getattr(error, "__notes__", ()):
        error.add_note(ENDS_EARLY)
    return fault


class _Walk:
    """One walk through an error, its causes, its context and its groups."""

    __slots__ = ("_seen", "_service", "ends_early")

    def __init__(self, service: str) -> None:
        self.ends_early = False
        self._service = service
        self._seen: set[int] = set()

    def look(self, error: Exception) -> Meaning:
        """Examine one error. Never raises."""
        # Errors are arbitrary objects, so ids are compared (`__eq__` may be anything), and a property may raise. Then
        # this error counts as unknown, and the walk goes on with the others. An exception from here would replace the
        # operation's own error.
        if id(error) in self._seen or len(self._seen) >= LOOKED_AT_MAX:
            return NOTHING
        self._seen.add(id(error))
        try:
            return self._look(error)
        except Exception:  # noqa: BLE001 - a property of any error may raise
            return NOTHING

    def _look(self, error: Exception) -> Meaning:
        if isinstance(error, KooError):
            return Meaning(classify_error(error), spoken=True)
        if isinstance(error, ExceptionGroup):
            return self._look_into(error)
        by_table = classify_sdk(error, self._service) or classify_database(error)
        # A client that finds no free descriptor reports a failed connection. If that counted as one, a descriptor leak
        # in this process would open the breakers of all services.
        if by_table is not None and by_table.kind is Kind.CONNECTION:
            by_table = self._short(error, by_table) or by_table
        if by_table is not None:
            return Meaning(self._with_what_was_before(error, by_table), spoken=True)
        # The error is not in a table, so it is a wrapper or the application's own error. A service's response among its
        # causes is more specific than the wrapper's class.
        cause = self._cause_of(error)
        if cause.spoken:
            fault = _unchanged(cause.fault) if _leaves_unchanged(error) else cause.fault
            return Meaning(_in_part(fault) if _tried_before(error) else fault, spoken=True)
        return self._by_itself(error) or self._by_context(error) or _by_answer(error) or cause

    def _short(self, error: Exception, by_table: Fault) -> Fault | None:
        """The fault for a failed connection, if this process has run out of descriptors, memory or threads."""
        short = shortage_in(error)
        if short is None:
            return None
        lacking = make_error(self._service, Kind.OUT_OF_RESOURCES, short, billable=by_table.billed)
        if by_table.error is None:  # a database's error, which propagates unchanged
            return replace(fault_of(lacking), failure=Failure(lacking.kind, short))
        return replace(fault_of(lacking), error=lacking)

    def _cause_of(self, error: Exception) -> Meaning:
        return next((found for one in _causes(error) if (found := self.look(one)) is not NOTHING), NOTHING)

    def _context_of(self, error: Exception) -> Meaning:
        context = error.__context__
        return (
            self.look(context)
            if isinstance(context, Exception) and not error.__suppress_context__
            else NOTHING
        )

    def _by_itself(self, error: Exception) -> Meaning | None:
        """Classify by the status that the error carries, or by its class."""
        carried = classify_status(error, self._service)
        if carried is not None:
            fault = replace(fault_of(carried), error=carried)
            return Meaning(self._with_what_was_before(error, fault), spoken=True)
        # This is remembered for the whole walk: pydantic's error for cut JSON is often the cause of the error that
        # propagates, and the hint is added to the outermost one, which people see.
        fault = classify_error(error)
        self.ends_early = self.ends_early or (isinstance(error, ValueError) and ends_early(error))
        return None if fault is ELSE else Meaning(fault, spoken=False)

    def _by_context(self, error: Exception) -> Meaning | None:
        found = self._context_of(error)
        if not found.spoken:
            return None
        return Meaning(_unchanged(found.fault), spoken=True) if _leaves_unchanged(error) else found

    def _with_what_was_before(self, error: Exception, fault: Fault) -> Fault:
        """Mark a refusal as billed if it was raised while handling an earlier, billed failure."""
        # LiteLLM turns a stream that broke off into an error with a status, and other libraries retry by themselves.
        # The refusal costs nothing, but the attempt before it may have.
        if fault.billed:
            return fault
        before = self._cause_of(error)
        before = self._context_of(error) if before is NOTHING else before
        return _in_part(fault) if before.fault.error is not None and before.fault.billed else fault

    # ── groups ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look_into(self, group: ExceptionGroup[Exception]) -> Meaning:
        found = [
            self.look(one)
            for one in group.exceptions
            if id(one) not in self._seen and len(self._seen) < LOOKED_AT_MAX
        ]
        if not found:
            return NOTHING
        # The worst decides what follows for other calls. But a group may be repeated only if each of its errors allows
        # it: another task of the group may have been billed, and a repeat would run that one again.
        faults = [one.fault for one in found]
        worst = max(faults, key=_how_bad)
        of_one_kind = all((one.verdict, one.kind) == (worst.verdict, worst.kind) for one in faults)
        fault = replace(
            _in_part(worst),
            repeatable=all(one.repeatable for one in faults),
            error=worst.error if of_one_kind else None,
        )
        return Meaning(fault, spoken=any(one.spoken for one in found))


def _how_bad(fault: Fault) -> tuple[bool, bool, bool, float]:
    """A key for `max`: the worst fault holds back the most calls for the longest time."""
    return (
        fault.block is not None,
        fault.verdict is THROTTLED,
        fault.verdict is FAILURE,
        fault.retry_after_s or 0.0,
    )


def _in_part(fault: Fault) -> Fault:
    """Mark the fault as partial: other work of the same call may have been done and billed."""
    return replace(fault, anew=False, billed=True, in_part=True)


def _tried_before(error: Exception) -> bool:
    """Whether instructor or tenacity made several attempts: an earlier one may have been billed and then discarded."""
    tries = peek(error, "n_attempts") or peek(error, "last_attempt", "attempt_number")
    return type(tries) is int and tries > 1


def _causes(error: Exception) -> Iterator[Exception]:
    """The error it was raised from; otherwise the exceptions in tenacity's last attempt and in its arguments."""
    if error.__cause__ is not None:
        if isinstance(error.__cause__, Exception):
            yield error.__cause__
        return
    attempt = peek(error, "last_attempt")
    if isinstance(attempt, Future) and attempt.done() and not attempt.cancelled():
        held = attempt.exception(timeout=0)
        if isinstance(held, Exception):
            yield held
    for one in error.args:
        if isinstance(one, Exception):
            yield one


def _leaves_unchanged(error: Exception) -> bool:
    return isinstance(error, CALLERS) or is_answer(error)


def _by_answer(error: Exception) -> Meaning | None:
    """The meaning of a web framework's `HTTPException` below 500: the application found a mistake, not a failure."""
    if is_answer(error) and (status := status_of(error)) is not None and status < 500:
        return Meaning(MISTAKEN, spoken=False)
    return None


def _unchanged(fault: Fault) -> Fault:
    return replace(fault, error=None)
