"""How an option is declared, with its meaning, range and reason, and how its value is checked on creation."""

from __future__ import annotations

from dataclasses import Field, field, fields
from decimal import Decimal
from typing import Any, Self, TypeVar, cast

from koo.errors import ConfigurationError
from koo.hidden import hide

T = TypeVar("T")
ATTEMPT_S_MAX = 60.0
"""Longest default timeout of an attempt: half of a query's default timeout, which leaves room for a second attempt."""
BOUNDS = ("at_least", "at_most", "above")
"""The ends of a range, as an option's metadata names them."""


class Nothing(dict[str, Any]):
    """An empty mapping for the default of a frozen option. It is hashable, because it can never be filled."""

    __slots__ = ()

    def __setitem__(self, name: str, value: object) -> None:
        raise TypeError("this mapping must stay empty")

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
    """A dataclass field with its meaning, unit, range (None: no bound) and the reason for its default.

    `none` says what None means if it is a value that a user may set ("no limit"). A secret is left out of every `repr`,
    and its value is hidden from tracebacks (`koo.hidden`).
    """
    about = {
        "meaning": meaning,
        "why": why,
        "unit": unit,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "none": none,
        "secret": secret,
    }
    made: T = field(default=default, metadata=about, repr=not secret)
    return made


def is_inside(about: Any, value: float | Decimal) -> bool:
    """Whether a number is in an option's range. NaN is in no range."""
    try:
        number = float(value)
    except (ValueError, OverflowError):  # a signalling NaN, or an integer too large for a float
        return False
    low, high, above = about.get("at_least"), about.get("at_most"), about.get("above")
    # NaN fails every comparison. The last line refuses it even if there is no bound to compare with.
    return (
        (low is None or number >= low)
        and (high is None or number <= high)
        and (above is None or number > above)
        and number == number
    )


def fault_in(one: Field[Any], value: object) -> str:
    """What is wrong with an option's value, as a predicate ("is 0; expected 1 to 100"); empty if nothing."""
    # A string, say, would otherwise fail in the first comparison that uses the option, in the middle of a call.
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return f"must be a number, not {type(value).__name__}"
    if not is_inside(one.metadata, value):
        return f"is {value}; expected {allowed(one.metadata)}"
    # An infinite limit of requests, say, could not be written to the state store, and would stop it for all services.
    if str(one.type).startswith("int") and value % 1 != 0:
        none = one.metadata.get("none")
        return f"must be a whole number, not {value}" + (f" (None: {none})" if none else "")
    return ""


def allowed(about: Any) -> str:
    """An option's range as text: "0.05 to 1", "at least 1", "above 0"."""
    low, high, above = about.get("at_least"), about.get("at_most"), about.get("above")
    if low is not None and high is not None:
        return f"{_plain(low)} to {_plain(high)}"
    if above is not None:
        return f"above {_plain(above)}" + (f", at most {_plain(high)}" if high is not None else "")
    if low is not None:
        return f"at least {_plain(low)}"
    return f"at most {_plain(high)}" if high is not None else "any"


def _plain(bound: float | Decimal) -> str:
    return f"{bound:.15g}"  # `:g` alone writes a million as 1e+06


class Checked:
    """Base of all options: checks each number against its range on creation."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if value and one.metadata.get("secret"):
                object.__setattr__(self, one.name, hide(value))
            if not _is_bounded(one.metadata) or (value is None and "None" in str(one.type)):
                continue
            if fault := fault_in(one, value):
                raise ConfigurationError("", f"{type(self).__name__}.{one.name} {fault}")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: it never changes, and a deep copy would contain masks in place of the secrets."""
        return self


def not_set() -> float:
    """The default of a time that is derived from another one; see `Timed`."""
    return cast("float", None)


class Timed(Checked):
    """Base of options with three times: the timeout of a whole call, that of an attempt, and the slow-call time.

    A time that is not set is derived: an attempt has half of the call's timeout, at most 60 s, and is slow after half
    of its own. Raises `ConfigurationError` if an attempt's timeout exceeds the call's.
    """

    __slots__ = ()

    timeout_s: float
    attempt_timeout_s: float
    slow_s: float

    def __post_init__(self) -> None:
        attempt_s, slow_s = following_s(self.timeout_s, self.attempt_timeout_s, self.slow_s)
        object.__setattr__(self, "attempt_timeout_s", attempt_s)
        object.__setattr__(self, "slow_s", slow_s)
        super().__post_init__()
        if self.attempt_timeout_s > self.timeout_s:
            what = f"{type(self).__name__}.attempt_timeout_s is {self.attempt_timeout_s:g}"
            limit = f"at most {self.timeout_s:g}, the timeout of the whole call (timeout_s)"
            raise ConfigurationError("", f"{what}; expected {limit}")

    def check_slow(self) -> None:
        """Raise `ConfigurationError` if no call could ever be slow, because its attempt ends before that."""
        if self.slow_s > self.attempt_timeout_s:
            limit = f"at most {self.attempt_timeout_s:g}, the timeout of an attempt (attempt_timeout_s)"
            what = f"{type(self).__name__}.slow_s is {self.slow_s:g}"
            raise ConfigurationError("", f"{what}; expected {limit}")


def following_s(timeout_s: Any, attempt_s: Any, slow_s: Any) -> tuple[Any, Any]:
    """The attempt timeout and the slow-call time, derived if None. Invalid values pass: their own check refuses
    them."""
    if attempt_s is None:
        attempt_s = min(ATTEMPT_S_MAX, _half(timeout_s))
    return attempt_s, _half(attempt_s) if slow_s is None else slow_s


def _half(value: Any) -> float:
    try:
        return float(value) / 2
    except (TypeError, ValueError, OverflowError):
        return ATTEMPT_S_MAX / 2  # the value's own check refuses it


def _is_bounded(about: Any) -> bool:
    return any(about.get(bound) is not None for bound in BOUNDS)
