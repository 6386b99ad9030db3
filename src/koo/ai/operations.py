"""The same guard for anybody's own operation: a vendor's SDK, a payment service, a search index.

An operation is registered by a name and its options, and then run by that name. Limits and a budget: none unless given.
The name of a built-in service works too: then the operation shares that service's breaker, limits, key and budgets.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from koo.ai.budgets import Budgets
from koo.ai.operation_money import OperationMoney
from koo.ai.sdk_retries import own_retries
from koo.ai.service import Service
from koo.ai.stream_source import describe, discard, is_stream, is_unstarted

T = TypeVar("T")
log = logging.getLogger("koo")


async def execute(
    service: Service,
    money: OperationMoney | None,
    budgets: Budgets,
    operation: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> T:
    """Run `operation(*args, **kwargs)` under the guard of `service`.

    Raises SDK and transport errors as `ExternalServiceError`, refusals of ours, everything else unchanged.
    TypeError where `operation` cannot be awaited, or what it gives is read over time: that is closed.
    """
    check_operation(operation)
    warn_of_retries(service.name, operation)
    guard = service.guard(model_of(service, kwargs))
    charge = money.charge(service, budgets, operation, args, kwargs) if money is not None else None

    async def run() -> T:
        awaitable = operation(*args, **kwargs)
        if not inspect.isawaitable(awaitable):
            raise await _refusal(service.name, awaitable)
        if charge is not None:
            charge.begun = True
        result: T = await awaitable
        if is_stream(result):
            raise await _refusal(service.name, result)
        if charge is not None:
            charge.answered(result)
        return result

    return await guard.call(run, charge=charge)


def check_operation(operation: object) -> None:
    """Raises TypeError for what cannot be called again."""
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
    """Close a stream that was given in place of an answer; returns the sentence that says what to do."""
    if not (is_unstarted(given) or is_stream(given)):
        return TypeError("the operation gave a result that cannot be awaited: koo guards async functions")
    try:
        await discard(given)
    except Exception as error:  # noqa: BLE001 - what its caller has to know is the refusal
        log.debug("%s: a refused stream could not be closed: %r", name, error)
    return TypeError(
        f"{name}: the operation returned a stream ({describe(given)}), of which execute would see only the beginning; "
        f"read it with stream_with_error_handling({name!r}, operation, ...), or Platform.execute_stream"
    )


def model_of(service: Service, kwargs: Mapping[str, Any]) -> str | None:
    """An SDK's call names its model; an operation of the user's own has none that koo would know."""
    model = kwargs.get("model")
    return model if isinstance(model, str) and service.default_model is not None else service.default_model


_warned: set[str] = set()


def warn_of_retries(name: str, operation: Callable[..., Any]) -> None:
    """An SDK that repeats by itself multiplies our attempts, and hides them from breaker and budget."""
    if name in _warned:
        return
    retries = own_retries(operation)
    if retries:
        _warned.add(name)
        log.warning(
            "%s: the SDK repeats calls by itself (%s times), and koo repeats too: set its max_retries=0 "
            "(google-genai: retry_options=HttpRetryOptions(attempts=1))",
            name,
            retries,
        )
