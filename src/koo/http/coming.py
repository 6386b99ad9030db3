"""The memory of large answers that are still arriving: bounded over all of them, in this process.

Each answer has a bound of its own, and small ones are not counted. A complete answer is decoded at once, one after
another, so what counts is what is incomplete: two hundred answers of some MiB each, from a faulty server.
"""

from __future__ import annotations

from koo.http.connector import ShortHere

ANSWERS_BYTES_MAX = 256 * 1024 * 1024
"""Five hundred of the longest answers that today's models write, at the same moment."""
SMALL_BYTES = 64 * 1024


class Coming:
    """Bytes of the large answers that are coming in."""

    def __init__(self, most: int = ANSWERS_BYTES_MAX) -> None:
        self.most = most
        self.used = 0

    def keep(self, kept: int, size: int) -> int:
        """Of an answer `size` bytes have come, and `kept` are counted; returns how many are now. Raises `ShortHere`."""
        if size <= SMALL_BYTES:
            return kept
        if self.used + size - kept > self.most:
            mib = self.most // 2**20
            raise ShortHere(
                "answer", f"large answers in progress already fill the {mib} MiB reserved for them"
            )
        self.used += size - kept
        return size


COMING = Coming()
"""Of this process, over all its clients."""
