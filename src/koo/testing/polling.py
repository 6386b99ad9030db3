"""Polling: waiting for a change in another thread, process or server that cannot set an event."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

EVERY_S = 0.002
WITHIN_S = 30.0
"""Only a failing test waits this long. It is generous, so that a busy machine does not fail a test."""


async def until(condition: Callable[[], T | Awaitable[T]], within_s: float = WITHIN_S) -> T:
    """Call `condition` until its result is true, and return that result. Raises AssertionError after `within_s`."""
    ends_at = time.monotonic() + within_s  # real time: skipped time must not end the wait
    while True:
        found = condition()
        result = await found if inspect.isawaitable(found) else found
        if result:
            return result
        assert time.monotonic() < ends_at, _never(condition, result, within_s)
        await asyncio.sleep(EVERY_S)


def wait_until(condition: Callable[[], T], within_s: float = WITHIN_S) -> T:
    """Like `until`, for a test without an event loop."""
    ends_at = time.monotonic() + within_s
    while not (result := condition()):
        assert time.monotonic() < ends_at, _never(condition, result, within_s)
        time.sleep(EVERY_S)
    return result


def _never(condition: Callable[[], object], last: object, within_s: float) -> str:
    try:
        words = inspect.getsource(condition).strip()
    except (OSError, TypeError):
        words = repr(condition)
    return f"this did not become true within {within_s:g} s; its last value was {last!r}: {words}"
