"""A limit on the memory for all large responses that are still arriving in this process.

Each response has its own limit as well, and small ones are not counted. A complete response is decoded immediately, one
after another, so only incomplete ones add up: a faulty server could send two hundred of several MiB each at the same
time.
"""

from __future__ import annotations

from koo.http.connector import ShortHere

ANSWERS_BYTES_MAX = 256 * 1024 * 1024
"""Five hundred of the longest responses of today's models (half a megabyte) at the same time."""
SMALL_BYTES = 64 * 1024
"""Responses up to this size are not counted: ordinary ones are smaller, and even a thousand of them fit into 64 MiB."""


class Coming:
    """Counts the bytes of the large responses that are still arriving."""

    def __init__(self, most: int = ANSWERS_BYTES_MAX) -> None:
        self.most = most
        self.used = 0

    def keep(self, kept: int, size: int) -> int:
        """Count a response of which `size` bytes have arrived and `kept` are counted; return the new `kept`.

        Raises `ShortHere` if all large responses together pass the limit.
        """
        # This is called for each portion, with the total so far. Only what this response adds to its own earlier count
        # is new.
        if size <= SMALL_BYTES:
            return kept
        # The response is refused as this process's own shortage: the server did nothing wrong, and its breaker must not
        # count it.
        if self.used + size - kept > self.most:
            mib = self.most // 2**20
            raise ShortHere(
                "answer", f"large responses in progress already use the {mib} MiB reserved for them"
            )
        self.used += size - kept
        return size


COMING = Coming()
"""Shared by all clients in this process."""
