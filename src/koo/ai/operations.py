"""The same guard for anybody's own operation: a vendor's SDK, a payment service, a search index.

An operation is registered by a name and its options, and then run by that name. Limits and a budget: none unless given.
The name of a built-in service works too: then the operation shares that service's breaker, limits and key.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from koo.ai.budgets import Budgets
from koo.ai.charge import FixedCharge
from koo.ai.own_database import classify_sqlalchemy
from koo.ai.providers.sdk_faults import classify_sdk, own_retries
from koo.ai.service import Service
from koo.errors import ConfigurationError
from koo.options import BreakerOptions, GuardOptions, LimitOptions, RetryOptions
from koo.policies.treatment import classify_error
from koo.policies.verdict import Classify, Fault
from koo.storage.base import Allowance

T = TypeVar("T")
log = logging.getLogger("koo")

NAMES: dict[str, tuple[str, str]] = {
    "timeout_s": ("guard", "timeout_s"),
    "attempt_timeout_s": ("guard", "attempt_timeout_s"),
    "slow_s": ("guard", "slow_s"),
    "concurrency_max": ("guard", "concurrency_max"),
    "queue_max": ("guard", "queue_max"),
    "idempotent": ("guard", "idempotent"),
    "failure_threshold": ("breaker", "failure_threshold"),
    "recovery_timeout": ("breaker", "recovery_s"),
    "success_threshold": ("breaker", "success_threshold"),
    "retry_base_delay": ("retry", "base_s"),
    "retry_max_delay": ("retry", "cap_s"),
    "retry_backoff_multiplier": ("retry", "multiplier"),
    "requests_per_minute": ("limits", "per_minute"),
    "requests_per_hour": ("limits", "per_hour"),
    "requests_per_day": ("limits", "per_day"),
}
"""What `register_service` takes, and which option of koo it is. Besides: `max_retries`, `classify`, and money."""
MONEY = ("daily_budget", "max_cost_usd", "cost_usd")
BOUND_USD_MAX = Decimal(1_000_000)
"""More no ledger holds for one call: each would be refused."""


def read_options(options: Mapping[str, Any]) -> GuardOptions:
    """The guard's options of a registration. Raises `ConfigurationError` for a name or a value that cannot be right."""
    parts: dict[str, dict[str, Any]] = {"guard": {}, "breaker": {}, "retry": {}, "limits": {}}
    for name, value in options.items():
        if name == "max_retries":
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigurationError("register_service", "max_retries must be a whole number, at least 0")
            parts["retry"]["attempts_max"] = value + 1
        elif name in NAMES:
            part, field_name = NAMES[name]
            parts[part][field_name] = _checked(name, value)
        elif name not in ("classify", *MONEY):
            known = ", ".join(sorted((*NAMES, "classify", "max_retries", *MONEY)))
            raise ConfigurationError("register_service", f"unknown option {name!r}; known are: {known}")
        elif name in ("classify", "cost_usd") and value is not None and not callable(value):
            raise ConfigurationError("register_service", f"{name} must be a function")
    guard = parts["guard"]
    read = GuardOptions(
        **guard,
        breaker=BreakerOptions(**parts["breaker"]),
        retry=RetryOptions(**parts["retry"]),
        limits=LimitOptions(**parts["limits"]),
    )
    read.check_slow()
    return read


def _checked(name: str, value: Any) -> Any:
    """Of the right kind; its bounds are the options' to check. Whatever is true would else make repeats harmless."""
    if name == "idempotent":
        if not isinstance(value, bool):
            raise ConfigurationError("register_service", "idempotent must be True or False")
    elif value is None and name.startswith("requests_per_"):
        return None
    elif not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError("register_service", f"{name} must be a number, not {type(value).__name__}")
    return value


def compose(classify: Classify | None, name: str) -> Classify:
    """The user's classifier where it answers; then SDKs and SQLAlchemy by table; then everything else."""

    def judge(error: Exception) -> Fault:
        if classify is not None:
            fault = classify(error)
            if fault is not None:
                return fault
        return classify_sdk(error, name) or classify_sqlalchemy(error) or classify_error(error)

    return judge


class Money:
    """What a registration says about money."""

    __slots__ = ("_cost_of", "allowance", "bound_usd")

    def __init__(self, options: Mapping[str, Any]) -> None:
        budget = options.get("daily_budget")
        bound = options.get("max_cost_usd")
        if budget is not None and bound is None:
            raise ConfigurationError(
                "register_service", "daily_budget needs max_cost_usd, the most that one call can cost"
            )
        if bound is None and options.get("cost_usd") is not None:
            # Without a hold nothing would ever be booked.
            raise ConfigurationError(
                "register_service", "cost_usd needs max_cost_usd, the most that one call can cost"
            )
        limit_usd = None if budget is None else _usd("daily_budget", budget)
        self.allowance = Allowance(limit_usd, explicit=budget is not None)
        self.bound_usd = None if bound is None else _usd("max_cost_usd", bound, BOUND_USD_MAX)
        self._cost_of: Callable[[Any], Any] | None = options.get("cost_usd")

    def charge(self, service: Service, budgets: Budgets) -> FixedCharge | None:
        """The charge of one call; None where it costs nothing."""
        return None if self.bound_usd is None else FixedCharge(service, budgets, self.bound_usd)

    def cost_usd(self, result: object) -> Decimal | None:
        """What the call that returned `result` cost; None where the caller does not say, or says nothing sensible."""
        if self._cost_of is None:
            return None
        try:
            return _usd("cost_usd", self._cost_of(result))
        except Exception:
            # The call was made and is paid for: its answer is not thrown away, and its money not given back.
            log.exception("cost_usd failed; the most that the call can cost is booked")
            return None


def _usd(name: str, value: Any, most: Decimal = Decimal("Infinity")) -> Decimal:
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ConfigurationError("register_service", f"{name} must be an amount of USD, at least 0")
    if amount > most:
        raise ConfigurationError("register_service", f"{name} must be at most {most:,} USD")
    return amount


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
