"""How long to pause before the next attempt."""

from __future__ import annotations

from collections.abc import Callable

from koo.options import RetryOptions

EXPONENT_MAX = 30
"""2.0 ** 2000 overflows, and elsewhere an overflow has become a negative sleep."""
HINT_SLACK = 0.05
"""A server's hint is lengthened by up to this share, so that its clients do not all come back at once.

A twentieth: of the 20 s that a provider typically asks for, its clients then return over a second, and none of them
waits noticeably longer than it was asked to."""


def pause_s(options: RetryOptions, attempt: int, draw: Callable[[], float], hint_s: float = 0.0) -> float:
    """Full jitter before the attempt that follows `attempt` (1, 2, ...); a server's hint is the least."""
    exponent = min(attempt - 1, EXPONENT_MAX)
    jittered_s = draw() * min(options.cap_s, options.base_s * options.multiplier**exponent)
    return max(jittered_s, hint_s * (1.0 + HINT_SLACK * draw())) if hint_s > 0 else jittered_s
