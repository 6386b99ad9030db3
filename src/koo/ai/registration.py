"""Reads the options of a user's own operation from its registration, and composes the classifier of its errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from types import FunctionType, NoneType
from typing import Any

from koo.ai.blocking import is_async
from koo.ai.foreign.meaning import meaning_of
from koo.ai.hidden_repeats import warn_of_repeats_in
from koo.ai.operation_money import MONEY, USAGE
from koo.ai.threads import CONCURRENCY
from koo.checked import fault_in
from koo.errors import ConfigurationError, Failure, Kind, KooError
from koo.options import BreakerOptions, GuardOptions, LimitOptions, RetryOptions
from koo.policies.verdict import Classify, Fault, Verdict

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
"""The options of `register_service` that each set one of koo's options, and the option that they set."""
PLAIN_FUNCTION = "a function (def, not async def)"
RETRIES_MAX = 99
FAULT_KINDS: dict[str, tuple[type, ...]] = {
    "verdict": (Verdict,),
    "kind": (Kind,),
    "retry_after_s": (int, float, NoneType),
    "until_wall_s": (int, float, NoneType),
    "error": (Exception, NoneType),
    "failure": (Failure, NoneType),
}
"""The types of a fault's fields that koo computes with, or shows."""
REACHES = (None, "model", "service")
PARTS = {"guard": GuardOptions, "breaker": BreakerOptions, "retry": RetryOptions, "limits": LimitOptions}
FIELDS: dict[tuple[str, str], Field[Any]] = {
    (part, one.name): one for part, kind in PARTS.items() for one in fields(kind)
}
"""The fields of koo's options, by part and name."""
BESIDE = ("classify", "credential", "in_thread", "max_retries", *MONEY)
"""The other options of `register_service`, each of which needs its own handling."""


def read_options(options: Mapping[str, Any]) -> GuardOptions:
    """The guard options that a registration sets. Raises `ConfigurationError` for an invalid name or value."""
    parts: dict[str, dict[str, Any]] = {"guard": {}, "breaker": {}, "retry": {}, "limits": {}}
    for name, value in options.items():
        if name == "max_retries":
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= RETRIES_MAX:
                expected = f"a whole number, 0 to {RETRIES_MAX}"
                raise ConfigurationError("register_service", f"max_retries must be {expected}")
            parts["retry"]["attempts_max"] = value + 1  # retries come after the first attempt
        elif name in NAMES:
            part, field_name = NAMES[name]
            parts[part][field_name] = _checked(name, value)
        elif name not in BESIDE:
            known = ", ".join(sorted((*NAMES, *BESIDE)))
            raise ConfigurationError("register_service", f"unknown option {name!r}; known options: {known}")
        elif name == "classify" and value is not None and not _is_plain_function(value):
            raise ConfigurationError("register_service", f"classify must be {PLAIN_FUNCTION}")
        elif name == "cost_usd" and value not in (None, USAGE) and not _is_plain_function(value):
            raise ConfigurationError("register_service", f'cost_usd must be {PLAIN_FUNCTION}, or "{USAGE}"')
        elif name == "in_thread" and not isinstance(value, bool):
            raise ConfigurationError("register_service", "in_thread must be True or False")
    guard = parts["guard"]
    if options.get("in_thread"):
        guard.setdefault("concurrency_max", CONCURRENCY)
    read = GuardOptions(
        **guard,
        breaker=BreakerOptions(**parts["breaker"]),
        retry=RetryOptions(**parts["retry"]),
        limits=LimitOptions(**parts["limits"]),
    )
    read.check_slow()
    return read


def is_same(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    """Whether two registrations have the same options. `one` is None if there is no earlier one."""
    # A breaker that opens after five failures would never open if a registration in each call made a new one.
    if one is None:
        return False
    return one.keys() == other.keys() and all(_is_equal(value, other[name]) for name, value in one.items())


def _is_equal(one: Any, other: Any) -> bool:
    if type(one) is type(other) and one == other:
        return True
    # A lambda written in a handler is a new object each time, but does the same if it has the same code and no state.
    return (
        isinstance(one, FunctionType)
        and isinstance(other, FunctionType)
        and (one.__code__, one.__defaults__, one.__kwdefaults__)
        == (other.__code__, other.__defaults__, other.__kwdefaults__)
        and one.__globals__ is other.__globals__
        and one.__closure__ is other.__closure__ is None
    )


def read_credential(option: object) -> Callable[..., object] | None:
    """The function from a call's arguments to its credential; None if the registration sets none.

    The option is a name, or a function of the operation's arguments. The function returns a name, or None to use the
    client's own key. Raises `ConfigurationError` for anything else.
    """
    if option is None:
        return None
    if isinstance(option, str) and option:
        return lambda *_args, **_kwargs: option
    if callable(option) and _is_plain_function(option):
        return option
    raise ConfigurationError(
        "register_service", f"credential must be a name, or {PLAIN_FUNCTION} of the operation's arguments"
    )


def _is_plain_function(value: object) -> bool:
    # koo calls these functions where it cannot wait. A coroutine in place of a result would raise nothing: each call
    # would have a credential of its own, and no failure would count for the breaker.
    return callable(value) and not is_async(value)


def _checked(name: str, value: Any) -> Any:
    """Check one option. The options themselves would name their own field, which the caller has not written."""
    # It must be a bool: with any truthy value, `idempotent="no"` would allow koo to repeat a payment.
    if name == "idempotent":
        if not isinstance(value, bool):
            raise ConfigurationError("register_service", "idempotent must be True or False")
    elif value is None and name.startswith("requests_per_"):
        return None
    elif not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError("register_service", f"{name} must be a number, not {type(value).__name__}")
    elif fault := fault_in(FIELDS[NAMES[name]], value):
        raise ConfigurationError("register_service", f"{name} {fault}")
    return value


def compose(classify: Classify | None, name: str) -> Classify:
    """A classifier that uses the caller's own if that returns a valid fault, and `koo.ai.foreign` otherwise."""
    warned = False

    def by_caller(error: Exception) -> Fault | None:
        nonlocal warned
        if classify is None:
            return None
        try:
            fault = classify(error)
            wrong = "" if fault is None else _flaw_of(fault)
        except Exception as worse:  # noqa: BLE001 - a bug in it must not switch the breaker off
            wrong = f"raised {type(worse).__name__}"
        if not wrong:
            return fault
        if not warned:
            log.warning("%s: classify %s, so koo's own table decides (logged once)", name, wrong)
        warned = True
        return None

    def judge(error: Exception) -> Fault:
        if not isinstance(error, KooError):
            warn_of_repeats_in(name, error)
        return by_caller(error) or meaning_of(error, name)

    return judge


def _flaw_of(fault: object) -> str:
    """What is wrong with the result of a caller's `classify`, as a predicate; empty if nothing."""
    if not isinstance(fault, Fault):
        return f"must return a Fault or None, not {type(fault).__name__}"
    # Python checks no field's type. A kind given as a plain string would break the service's status, and with it every
    # page.
    for name, kinds in FAULT_KINDS.items():
        value = getattr(fault, name)
        if not isinstance(value, kinds) or isinstance(value, bool) or value != value:
            return f"returned a Fault whose {name} is {type(value).__name__}"
    return "" if fault.block in REACHES and fault.reach in REACHES else "returned a Fault of an unknown reach"
