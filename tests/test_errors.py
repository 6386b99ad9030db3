"""Errors: an actionable sentence, a few facts to program against, and nothing that must not be shown."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest

from koo import errors
from koo.errors import (
    AllServicesFailed,
    AuthenticationFailed,
    BudgetExceeded,
    CallerMistake,
    CircuitOpen,
    CommitOutcomeUnknown,
    ConfigurationError,
    DatabaseTimeout,
    DatabaseUnavailable,
    ExternalServiceError,
    InvalidRequest,
    Kind,
    KooError,
    PoolSaturated,
    PriceUnknown,
    RateLimited,
    ServiceFailed,
    ServiceRefused,
    ServiceSaturated,
    ServiceTimeout,
    StreamTruncated,
    UnknownService,
    describe_s,
    describe_wait_s,
)

CLASSES = [
    one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, KooError) and one is not AllServicesFailed
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda one: one.__name__)
def test_an_errors_text_has_the_service_the_reason_the_attempts_and_the_time(kind: type[KooError]) -> None:
    error = kind("claude", "it is down", 12.0, attempts=3)
    assert (error.service, error.reason, error.retry_after_s, error.attempts) == (
        "claude",
        "it is down",
        12.0,
        3,
    )
    assert isinstance(error.kind, Kind) and kind.__doc__
    if kind is not ConfigurationError:
        assert str(error) == "claude: it is down (after 3 attempts); try again in 12 s"
        assert str(kind("claude", "it is down")) == "claude: it is down"
        assert str(kind("claude", "it is down", 0.0, attempts=1)) == "claude: it is down"
    assert kind.__name__ in repr(error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    "via", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"]
)
def test_an_error_can_be_pickled(kind: type[KooError], via: Any) -> None:
    error = kind("claude", "it is down", 12.0, kind=Kind.OVERLOADED, attempts=2, detail={"status": 529})
    other = via(error)
    assert type(other) is kind and str(other) == str(error)
    assert (other.kind, other.attempts, other.detail) == (Kind.OVERLOADED, 2, {"status": 529})


def test_setting_a_kind_changes_one_error_only() -> None:
    throttled = RateLimited("a", "429", kind=Kind.THROTTLED)
    assert throttled.kind is Kind.THROTTLED and RateLimited("a", "ours").kind is Kind.RATE_LIMITED


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"), (0.44, "0.4 s"), (9.94, "9.9 s"), (12.3, "12 s"), (119.0, "119 s"), (300.0, "5 min"),
        (7199.0, "120 min"), (12_000.0, "3 h 20 min"), (172_799.0, "47 h 59 min"), (172_800.0, "2 days"),
        (2_678_400.0, "31 days"),
    ],
)  # fmt: skip
def test_durations_are_described_for_people(seconds: float, words: str) -> None:
    assert describe_s(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.11, "0.2 s"), (12.1, "13 s"), (121.0, "121 s"), (299.2, "300 s"), (301.0, "6 min"),
        (math.inf, "an unknown time"),
    ],
)  # fmt: skip
def test_a_wait_is_rounded_up_but_not_by_half_of_its_length(seconds: float, words: str) -> None:
    assert describe_wait_s(seconds) == words


def test_the_base_class_says_whose_fault_it_was() -> None:
    refused = [CircuitOpen, RateLimited, BudgetExceeded, ServiceSaturated]
    failed = [ServiceTimeout, StreamTruncated, AuthenticationFailed]
    mistaken = [InvalidRequest, UnknownService, PriceUnknown]
    for base, kinds in ((ServiceRefused, refused), (ServiceFailed, failed), (CallerMistake, mistaken)):
        assert all(issubclass(kind, base) and issubclass(kind, ExternalServiceError) for kind in kinds)
    for kind in (DatabaseUnavailable, PoolSaturated, CommitOutcomeUnknown):
        assert not issubclass(kind, ExternalServiceError)


def test_errors_are_caught_by_pythons_own_exception_classes() -> None:
    assert issubclass(ServiceTimeout, TimeoutError) and issubclass(DatabaseTimeout, TimeoutError)
    assert issubclass(UnknownService, LookupError) and issubclass(AllServicesFailed, ExceptionGroup)


def test_a_group_keeps_all_failures_and_gives_the_shortest_wait() -> None:
    group = AllServicesFailed(
        "no service answered",
        [
            CircuitOpen("claude", "the circuit is open", 50.0),
            RateLimited("openai", "koo's limit is reached", 20.0),
            ServiceFailed("gemini", "it is down", attempts=3),
        ],
    )
    assert isinstance(group, ExternalServiceError) and group.kind is Kind.ALL_FAILED
    assert group.service == "claude, openai, gemini"
    assert group.retry_after_s == 20.0 and group.attempts == 3 and len(group.exceptions) == 3
    assert str(group) == (
        "no service answered: claude: the circuit is open; try again in 50 s | openai: koo's limit is reached; "
        "try again in 20 s | gemini: it is down (after 3 attempts)"
    )


def test_a_group_can_be_split_and_pickled() -> None:
    group = AllServicesFailed("no service answered", [CircuitOpen("a", "open"), ServiceFailed("b", "down")])
    matched, rest = group.split(CircuitOpen)
    assert isinstance(matched, AllServicesFailed) and isinstance(rest, AllServicesFailed)
    assert [str(one) for one in matched.exceptions] == ["a: open"] and rest.service == "b"
    other = pickle.loads(pickle.dumps(group))
    assert str(other) == str(group) and [type(one) for one in other.exceptions] == [
        CircuitOpen,
        ServiceFailed,
    ]
    caught: list[str] = []
    try:
        raise group
    except* CircuitOpen as some:
        caught += [str(one) for one in some.exceptions]
    except* ServiceFailed as some:
        caught += [str(one) for one in some.exceptions]
    assert caught == ["a: open", "b: down"]


def test_a_group_can_be_pickled_after_its_list_was_cleared() -> None:
    failures: list[ExternalServiceError] = [ServiceFailed("a", "down")]
    group = AllServicesFailed("no service answered", failures)
    failures.clear()
    assert str(pickle.loads(pickle.dumps(group))) == str(copy.copy(group)) == "no service answered: a: down"


def test_each_kind_is_a_word_that_can_label_a_metric() -> None:
    for kind in Kind:
        assert kind == kind.value and kind.value.replace("_", "").isalpha() and kind.value.islower()
    assert f"{Kind.CIRCUIT_OPEN}" == "circuit_open"


def test_a_configuration_error_is_one_plain_sentence() -> None:
    assert (
        str(ConfigurationError("", "KOO_PORT is -1; expected 0 to 65535"))
        == "KOO_PORT is -1; expected 0 to 65535"
    )
    assert str(ConfigurationError("claude", "it has no key")) == "claude: it has no key"
