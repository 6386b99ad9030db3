"""What a test probably did not intend: requests that a fake refused or failed on, and unused steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from koo.testing.providers.script import Step, Stream, brief
from koo.testing.providers.wire import ReceivedRequest, Reply

SHOWN_MAX = 5


class FakeMisused(AssertionError):
    """A test passed although it used its fake in a way that it had not set up; see `strict`."""


class Diary:
    """`refused`: requests that the real server would always refuse. `failed`: errors of the fake itself, and cuts after
    the end of the answer. It also has the faults of streams that no streamed request has met."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.failed: list[str] = []
        # By id, because a step cannot be hashed. The step is kept too: if it were freed, another step could get its id.
        self._streamed: dict[int, Stream] = {}
        self._whole: dict[int, tuple[Stream, str]] = {}

    def note_refusal(self, request: ReceivedRequest, reply: Reply) -> None:
        """Record a request that was refused before the script was used: its key, path, fields or model are wrong."""
        words = reply.body.decode("utf-8", "replace")
        self.refused.append(f"it refused {request.method} {request.path}: {reply.status} {words[:300]}")

    def note_failure(self, request: ReceivedRequest | None, error: Exception) -> None:
        """Record an error that the fake itself raised; the connection is closed."""
        what = f"{request.method} {request.path}" if request is not None else "an unreadable request"
        self.failed.append(f"it failed on {what}: {type(error).__name__}: {error}")

    def note_no_effect(self, request: ReceivedRequest, what: str) -> None:
        """Record a fault that did not occur, because the response was complete before it."""
        self.failed.append(
            f"{what} had no effect: {request.method} {request.path} received a complete answer"
        )

    def note_stream(self, step: Stream) -> None:
        """Record that a streamed request met the faults of this step."""
        self._streamed[id(step)] = step

    def note_whole(self, request: ReceivedRequest, step: Stream) -> None:
        """Record that a request without streaming received the step's whole answer, so its faults could not occur."""
        # One step may serve both kinds of requests, so only a step that no stream met is a complaint.
        for name, place in step.faults.items():
            words = f"{name}={place} on a query that is not streamed had no effect"
            self._whole[id(step)] = (
                step,
                f"{words}: {request.method} {request.path} received a complete answer",
            )

    def clear(self) -> None:
        """Forget everything recorded, because the test intended it."""
        self.refused.clear()
        self.failed.clear()
        self._whole.clear()

    def complaints(self, steps: Collection[Step]) -> list[str]:
        """One sentence for each entry."""
        left = Counter(map(brief, steps))
        unused = [f"{count} step(s) of its script were not used: {step}" for step, count in left.items()]
        unmet = [words for number, (_, words) in self._whole.items() if number not in self._streamed]
        return [*unused[:SHOWN_MAX], *unmet[:SHOWN_MAX], *self.failed[:SHOWN_MAX], *self.refused[:SHOWN_MAX]]


def complain(complaints: Sequence[str], error: BaseException | None) -> None:
    """Report complaints at the end of a test. Raises `FakeMisused`, or adds notes to the test's own `error`."""
    # The test's own error stays the main one: if another error replaced it, the failure would be harder to understand.
    __tracebackhide__ = True
    if error is not None:
        for one in complaints:
            error.add_note(one)
    elif complaints:
        raise FakeMisused(f"{'; '.join(complaints)}; strict=False allows it")
