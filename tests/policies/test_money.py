"""Dollars for people, whole pico-dollars inside, and nothing lost in the conversion."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.policies.money import AMOUNT_PICO_MAX, TOTAL_PICO_MAX, from_pico, in_words, limit_to_pico, to_pico


@given(st.integers(0, AMOUNT_PICO_MAX))
def test_pico_dollars_survive_the_round_trip(pico: int) -> None:
    assert to_pico(from_pico(pico)) == pico
    assert from_pico(pico) * 10**12 == pico


@given(st.decimals(min_value=0, max_value=1_000_000, allow_nan=False, places=20))
def test_fractions_of_a_pico_dollar_are_rounded_up_for_amounts_and_down_for_limits(amount: Decimal) -> None:
    assert from_pico(limit_to_pico(amount)) <= amount <= from_pico(to_pico(amount))
    assert to_pico(amount) - limit_to_pico(amount) <= 1


def test_a_programs_own_decimal_context_does_not_change_amounts() -> None:
    with localcontext() as context:
        context.prec = 3
        assert to_pico(Decimal("123456.789012345678")) == 123456789012345678
        assert str(from_pico(123456789012345678)) == "123456.789012345678"


@pytest.mark.parametrize(
    "amount", ["-0.000000000001", "1000000.000000000001", "1e30", "NaN", "sNaN", "Infinity"]
)
def test_an_amount_that_is_not_a_number_or_too_large_is_rejected(amount: str) -> None:
    with pytest.raises(ValueError, match=r"is not a number of dollars|does not fit"):
        to_pico(Decimal(amount))


def test_a_limit_beyond_the_largest_total_becomes_that_total() -> None:
    for limit in (None, Decimal("1e30"), Decimal(9_999_999)):
        assert limit_to_pico(limit) == TOTAL_PICO_MAX
    assert limit_to_pico(Decimal(9_000_000)) == 9 * 10**18


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        ("0", "$0.00"),
        ("0.05", "$0.05"),
        ("12.5", "$12.50"),
        ("1E+3", "$1000.00"),
        ("0.0000125", "$0.0000125"),
    ],
)
def test_an_amount_in_words_has_cents_and_every_digit(amount: str, words: str) -> None:
    assert in_words(Decimal(amount)) == words
