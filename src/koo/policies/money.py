"""Money: USD as `Decimal` for people, whole pico-dollars for counting.

A price of $0.15 per million tokens is 150,000 pico-dollars per token. So integers are exact, and they are the same in
every database (SQLite has no decimal type). Fractions of a pico-dollar are rounded up for amounts and down for limits,
so that rounding never lets spending pass a limit.
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
"""A million dollars for one call. A larger amount must be a mistake in a price."""
TOTAL_PICO_MAX = 2**63 - 1
"""About nine million dollars a day: the largest integer of a database."""


def _context(rounding: str) -> Context:
    traps = [InvalidOperation, DivisionByZero, Overflow]
    return Context(prec=60, rounding=rounding, Emin=-999_999, Emax=999_999, traps=traps)


EXACT = _context(ROUND_HALF_EVEN)
"""All arithmetic with money uses koo's own contexts. A program may have set its context to three digits, or to raise on
rounding."""
_up = _context(ROUND_CEILING)
_down = _context(ROUND_FLOOR)
_scale, _whole = _up.scaleb, _up.to_integral_value


def to_pico(amount_usd: Decimal) -> int:
    """An amount in pico-dollars, rounded up. Raises ValueError unless it is a number from 0 to 1,000,000."""
    try:
        pico = int(_whole(_scale(amount_usd, DIGITS)))
    except (InvalidOperation, OverflowError, ValueError) as error:
        raise ValueError(f"an amount of {amount_usd} USD is not a number of dollars") from error
    if not 0 <= pico <= AMOUNT_PICO_MAX:
        raise ValueError(f"an amount of {amount_usd} USD does not fit: it must be between 0 and 1000000")
    return pico


def limit_to_pico(limit_usd: Decimal | None) -> int:
    """A day's limit in pico-dollars, rounded down. None, and a limit beyond the largest total, become that total."""
    if limit_usd is None or limit_usd > AMOUNT_PICO_MAX:
        return TOTAL_PICO_MAX
    return min(TOTAL_PICO_MAX, int(_down.to_integral_value(_down.scaleb(limit_usd, DIGITS))))


def from_pico(pico: int) -> Decimal:
    """Pico-dollars as USD, without trailing zeros."""
    # `normalize` removes zeros before the decimal point too: it turns 100 into 1E+2, which `quantize` undoes.
    usd = _up.normalize(_up.scaleb(Decimal(pico), -DIGITS))
    return usd if usd.as_tuple().exponent <= 0 else _up.quantize(usd, Decimal(1))  # type: ignore[operator]


def in_words(amount_usd: Decimal) -> str:
    """ "$0.05", "$12.30", "$0.0000125": at least two decimal places, and no digit is lost."""
    text = f"{amount_usd:f}"
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"
