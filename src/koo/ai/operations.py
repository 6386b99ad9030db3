"""The same guard for anybody's own operation: a vendor's SDK, a payment service, a search index.

An operation is registered by a name and its options, and then run by that name. Limits and a budget: none unless given.
The name of a built-in service works too: then the operation shares that service's breaker, limits and key.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from koo.ai.budgets import Budgets
from koo.ai.operation_money import Money
from koo.ai.sdk_retries import own_retries
from koo.ai.service import Service

T = TypeVar("T")
log = logging.getLogger("koo")


async def execute(
    service: Service,
    money: Money | None,
    budgets: Budgets,
    operation: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> T:
    """Run `operation(*args, **kwargs)` under the guard of `service`.

    Raises SDK and transport errors as `ExternalServiceError`, refusals of ours, everything else unchanged.
    TypeError where `operation` cannot be awaited.
    """
    if inspect.iscoroutine(operation):
        operation.close()
        raise TypeError(
            "pass the function and its arguments, not a coroutine: a coroutine cannot be run again"
        )
    if not callable(operation):
        raise TypeError(
            f"the operation must be a function that can be awaited, not {type(operation).__name__}"
        )
    _warn_of_retries(service.name, operation)
    guard = service.guard(_model_of(service, kwargs))
    charge = money.charge(service, budgets) if money is not None else None

    async def run() -> T:
        awaitable = operation(*args, **kwargs)
        if not inspect.isawaitable(awaitable):
            raise TypeError("the operation gave a result that cannot be awaited: koo guards async functions")
        if charge is not None:
            charge.begun = True
        result: T = await awaitable
        if charge is not None and money is not None:
            charge.note(money.cost_usd(result))
        return result

    return await guard.call(run, charge=charge)


def _model_of(service: Service, kwargs: Mapping[str, Any]) -> str | None:
    """An SDK's call names its model; an operation of the user's own has none that koo would know."""
    model = kwargs.get("model")
    return model if isinstance(model, str) and service.default_model is not None else service.default_model


_warned: set[str] = set()


def _warn_of_retries(name: str, operation: Callable[..., Any]) -> None:
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
