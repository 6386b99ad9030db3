"""What a fake saw that its test did not mean: requests it refused or failed on, steps that were left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from koo.testing.providers.script import Step, brief
from koo.testing.providers.wire import ReceivedRequest, Reply

SHOWN_MAX = 5


class FakeMisused(AssertionError):
    """A test that ended well although its fake was used in a way that was not set up; see `strict`."""


class Diary:
    """`refused`: requests that the real server would refuse in any state. `failed`: errors of the fake itself."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.failed: list[str] = []

    def note_refusal(self, request: ReceivedRequest, reply: Reply) -> None:
        """It was refused before the script was looked at: its key, path, fields or model are wrong."""
        words = reply.body.decode("utf-8", "replace")
        self.refused.append(f"it refused {request.method} {request.path}: {reply.status} {words[:300]}")

    def note_failure(self, request: ReceivedRequest | None, error: Exception) -> None:
        """The fake itself raised an error, and closed the connection."""
        what = f"{request.method} {request.path}" if request is not None else "what came"
        self.failed.append(f"it failed on {what}: {type(error).__name__}: {error}")

    def clear(self) -> None:
        """What was seen was meant."""
        self.refused.clear()
        self.failed.clear()

    def complaints(self, steps: Collection[Step]) -> list[str]:
        """One sentence for each thing that was not meant."""
        left = Counter(map(brief, steps))
        unused = [f"{count} step(s) of its script were not used: {step}" for step, count in left.items()]
        return [*unused[:SHOWN_MAX], *self.failed[:SHOWN_MAX], *self.refused[:SHOWN_MAX]]


def complain(complaints: Sequence[str], error: BaseException | None) -> None:
    """At the end of a test. Raises `FakeMisused`, or adds the sentences to `error` as notes.

    `error` is what the test failed with: replaced by another error it would be harder to find.
    """
    __tracebackhide__ = True
    if error is not None:
        for one in complaints:
            error.add_note(one)
    elif complaints:
        raise FakeMisused(f"{'; '.join(complaints)}; strict=False allows it")
