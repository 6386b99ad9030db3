"""Numbers and times for people: the rules of the page (`web/page/words/`), in Python.

A number reads the same on the page and on the terminal. `tests/words.json` contains examples that tests run through
both, so a rule that changes on one side fails until the other follows. Times differ on purpose: the page uses the
browser's time zone, a terminal shows UTC with its zone, as logs do.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_MIN_PER_DAY = 24 * 60


def when(iso: str) -> str:
    """Format a time of the server to the second, in UTC: "2026-11-28T14:07:06Z". Anything else is unchanged."""
    seconds = seconds_of(iso)
    return iso if seconds is None else _utc(seconds)


def moment(at: float, now: float) -> str:
    """ "2026-11-28T14:07:06Z (in 42 s)", from seconds since 1970."""
    return f"{_utc(at)} ({until(at, now)})"


def moment_of(at: float) -> str:
    """ "2026-11-28T14:07:06Z", from seconds since 1970."""
    return _utc(at)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(iso: str | None) -> float | None:
    """Convert a time of the server to seconds since 1970; None for None or anything that is not a time."""
    try:
        return None if iso is None else datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return None


def plainly(sentence: str, now: float) -> str:
    """Return a sentence of the server with its times formatted for people; a time that is over has no distance."""
    return _ISO.sub(lambda found: _time_and_distance(found[0], now), sentence)


def in_utc(sentence: str) -> str:
    """Return a sentence about the past with its times to the second."""
    return _ISO.sub(lambda found: when(found[0]), sentence)


def time_in(sentence: str) -> float | None:
    """Return the first time in a sentence."""
    found = _ISO.search(sentence)
    return None if found is None else seconds_of(found[0])


def _time_and_distance(iso: str, now: float) -> str:
    seconds = seconds_of(iso)
    if seconds is None:
        return iso
    return moment(seconds, now) if seconds > now else _utc(seconds)


def span(seconds: float) -> str:
    """Format a duration in its two largest units: "42 s", "6 min", "3 h 5 min", "2 d 4 h"."""
    whole = max(0, _half_up(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = _half_up(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < _MIN_PER_DAY:
        return _two(minutes // 60, "h", minutes % 60, "min")
    hours = _half_up(minutes / 60)
    return _two(hours // 24, "d", hours % 24, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"


def until(at: float, now: float) -> str:
    """ "in 42 s", or "now" once it has passed. Rounded up, so that it never shows 0 while there is time left."""
    return "now" if at <= now else f"in {span(math.ceil(at - now))}"


def latency(seconds: float) -> str:
    """ "1.8 ms", "240 ms", "2.4 s"."""
    if seconds >= 99.95:
        return span(seconds)
    if seconds >= 0.9995:
        return f"{_fixed(seconds, 1)} s"
    ms = seconds * 1000
    return f"{_half_up(ms)} ms" if ms >= 9.95 else f"{_fixed(ms, 1)} ms"


def percent(ratio: float) -> str:
    """ "98.4 %". Never rounded up: 100 % means that nothing failed."""
    tenths = math.floor(ratio * 1000 + 1e-9) / 10
    return f"{int(tenths)} %" if tenths.is_integer() else f"{tenths:.1f} %"


def count(number: float) -> str:
    """ "1,200"."""
    return f"{_half_up(number):,}"


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 alert", "2 alerts"."""
    return f"{count(number)} {one if number == 1 else many or f'{one}s'}"


def usd(exact: str) -> str:
    """Format money, such as "$1.2043". An amount too small for six digits is shown as more than zero."""
    try:
        amount = float(exact)
    except ValueError:
        return exact
    if not math.isfinite(amount):
        return exact
    size = abs(amount)
    sign = "-" if amount < 0 else ""
    if 0 < size < 0.000001:
        return f"{sign}<$0.000001"
    whole, _, cents = _fixed(size, 6 if 0 < size < 0.01 else 4).partition(".")
    return f"{sign}${int(whole):,}.{cents.rstrip('0'):0<2}"


def _fixed(number: float, digits: int) -> str:
    """Like JavaScript's `toFixed`: rounds half up, while Python's own formatting rounds half to even."""
    return f"{Decimal(number).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):f}"


_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:min|[smhdw])\s*)+", re.IGNORECASE)
_PART = re.compile(r"(\d+(?:\.\d+)?)(min|[smhdw])", re.IGNORECASE)


def duration(text: str) -> float | None:
    """Parse "90s", "30m", "2h", "1d" or "1h30m" to seconds; None for anything else, even a number without a unit."""
    if _DURATION.fullmatch(text.strip()) is None:
        return None
    return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in _PART.findall(text))


def _half_up(number: float) -> int:
    """Like JavaScript's `Math.round`."""
    return math.floor(number + 0.5)
