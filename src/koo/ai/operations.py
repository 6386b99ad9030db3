"""The guard for an application's own operations: a vendor's SDK, a payment service, a search index.

An operation is registered with a name and options, and then run by that name. It has no limits and no budget unless
they are set. The name of a built-in service works too: the operation then shares that service's breaker, limits, key
and budgets.

koo calls code here that it does not know, so `execute` checks what it can before the guard counts anything, and the
rest when the operation has returned:

- Before: a coroutine instead of a function, and a function that is known to block the event loop, raise TypeError.
- After: a result that cannot be awaited proves that the operation has blocked. A stream is closed and refused, because
  the guard would end its permit before the first piece is read.

Money follows from one moment: once the operation has been awaited (`charge.begun`), the service may have billed it,
whatever the operation raises.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from koo.ai.blocking import IN_THREAD, is_async
from koo.ai.budgets import Budgets
from koo.ai.callees import credential_of_call, credential_of_headers, look, says_nothing
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
    """Run `operation(*args, **kwargs)` under the guard of `service`. `own` is the caller's loop, if it differs from
    koo's.

    Raises SDK and transport errors as `ExternalServiceError`, koo's own refusals, and everything else unchanged. Raises
    TypeError if `operation` cannot be awaited, or if it returns a stream, which is closed first.
    """
    try:
        check_operation(operation)
        # `in_thread=True` is an option of the name, not of the function. An `async def` under that name stays on the
        # loop: in a thread, its coroutine would be made there and awaited here, with nothing gained.
        threads = service.threads
        if threads is not None and is_async(operation):
            threads = None
        # The guard and the charge both inspect the original function. `threads.over` returns a lambda, in which neither
        # a key nor a model could be found.
        guard = guard_of(service, operation, args, kwargs, threads is not None)
        charge = money.charge(service, budgets, operation, args, kwargs) if money is not None else None
        if threads is not None:
            operation = threads.over(operation)

        is_streamed = kwargs.get("stream") is True

        async def run() -> T:
            awaitable = operation(*args, **kwargs)
            if not inspect.isawaitable(awaitable):
                # A blocking function has done its work by now, so a request has been sent and may be billed: releasing
                # the hold would lose that money. An unstarted generator or context manager has sent nothing yet.
                if charge is not None and not is_unstarted(awaitable):
                    charge.begun = True
                raise await _refusal(service.name, awaitable)
            # This comes before the await, not after it: an operation that fails or is cancelled may have been billed
            # all the same.
            if charge is not None:
                charge.begun = True
            result: T = await awaitable
            # If a stream were returned unchanged, it would be read outside the guard: its permit is settled on return,
            # so a stream that hangs or breaks off would count as a success, and its usage would never be booked. An
            # HTTP response is refused only if `stream=True` requested it open; otherwise an open one is the library's
            # normal result.
            if is_stream(result) or (is_streamed and is_left_open(result)):
                raise await _refusal(service.name, result)
            if charge is not None:
                charge.answered(result)
            return result

        # koo's guard runs on its home loop, but an SDK's client belongs to the loop that made it: its connections and
        # locks fail on any other. So each attempt goes back to the caller's loop. A thread needs neither loop, and
        # `Threads` counts what is running on koo's loop only.
        attempt = run if own is None or threads is not None else come_back(run, own)
        try:
            return await guard.call(attempt, charge=charge)
        except Exception as error:
            note_failure(service, guard, error)
            raise
    except BaseException:
        # Error reporters record the local variables of every frame in a traceback, and these contain prompts and keys.
        # Every function that receives a caller's arguments does the same.
        operation = args = kwargs = UNSHOWN
        raise


def note_failure(service: Service, guard: Guard, error: Exception) -> None:
    """Log an operation that failed or was refused. An error that is the caller's own mistake is not logged."""
    if isinstance(error, KooError):
        service.calls.failed(service.name, "operation", error, error.kind, error.attempts)
        return
    fault = guard.judge(error)
    if fault.verdict is not NEUTRAL:
        service.calls.failed(service.name, "operation", error, fault.kind, 1)


def check_operation(operation: object) -> None:
    """Raise TypeError for anything that cannot be called repeatedly."""
    if inspect.iscoroutine(operation):
        operation.close()  # otherwise Python would also warn that it was never awaited
        raise TypeError(
            "pass the function and its arguments, not a coroutine: a coroutine cannot be run again"
        )
    if not callable(operation):
        raise TypeError(
            f"the operation must be a function that returns an awaitable, not {type(operation).__name__}"
        )


async def _refusal(name: str, given: object) -> TypeError:
    """Close a stream that was returned instead of a whole result; returns the error that says what to do."""
    if not (is_unstarted(given) or is_stream(given) or is_left_open(given)):
        return TypeError(
            f"{name}: the operation blocked the event loop until it returned, and its result cannot be awaited: "
            f"use an asynchronous client (for example AsyncOpenAI instead of OpenAI), or {IN_THREAD}"
        )
    try:
        await discard(given)
    except Exception as error:  # noqa: BLE001 - the refusal is what the caller needs to see
        log.debug("%s: a refused stream could not be closed: %r", name, error)
    return TypeError(
        f"{name}: the operation returned a stream ({describe(given)}), and execute can guard only its beginning; "
        f"read it with stream_with_error_handling({name!r}, operation, ...), or Platform.execute_stream"
    )


def guard_of(
    service: Service,
    operation: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    in_thread: bool = False,
) -> Guard:
    """The guard for an operation's model and credential. Sends nothing.

    Raises TypeError if the operation is known to block the event loop, and whatever the `credential` function raises.
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
    keywords = {**operation.keywords, **kwargs} if isinstance(operation, partial) else kwargs
    if "extra_headers" in keywords:
        credential = credential_of_headers(keywords["extra_headers"]) or credential
    if not credential:
        credential = credential_of_call(operation, args, kwargs)
    if service.credential_of is not None:
        told = service.credential_of(*args, **kwargs)
        credential = credential if told is None else digest_of(_name_of(told))
    model = service.default_model
    if model is not None:
        # Under a built-in name the keyword is an SDK's, and names the model whose breaker must count this call. Under a
        # registered name (`default_model` None) it may be anything, a car's for example.
        named = kwargs.get("model")
        model = named if isinstance(named, str) else model
    return service.guard_for(credential, model) if credential else service.guard(model)


def _name_of(credential: object) -> str:
    """The name that a registration's `credential` function returned. Raises TypeError for an object without one."""
    kind = type(credential)
    # Python's default text of an object contains its address, so each call of a tenant would have another credential,
    # and neither a pause nor a refused key would apply to the next one.
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        raise TypeError(f"credential must return a name (a str or an id) or None, not {kind.__name__}")
    return str(credential)
