"""Unknown tokens, counted by address. A client that tries many gets 429 for a while.

A valid token always passes, because others may share the guesser's address. The count is not what stops guessing (a
token of 16 characters does); it keeps logs readable and shows where the guesses come from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from koo.web.addresses import client_of

GUESSES_MAX = 10
WINDOW_S = 60.0
ADDRESSES_MAX = 1024


class Guesses:
    """For each address: how many guesses in the current window, and when the window began."""

    again_in_s = round(WINDOW_S)

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def are_too_many(self, address: str) -> bool:
        """Count a guess and return whether it is one too many."""
        now, address = self._monotonic(), client_of(address)
        began, count = self._windows.pop(address, (now, 0))
        if now - began >= WINDOW_S:
            began, count = now, 0
        self._windows[address] = (began, count + 1)
        while len(self._windows) > ADDRESSES_MAX:
            self._windows.popitem(last=False)
        return count + 1 > GUESSES_MAX
