"""The same guard for an application's own operations: a vendor's SDK, a payment service, a search index.

An operation is registered by a name and its options, and then run by that name. It has no limits and no budget unless
they are given. A built-in service's name works too: then the operation shares that service's breaker, limits, key and
budgets.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from koo.ai.blocking import IN_THREAD, is_async
from koo.ai.budgets import Budgets
from koo.ai.callees import credential_of_call, look, says_nothing
from koo.ai.credentials import digest_of
from koo.ai.hidden_repeats import warn_of_repeats
from koo.ai.operation_money import OperationMoney
from koo.ai.service import Service
from koo.ai.stream_source import describe, discard, is_left_open, is_stream, is_unstarted
from koo.crossing import Loop, come_back
from koo.errors import KooError
from koo.guard import Guard
from koo.hidden import UNSHOWN
from koo.policies.verdict import NEUTRAL

T = TypeVar("T")
log = logging.getLogger("koo")


async def execute(
    service: Service,
    money: OperationMoney | None,
    budgets: Budgets,
    operation: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    own: Loop | None = None,
) -> T:
    """Run `operation(*args, **kwargs)` under the guard of `service`; `own` is the caller's loop, if it is another one.

    Raises SDK and transport errors as `ExternalServiceError`, refusals of ours, everything else unchanged. TypeError if
    `operation` cannot be awaited, or returns a stream, which is then closed.
    """
    try:
        check_operation(operation)
        threads = service.threads
        if threads is not None and is_async(operation):
            threads = None
        guard = guard_of(service, operation, args, kwargs, threads is not None)
        charge = money.charge(service, budgets, operation, args, kwargs) if money is not None else None
        if threads is not None:
            operation = threads.over(operation)

        is_streamed = kwargs.get("stream") is True

        async def run() -> T:
            awaitable = operation(*args, **kwargs)
            if not inspect.isawaitable(awaitable):
                # It may have sent a request for what it returned without waiting.
                if charge is not None and not is_unstarted(awaitable):
                    charge.begun = True
                raise await _refusal(service.name, awaitable)
            if charge is not None:
                charge.begun = True
            result: T = await awaitable
            if is_stream(result) or (is_streamed and is_left_open(result)):
                raise await _refusal(service.name, result)
            if charge is not None:
                charge.answered(result)
            return result

        # An operation in a thread does not need its caller's loop, and counts itself on koo's.
        attempt = run if own is None or threads is not None else come_back(run, own)
        try:
            return await guard.call(attempt, charge=charge)
        except Exception as error:
            note_failure(service, guard, error)
            raise
    except BaseException:
        # Here and wherever else a caller's arguments are held: error reporters record the variables of frames.
        operation = args = kwargs = UNSHOWN
        raise


def note_failure(service: Service, guard: Guard, error: Exception) -> None:
    """Log an operation that failed or was refused; one that raised its caller's own mistake is neither."""
    if isinstance(error, KooError):
        service.calls.failed(service.name, "operation", error, error.kind, error.attempts)
        return
    fault = guard.judge(error)
    if fault.verdict is not NEUTRAL:
        service.calls.failed(service.name, "operation", error, fault.kind, 1)


def check_operation(operation: object) -> None:
    """Raises TypeError for anything that cannot be called repeatedly."""
    if inspect.iscoroutine(operation):
        operation.close()
        raise TypeError(
            "pass the function and its arguments, not a coroutine: a coroutine cannot be run again"
        )
    if not callable(operation):
        raise TypeError(
            f"the operation must be a function that can be awaited, not {type(operation).__name__}"
        )


async def _refusal(name: str, given: object) -> TypeError:
    """Close a stream that was returned instead of an answer; returns the error that says what to do."""
    if not (is_unstarted(given) or is_stream(given) or is_left_open(given)):
        return TypeError(
            f"{name}: the operation blocked the event loop until it returned, and what it returned cannot be awaited: "
            f"use an asynchronous client (AsyncOpenAI beside OpenAI, say), or {IN_THREAD}"
        )
    try:
        await discard(given)
    except Exception as error:  # noqa: BLE001 - what its caller has to know is the refusal
        log.debug("%s: a refused stream could not be closed: %r", name, error)
    return TypeError(
        f"{name}: the operation returned a stream ({describe(given)}), of which execute would see only the beginning; "
        f"read it with stream_with_error_handling({name!r}, operation, ...), or Platform.execute_stream"
    )


def guard_of(
    service: Service,
    operation: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    in_thread: bool = False,
) -> Guard:
    """The guard of an operation's model and credential. Sends nothing.

    Raises TypeError if the operation is known to block the event loop, and what `credential=` raises.
    """
    credential = ""
    if not says_nothing(operation):
        callee, inner, instead = look(operation)
        if instead and not in_thread:
            raise TypeError(
                f"{service.name}: this operation blocks the event loop, so nothing was sent: {instead}"
            )
        if callee.retries:
            warn_of_repeats(service.name, {callee.library: callee.retries})
        credential = callee.credential(inner)
    if not credential:
        credential = credential_of_call(operation, args, kwargs)
    if service.credential_of is not None:
        told = service.credential_of(*args, **kwargs)
        credential = credential if told is None else digest_of(str(told))
    model = service.default_model
    if model is not None:
        # An SDK's call names its model; an application's own operation has none that koo could know.
        named = kwargs.get("model")
        model = named if isinstance(named, str) else model
    return service.guard_for(credential, model) if credential else service.guard(model)
