"""Finds what is new in repeated responses of a server: each thing is reported once, whatever happens in between.

There is no log to follow across processes. So `koo tail` requests the past from a little before the time of its last
read, because another process's records may arrive late. It recognises what it has already shown: alerts and requests
by id, marks by their whole content, calls by the span that was counted. Each source keeps its own position, so a
source that cannot be read for a while loses nothing. All times are by the server's clock.
"""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from koo.cli.words import counted, latency, seconds_of, span, usd
from koo.monitoring.history_shapes import History, HistoryMark
from koo.monitoring.shapes import Alert
from koo.monitoring.spend_shapes import BookedCall

LATE_S = 60.0
"""How late the records of another process may arrive."""
SUMMED_S = 30.0
"""A component's failed and refused calls: the first span that has some is reported immediately, then a sum at this
interval.
"""
COUNTS = ("failed", "refused", "throttled")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened, with its wall-clock time. `word`: its severity or type; `facts`: for programs."""

    at: float
    word: str
    component: str
    text: str
    facts: Mapping[str, object] = field(default_factory=dict)
    is_error: bool = False


class Known:
    """What has already been seen. Nothing before `start` is new."""

    def __init__(self, start: float = -math.inf) -> None:
        self._start = start
        self._seen_at: dict[Hashable, float] = {}

    def is_new(self, key: Hashable, at: float) -> bool:
        """Return whether this key is seen for the first time."""
        if at < self._start or key in self._seen_at:
            return False
        self._seen_at[key] = at
        return True

    def keep(self, ids: Container[str]) -> None:
        """Forget everything with other ids: the server no longer returns it."""
        self._seen_at = {
            key: at for key, at in self._seen_at.items() if isinstance(key, tuple) and key[0] in ids
        }

    def forget(self, before: float) -> None:
        """Forget what happened earlier; from now on it is not new."""
        # A response may still contain it: a quiet server's last fifty requests go back for days. Without the new start,
        # each read would report them again.
        self._start = max(self._start, before)
        self._seen_at = {key: at for key, at in self._seen_at.items() if at >= before}


class Marks:
    """Opened breakers, operators' acts and deployments."""

    def __init__(self, start: float) -> None:
        self._known = Known(start)

    def take(self, marks: Iterable[HistoryMark]) -> Iterator[Line]:
        """Yield the new ones. Alerts are skipped: they come from their own history, where they have an id."""
        for mark in marks:
            at = seconds_of(mark["at"]) or 0.0
            key = mark["at"], mark["kind"], mark["component"], mark["text"]
            if mark["kind"] != "alert" and self._known.is_new(key, at):
                is_error = mark["kind"] == "circuit" and not mark["text"].startswith("closed")
                yield Line(at, mark["kind"], mark["component"], mark["text"], is_error=is_error)

    def forget(self, before: float) -> None:
        """See `Known.forget`."""
        self._known.forget(before)


class Alerts:
    """Alerts that fire, are acknowledged, and end. Those that are already firing at the start are not reported."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._known = Known()
        self._is_first = True

    def take(self, episodes: Sequence[Alert]) -> Iterator[Line]:
        """Yield what is new. `episodes`: all active alerts, and those that ended recently."""
        for alert in episodes:
            yield from self._of(alert)
        self._is_first = False
        self._known.keep({alert["id"] for alert in episodes})

    def _of(self, alert: Alert) -> Iterator[Line]:
        began, ended = seconds_of(alert["timestamp"]) or 0.0, seconds_of(alert["ended_at"])
        facts = {"id": alert["id"], "alert": alert["kind"]}
        is_error = alert["type"] != "info"
        # An alert may begin before the start but fire after it: then it is missing from the first response, and is new
        # in a later one. So an earlier beginning is only ignored in the first response.
        if self._is_new(alert, "began", began):
            yield Line(began, alert["type"], alert["component"], alert["message"], facts, is_error)
        taken = alert.get("acknowledged")
        if taken and self._is_new(alert, f"acknowledged {taken['at']}", at := seconds_of(taken["at"]) or 0.0):
            text = f"{taken['by']} is working on it: {alert['message']}"
            yield Line(at, "act", alert["component"], text, facts)
        if ended is not None and self._is_new(alert, "ended", ended):
            text = f"lasted {span(ended - began)}: {alert['message']}"
            yield Line(ended, "ended", alert["component"], text, facts)

    def _is_new(self, alert: Alert, what: str, at: float) -> bool:
        return self._known.is_new((alert["id"], what), at) and (at >= self._start or not self._is_first)


class Requests:
    """Calls that cost something, as they are recorded."""

    def __init__(self, start: float) -> None:
        self._known = Known(start)

    def take(self, requests: Iterable[BookedCall]) -> Iterator[Line]:
        """Yield the new ones."""
        for one in requests:
            at = seconds_of(one["at"]) or 0.0
            if self._known.is_new(one["id"], at):
                is_error = one.get("outcome") == "unfinished"
                yield Line(
                    at, "request", f"ai:{one['service']}", request_words(one), dict(one), is_error=is_error
                )

    def forget(self, before: float) -> None:
        """See `Known.forget`."""
        self._known.forget(before)


def request_words(one: BookedCall) -> str:
    """ "claude-x: answered, 14 → 5 tokens, $0.000082, 1.2 s, tag shop, request 01J…"."""
    read = one["input_tokens"] + one["cache_read_tokens"] + one["cache_write_tokens"]
    tried = one.get("attempt") or 1
    took = one.get("latency")  # an older server sends neither this nor the outcome
    words = [
        one.get("outcome", ""),
        f"attempt {tried}" if tried > 1 else "",
        f"{read:,} → {one['output_tokens']:,} tokens",
        usd(one["cost"]),
        "" if took is None else latency(took),
        "an upper bound" if one["estimated"] else "",
        f"tag {one['tag']}" if one["tag"] else "",
        # There is only one id to search for: that of the log lines, or else the record's own.
        f"request {one['request_id']}" if one.get("request_id") else f"id {one['id']}",
    ]
    return f"{one['model']}: {', '.join(filter(None, words))}"


@dataclass(slots=True)
class Sum:
    """The calls of one component since the last line, starting with the first span that had some."""

    since: float = 0.0
    until: float = 0.0
    due_at: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))


class Calls:
    """Failed and refused calls, summed: the first span of a component that has some, then every half minute."""

    def __init__(self, start: float) -> None:
        self._next_at = start  # the start of the first span that was not counted
        self._sums: dict[str, Sum] = {}

    @property
    def since(self) -> float:
        """The time from which spans are needed."""
        return self._next_at

    def take(self, history: History, settles_s: float = 0.0) -> Iterator[Line]:
        """Count the spans that are complete and not counted yet, and yield the lines that are due.

        `settles_s`: how long a span may still grow after its end.
        """
        step_s, begin = history["step_s"], seconds_of(history["since"]) or 0.0
        settled = (seconds_of(history["timestamp"]) or 0.0) - settles_s
        length = max((len(one["calls"]) for one in history["series"].values()), default=0)
        for place in range(length):
            at = begin + place * step_s
            # Spans are counted in order and never twice. An incomplete span waits for the next read: if it were counted
            # now, calls that another process has yet to report would be missed, because it is not counted again.
            if at < self._next_at or at + step_s > settled:
                continue
            known = {name: one for name, one in history["series"].items() if one["calls"][place] is not None}
            for component, one in known.items():
                counts = {"failed": one["failed"], "refused": one["refused"], "throttled": one["throttled"]}
                self._add(component, at, at + step_s, {name: of[place] or 0 for name, of in counts.items()})
            # A span without data does not advance the position: it may be one that no process has written yet.
            if known:
                self._next_at = at + step_s
                yield from self._due(self._next_at)

    def _add(self, component: str, since: float, until: float, counts: Mapping[str, int]) -> None:
        if not any(counts.values()):
            return
        sum_ = self._sums.setdefault(component, Sum())
        if not any(sum_.counts.values()):
            sum_.since = since
        sum_.until = until
        for name, number in counts.items():
            sum_.counts[name] += number

    def _due(self, now: float) -> Iterator[Line]:
        for component, sum_ in self._sums.items():
            if now >= sum_.due_at and any(sum_.counts.values()):
                yield from self._say(component, sum_)
                sum_.due_at = now + SUMMED_S

    def rest(self) -> Iterator[Line]:
        """Yield what was counted but not reported yet."""
        for component, sum_ in self._sums.items():
            yield from self._say(component, sum_)

    def _say(self, component: str, sum_: Sum) -> Iterator[Line]:
        counts = {name: number for name, number in sum_.counts.items() if number}
        if not counts:
            return
        # Throttled calls are included in the failed ones.
        failed, throttled = counts.get("failed", 0), counts.get("throttled", 0)
        words = [f"{counted(failed, 'call')} failed" + (f" ({throttled} throttled)" if throttled else "")]
        words = words if failed else []
        if refused := counts.get("refused", 0):
            words.append(f"{counted(refused, 'call')} refused by koo")
        text = f"{', '.join(words)} in {span(sum_.until - sum_.since)}"
        yield Line(sum_.until, "calls", component, text, counts, is_error=True)
        sum_.counts = dict.fromkeys(COUNTS, 0)
