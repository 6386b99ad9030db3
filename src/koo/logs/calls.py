"""Logs failed and refused calls: the first of a service and kind immediately, the following ones as a count.

In an outage every call fails, thousands per second, each for the same reason. The first is logged immediately with its
reason. Those that follow within a minute are counted, and the count is logged at the end of the minute with the last
reason. After a minute without failures a final line has the total and the times of the first and the last. The log thus
shows when the failures began and ended, and a flood of them takes one line a minute.

Successful calls do not pass through here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from koo.clock import Clock
from koo.errors import Kind, KooError, describe_s
from koo.failures import failure_of
from koo.logs.lines import Line, at, request_id, until

What = Literal["query", "stream", "operation", "scope", "transaction"]
"""What failed: a query of an AI service, a started stream, a user's own operation, a database scope or transaction."""
MANY: dict[What, str] = {
    "query": "queries",
    "stream": "streams",
    "operation": "operations",
    "scope": "scopes",
    "transaction": "transactions",
}

EVERY_S = 60.0
RUNS_MAX = 500
"""The maximum number of runs counted separately: names invented by callers must not fill the memory."""
OTHERS = "others"
REFUSED = frozenset({
    Kind.CIRCUIT_OPEN, Kind.RATE_LIMITED, Kind.BUDGET_EXCEEDED, Kind.SATURATED, Kind.COOLING_DOWN, Kind.KEY_REFUSED,
    Kind.DRAINING, Kind.STORE_UNAVAILABLE,
})  # fmt: skip
"""Kinds that count as refused even after an attempt, because koo refused the repeat. If no attempt was made, every kind
counts as refused."""

Key = tuple[str, Kind, bool]
"""The service, the kind, and whether the calls were refused."""


@dataclass(slots=True)
class Run:
    """A run of failures of one key, without a minute's pause: `more` since the last line, `total` in all.

    `began_wall` is the time of the first; `next_at` and `last_at` are monotonic. `reason` and `request` are from the
    last one.
    """

    what: What
    began_wall: float
    next_at: float
    last_at: float
    reason: str
    request: str
    more: int = 0
    total: int = 1


class CallLog:
    """The counter of one process. Call `tick` about once a second, and `close` at the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runs: dict[Key, Run] = {}

    def failed(
        self, service: str, what: What, error: BaseException, kind: Kind, attempts: int, then: str = ""
    ) -> None:
        """Log or count a call that finally failed with `error`, which means `kind`; `then` names the next step.

        `attempts`: how many reached the dependency; 0 if the call was refused.
        """
        key = service, kind, attempts == 0 or kind in REFUSED
        run = self._runs.get(key)
        if run is None:
            self._begin(key, what, error, attempts, then)
            return
        run.more += 1
        run.total += 1
        run.last_at = self._clock.monotonic()
        # Only its text is kept: a kept error would keep its traceback, and with it everything in the caller's frames.
        run.reason = error.reason if isinstance(error, KooError) else type(error).__name__
        run.request = request_id.get()

    def _begin(self, key: Key, what: What, error: BaseException, attempts: int, then: str) -> None:
        service, kind, refused = key
        if len(self._runs) >= RUNS_MAX and service != OTHERS:
            self.failed(OTHERS, what, error, kind, attempts, then)
            return
        now, wall, failure = self._clock.monotonic(), self._clock.wall(), failure_of(error, kind)
        request = request_id.get()
        self._runs[key] = Run(what, wall, now + EVERY_S, now, failure.sentence, request)
        known = error if isinstance(error, KooError) else None
        again_s = known.retry_after_s if known is not None else None
        again = until(wall, again_s)
        said = [
            failure.sentence,
            f"not repeated: {known.not_repeated}" if known is not None and known.not_repeated else "",
            "" if not attempts else "1 attempt" if attempts == 1 else f"{attempts} attempts",
            f"next attempt from {again}" if again else "",
            then,
        ]
        facts: dict[str, object] = {
            "what": "call_refused" if refused else "call_failed",
            "cause": failure.sentence,
            "kind": kind.value,
            "status": failure.status,
            "attempts": attempts,
            "until": at(wall + again_s) if again and again_s is not None else None,
        }
        Line(logging.WARNING, service, _words(what, kind, refused), said, facts).write(request)

    def tick(self) -> None:
        """Log the counts whose minute is over."""
        now = self._clock.monotonic()
        for key, run in tuple(self._runs.items()):
            if now < run.next_at:
                continue
            if run.more:
                self._count(key, run, EVERY_S)
                run.next_at = now + EVERY_S
            else:
                del self._runs[key]
                self._end(key, run)

    def close(self) -> None:
        """Log what was counted since the last line."""
        now, runs = self._clock.monotonic(), self._runs
        self._runs = {}
        for key, run in runs.items():
            if run.more:
                self._count(key, run, max(EVERY_S - (run.next_at - now), 1.0))

    def _count(self, key: Key, run: Run, within_s: float) -> None:
        (service, kind, refused), reason = key, run.reason
        said = [f"{run.more} more in the last {describe_s(within_s)}", f"the last: {reason}"]
        facts: dict[str, object] = {
            "what": "calls_refused" if refused else "calls_failed",
            "cause": reason,
            "kind": kind.value,
            "count": run.more,
            "since": at(run.began_wall),
        }
        words = _words(MANY[run.what], kind, refused)
        Line(logging.WARNING, service, words, said, facts).write(run.request)
        run.more = 0

    def _end(self, key: Key, run: Run) -> None:
        if run.total == 1:
            return  # its one line is complete
        service, kind, refused = key
        last_wall = self._clock.wall() - (self._clock.monotonic() - run.last_at)
        began, ended = at(run.began_wall), at(last_wall)
        said = [f"none for {describe_s(EVERY_S)}", f"{run.total} in all, from {began} until {ended}"]
        facts: dict[str, object] = {
            "what": "calls_pass",
            "kind": kind.value,
            "count": run.total,
            "since": began,
            "until": ended,
        }
        Line(logging.INFO, service, _words(MANY[run.what], kind, refused), said, facts).write("")


def _words(what: str, kind: Kind, refused: bool) -> str:
    return f"{what} {'refused' if refused else 'failed'} ({kind})"
