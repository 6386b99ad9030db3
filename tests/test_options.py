"""Options: each has a meaning, a range and a reason; an invalid value is refused immediately."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import Any

import pytest

from koo import options
from koo.alert_options import AlertOptions
from koo.budget_options import BudgetOptions
from koo.checked import Checked, Timed, allowed
from koo.errors import ConfigurationError, KooError
from koo.log_options import LogOptions
from koo.network_options import NetworkOptions
from koo.once_options import OnceOptions
from koo.options import (
    BreakerOptions,
    DatabaseOptions,
    GuardOptions,
    LimitOptions,
    PlatformOptions,
    RetryOptions,
    ServiceOptions,
)

CLASSES = [
    BreakerOptions,
    RetryOptions,
    LimitOptions,
    GuardOptions,
    DatabaseOptions,
    ServiceOptions,
    BudgetOptions,
    PlatformOptions,
    NetworkOptions,
    LogOptions,
    AlertOptions,
    OnceOptions,
]
NEEDED: dict[type[Checked], dict[str, Any]] = {
    ServiceOptions: {"name": "claude", "kind": "anthropic"},
    BudgetOptions: {"name": "team"},
}
NUMBERS = [
    (kind, one)
    for kind in CLASSES
    for one in dataclasses.fields(kind)
    if any(one.metadata.get(bound) is not None for bound in ("at_least", "at_most", "above"))
]
IDS = [f"{kind.__name__}.{one.name}" for kind, one in NUMBERS]


def make(kind: type[Any], **values: Any) -> Any:
    return kind(**{**NEEDED.get(kind, {}), **values})


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_all_defaults_are_valid_and_options_are_immutable(kind: type[Any]) -> None:
    made = make(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(kind)[0].name, 1)


def test_every_class_of_options_is_tested_here() -> None:
    found = [one for one in vars(options).values() if isinstance(one, type) and issubclass(one, Checked)]
    assert {one for one in found if one not in (Checked, Timed)} == set(CLASSES)


@pytest.mark.parametrize(("kind", "one"), NUMBERS, ids=IDS)
def test_an_option_has_a_meaning_a_reason_and_its_unit_in_its_name(kind: type[Any], one: Any) -> None:
    assert one.metadata["meaning"] and one.metadata["why"]
    if one.metadata["unit"] == "s":
        assert one.name.endswith("_s") or "_s_" in one.name


@pytest.mark.parametrize(("kind", "one"), NUMBERS, ids=IDS)
def test_a_value_out_of_range_is_refused_with_the_allowed_range(kind: type[Any], one: Any) -> None:
    about = one.metadata
    wrong: list[Any] = [math.nan, Decimal("NaN"), Decimal("sNaN"), "5", True, [], -math.inf, 10**400]
    if about["at_least"] is not None:
        wrong.append(about["at_least"] - 1)
    if about["above"] is not None:
        wrong += [about["above"], about["above"] - 1]
    if about["at_most"] is not None:
        wrong += [about["at_most"] + 1, math.inf]
    for value in wrong:
        with pytest.raises(ConfigurationError) as refused:
            make(kind, **{one.name: value})
        assert f"{kind.__name__}.{one.name}" in str(refused.value)
        if not isinstance(value, (str, bool, list)):
            assert str(value) in str(refused.value) and allowed(about) in str(refused.value)


@pytest.mark.parametrize(("kind", "one"), NUMBERS, ids=IDS)
def test_the_ends_of_the_range_are_allowed(kind: type[Any], one: Any) -> None:
    for bound in ("at_least", "at_most"):
        if one.metadata[bound] is not None:
            value = one.metadata[bound]
            assert getattr(make(kind, **{one.name: value}), one.name) == value


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"at_least": 0.05, "at_most": 1}, "0.05 to 1"),
        ({"at_least": 1}, "at least 1"),
        ({"above": 0}, "above 0"),
        ({"above": 0, "at_most": 1}, "above 0, at most 1"),
        ({"at_most": 3}, "at most 3"),
        ({"at_least": 1, "at_most": 1_000_000}, "1 to 1000000"),
        ({}, "any"),
    ],
    ids=str,
)
def test_a_range_is_described_as_text(about: dict[str, float], words: str) -> None:
    assert allowed(about) == words


def test_none_means_no_limit_only_for_options_that_allow_it() -> None:
    assert LimitOptions(per_minute=None).per_minute is None
    assert make(ServiceOptions, daily_budget_usd=None).daily_budget_usd is None
    with pytest.raises(ConfigurationError):
        BreakerOptions(failure_threshold=None)  # type: ignore[arg-type]


def test_the_promised_defaults() -> None:
    breaker, retry = BreakerOptions(), RetryOptions()
    assert (breaker.failure_threshold, breaker.recovery_s, breaker.success_threshold) == (5, 60.0, 2)
    assert (breaker.window_s, breaker.calls_min, breaker.failure_rate, breaker.slow_rate) == (
        30.0,
        20,
        0.5,
        0.8,
    )
    assert (retry.attempts_max, retry.base_s, retry.cap_s, retry.multiplier) == (4, 1.0, 30.0, 2.0)
    assert (retry.budget_tokens, retry.budget_per_success, retry.budget_per_s) == (20.0, 0.1, 1.0)
    service = make(ServiceOptions)
    assert (service.timeout_s, service.attempt_timeout_s, service.max_tokens) == (120.0, 60.0, 4096)
    assert service.daily_budget_usd == Decimal("10.0") and isinstance(service.daily_budget_usd, Decimal)
    limits = service.limits
    assert (limits.per_minute, limits.per_hour, limits.per_day) == (60, 1000, 10_000)


def test_a_key_or_an_address_with_a_password_is_never_shown() -> None:
    shown = repr(
        [
            make(ServiceOptions, api_key="sk-secret"),
            DatabaseOptions(url="postgresql://me:secret@host/db"),
            PlatformOptions(
                token="secret", read_token="secret", state_url="postgresql://me:secret@host/state"
            ),
        ]
    )
    assert "secret" not in shown


def test_a_service_is_configured_by_its_key_or_needs_none() -> None:
    assert not make(ServiceOptions).configured
    assert make(ServiceOptions, api_key="sk").configured
    assert ServiceOptions(name="local", kind="local").configured
    assert ServiceOptions(name="mine", kind="openai_compatible", declared=True).configured


def test_a_probes_lease_is_half_of_the_recovery_time() -> None:
    assert BreakerOptions(recovery_s=10).lease_s == 5.0


def test_a_configuration_error_is_a_koo_error() -> None:
    assert issubclass(ConfigurationError, KooError)


@pytest.mark.parametrize(
    ("budgets", "sentence"),
    [
        ([BudgetOptions(name="a"), BudgetOptions(name="a")], "a budget has the name 'a'"),
        ([BudgetOptions(name="a/b")], "without a slash"),
        ([BudgetOptions(name="a", on_exhausted="none")], "expected one of refuse, claude"),
    ],
)
def test_budgets_have_unique_names_and_refer_to_existing_services(
    budgets: list[BudgetOptions], sentence: str
) -> None:
    claude = ServiceOptions(name="claude", kind="anthropic")
    with pytest.raises(ConfigurationError, match=sentence):
        PlatformOptions(services=(claude,), budgets=tuple(budgets))
