"""Money: USD as `Decimal` where people see it, whole pico-dollars where it is counted.

A price of $0.15 per million tokens is 150,000 pico-dollars per token, so integers are exact where databases' own
decimals differ (SQLite has none). Anything finer than a pico-dollar is rounded up for amounts and down for limits:
never in the direction in which the cap leaks.
"""

from __future__ import annotations

from decimal import (
    ROUND_CEILING,
    ROUND_FLOOR,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
)

DIGITS = 12
"""A pico-dollar is the twelfth decimal place."""
AMOUNT_PICO_MAX = 10**18
"""A million dollars for one call: more is a mistake in a price."""
TOTAL_PICO_MAX = 2**63 - 1
"""Some nine million dollars a day: the most that fits a database's integer."""


def _context(rounding: str) -> Context:
    traps = [InvalidOperation, DivisionByZero, Overflow]
    return Context(prec=60, rounding=rounding, Emin=-999_999, Emax=999_999, traps=traps)


EXACT = _context(ROUND_HALF_EVEN)
"""All arithmetic with money uses koo's own contexts: the caller's may round to three digits, or trap."""
_up = _context(ROUND_CEILING)
_down = _context(ROUND_FLOOR)
_scale, _whole = _up.scaleb, _up.to_integral_value


def to_pico(amount_usd: Decimal) -> int:
    """An amount in pico-dollars, rounded up. Raises ValueError unless it is a number from 0 to 1,000,000."""
    try:
        pico = int(_whole(_scale(amount_usd, DIGITS)))
    except (InvalidOperation, OverflowError, ValueError) as error:
        raise ValueError(f"an amount of {amount_usd} USD is no money") from error
    if not 0 <= pico <= AMOUNT_PICO_MAX:
        raise ValueError(f"an amount of {amount_usd} USD does not fit: it must be between 0 and 1000000")
    return pico


def limit_to_pico(limit_usd: Decimal | None) -> int:
    """A day's limit in pico-dollars, rounded down; None, and what no total can reach, is the largest total."""
    if limit_usd is None or limit_usd > AMOUNT_PICO_MAX:
        return TOTAL_PICO_MAX
    return min(TOTAL_PICO_MAX, int(_down.to_integral_value(_down.scaleb(limit_usd, DIGITS))))


def from_pico(pico: int) -> Decimal:
    """Pico-dollars as USD, without trailing zeros."""
    usd = _up.normalize(_up.scaleb(Decimal(pico), -DIGITS))
    return usd if usd.as_tuple().exponent <= 0 else _up.quantize(usd, Decimal(1))  # type: ignore[operator]


def in_words(amount_usd: Decimal) -> str:
    """ "$0.05", "$12.30", "$0.0000125": at least cents, and no digit lost."""
    text = f"{amount_usd:f}"
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"
