"""Numbers and times as people read them: the rules of the page (`web/page/words/`), in Python.

A number reads the same in the page and in the terminal. `tests/words.json` holds examples that tests run through both,
so a rule that changes on one side fails until the other follows. Times differ on purpose: the page shows those of the
browser's clock, a terminal shows UTC with its zone, as logs do.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_MIN_PER_DAY = 24 * 60


def when(iso: str) -> str:
    """A time of the server's to the second, in UTC: "2026-11-28T14:07:06Z". What is not a time stays as it is."""
    seconds = seconds_of(iso)
    return iso if seconds is None else _utc(seconds)


def moment(at: float, now: float) -> str:
    """ "2026-11-28T14:07:06Z (in 42 s)", of seconds since 1970."""
    return f"{_utc(at)} ({until(at, now)})"


def moment_of(at: float) -> str:
    """ "2026-11-28T14:07:06Z", of seconds since 1970."""
    return _utc(at)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(iso: str | None) -> float | None:
    """A time of the server's as seconds since 1970; None for none, and for what is not a time."""
    try:
        return None if iso is None else datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return None


def plainly(sentence: str, now: float) -> str:
    """A sentence of the server's with its times as people read them."""
    return _ISO.sub(lambda found: _time_and_distance(found[0], now), sentence)


def time_in(sentence: str) -> float | None:
    """The first time that a sentence names."""
    found = _ISO.search(sentence)
    return None if found is None else seconds_of(found[0])


def _time_and_distance(iso: str, now: float) -> str:
    seconds = seconds_of(iso)
    return iso if seconds is None else moment(seconds, now)


def span(seconds: float) -> str:
    """How long, in the two largest units: "42 s", "6 min", "3 h 5 min", "2 d 4 h"."""
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
    """ "in 42 s"; "now" once it has come. Rounded up, so that it never says 0 while one has to wait."""
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
    """Money for the eye, "$1.2043"; what is too small for six digits is said to be more than nothing."""
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
    """As JavaScript's `toFixed`: a tie goes up, where Python's own formatting goes to the even digit."""
    return f"{Decimal(number).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP):f}"


_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:min|[smhdw])\s*)+", re.IGNORECASE)
_PART = re.compile(r"(\d+(?:\.\d+)?)(min|[smhdw])", re.IGNORECASE)


def duration(text: str) -> float | None:
    """Seconds of "90s", "30m", "2h", "1d", "1h30m"; None for anything else, a number without its unit too."""
    if _DURATION.fullmatch(text.strip()) is None:
        return None
    return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in _PART.findall(text))


def _half_up(number: float) -> int:
    """As JavaScript's `Math.round`."""
    return math.floor(number + 0.5)
