"""How an option is declared, with its meaning, range and reason, and how its value is checked when it is made."""

from __future__ import annotations

from dataclasses import field, fields
from decimal import Decimal
from typing import Any, TypeVar

from koo.errors import ConfigurationError

T = TypeVar("T")
BOUNDS = ("at_least", "at_most", "above")
"""The ends of a range, as an option's metadata names them."""


class Nothing(dict[str, Any]):
    """An empty mapping that may be the default of a frozen option: one that can be hashed, because nothing fills it."""

    __slots__ = ()

    def __setitem__(self, name: str, value: object) -> None:
        raise TypeError("it stays empty")

    def __hash__(self) -> int:  # type: ignore[override]
        return 0


def option(
    default: T,
    meaning: str,
    why: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    none: str = "",
    secret: bool = False,
) -> T:
    """A dataclass field with its meaning, its unit, its range (None: no bound) and the reason for its default.

    `none` says what None means where it is a value to choose ("no limit"); a secret is left out of every `repr`.
    """
    about = {
        "meaning": meaning,
        "why": why,
        "unit": unit,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "none": none,
    }
    made: T = field(default=default, metadata=about, repr=not secret)
    return made


def is_inside(about: Any, value: float | Decimal) -> bool:
    """Whether a number is in an option's range; NaN is in none."""
    try:
        number = float(value)
    except (ValueError, OverflowError):  # a signalling NaN; an integer larger than any float
        return False
    low, high, above = about.get("at_least"), about.get("at_most"), about.get("above")
    # NaN fails every comparison: the last line refuses it where there is no bound to compare with.
    return (
        (low is None or number >= low)
        and (high is None or number <= high)
        and (above is None or number > above)
        and number == number
    )


def allowed(about: Any) -> str:
    """An option's range as words: "0.05 to 1", "at least 1", "above 0"."""
    low, high, above = about.get("at_least"), about.get("at_most"), about.get("above")
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if above is not None:
        return f"above {above:g}" + (f", at most {high:g}" if high is not None else "")
    if low is not None:
        return f"at least {low:g}"
    return f"at most {high:g}" if high is not None else "any"


class Checked:
    """Base of all options: checks each number against its range when it is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if not _is_bounded(one.metadata) or (value is None and "None" in str(one.type)):
                continue
            # What is no number would pass here and fail in the first comparison, in the middle of a call.
            if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
                what = f"{type(self).__name__}.{one.name}"
                raise ConfigurationError("", f"{what} must be a number, not {type(value).__name__}")
            if not is_inside(one.metadata, value):
                what = f"{type(self).__name__}.{one.name}"
                raise ConfigurationError("", f"{what} is {value}; allowed is {allowed(one.metadata)}")


def _is_bounded(about: Any) -> bool:
    return any(about.get(bound) is not None for bound in BOUNDS)
