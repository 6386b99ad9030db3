"""How long to pause before the next attempt."""

from __future__ import annotations

from collections.abc import Callable

from koo.options import RetryOptions

EXPONENT_MAX = 30
"""2.0 ** 2000 raises OverflowError, and in other libraries such an overflow has turned into a negative sleep."""
HINT_SLACK = 0.05
"""A server's hint is lengthened by up to this share, so that its clients do not all return at once.

A provider typically asks for 20 s. With a twentieth of that, its clients return spread over one second, and none waits
noticeably longer than it was asked to."""


def pause_s(options: RetryOptions, attempt: int, draw: Callable[[], float], hint_s: float = 0.0) -> float:
    """The pause after attempt number `attempt` (1, 2, ...): full jitter, but at least the server's hint."""
    exponent = min(attempt - 1, EXPONENT_MAX)
    jittered_s = draw() * min(options.cap_s, options.base_s * options.multiplier**exponent)
    return max(jittered_s, hint_s * (1.0 + HINT_SLACK * draw())) if hint_s > 0 else jittered_s
