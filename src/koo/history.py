"""The history: samples of every component, for the charts and to see what changed before something broke.

Every five seconds a sample of each component is taken from counters that the guards keep anyway, so calls pay nothing
for it. The last hour stays in memory. Every minute the process writes that minute, and the current five minutes so far,
to the state store, where the rows of all processes are read together: minutes for two days, five minutes for thirty.
While the store is unreachable, up to an hour of minutes waits in memory. A process that is killed loses at most the
minute that it had not written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from koo.alert_acts import AtHome
from koo.alerts.own_rules import CHANNEL
from koo.bookings import page_of
from koo.clock import Clock, iso
from koo.episodes import Episode
from koo.errors import InvalidRequest, Kind
from koo.events import (
    CircuitClosed,
    CircuitOpened,
    DatabaseDraining,
    DatabasePaused,
    DatabaseResumed,
    DatabaseRotated,
    Event,
    KeyBlocked,
    OverrideSet,
)
from koo.monitoring import history_shapes as shapes
from koo.monitoring.guards import now_iso
from koo.monitoring.history import SERVICE, series_of
from koo.monitoring.live_shapes import Saved
from koo.monitoring.spend_shapes import BookedCall, BookedCalls
from koo.openings import Act
from koo.options import DAY_S
from koo.policies.incidents import WORDS
from koo.policies.samples import Sample, Span, extend
from koo.spans import Mark, Spans
from koo.storage.base import Store, StoreUnavailable

T = TypeVar("T")

SAMPLE_S = 5
MINUTE_S, FIVE_MINUTES_S, HOUR_S = 60, 300, 3600
STEPS_S = (MINUTE_S, FIVE_MINUTES_S)
POINTS_MAX = 720
"""An hour of samples is exactly this many, and no chart has more pixels."""
MINUTES_S_MAX = int(2 * DAY_S)
RANGE_S_MAX = int(30 * DAY_S)
MARKS_MAX = 200
COMPONENTS_MAX = 200
"""If a platform has more components, only the first ones by name are sampled."""
UNWRITTEN_MAX = 2 * 60
DEPLOY = "deploy"
KOO = "koo"


@dataclass(frozen=True, slots=True)
class Ask:
    """A requested range: two wall times, the step, and the components (None: all)."""

    since_s: int
    until_s: int
    every_s: int
    stored_s: int
    """The step of the rows to read from the store; 0: read from memory."""
    components: frozenset[str] | None = None


class Unwritten(NamedTuple):
    """A span that is not in the store yet."""

    step_s: int
    at_s: int
    span: Span


class History:
    """The samples of one process's components, and of all processes on its store.

    `version` returns the deployed version, `settings` the digests of all settings.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        version: Callable[[], str],
        settings: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.store = store
        self.clock = clock
        self._version = version
        self._settings = settings
        self._recent: deque[tuple[int, Span]] = deque(maxlen=HOUR_S // SAMPLE_S)
        self._counted: Span = {}
        self._open: dict[int, tuple[int, Span]] = {}  # by step: the span that is being filled
        self._unwritten: deque[Unwritten] = deque(maxlen=UNWRITTEN_MAX)
        self._marks: deque[Mark] = deque(maxlen=MARKS_MAX)
        self._is_announced = False
        self._due_at = clock.monotonic()
        self.began_at = clock.wall()
        self.writes = 0
        """The number of writes; reads between two writes return the same."""

    # ── taking ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_due(self) -> bool:
        """Whether the next sample is due."""
        return self.clock.monotonic() >= self._due_at

    def take(self, counted: Mapping[str, Sample]) -> None:
        """Take a sample of every component: the difference from the last one."""
        self._due_at = self.clock.monotonic() + SAMPLE_S
        # The span is the five seconds that end now. If the sample belonged to the span that begins now, a minute would
        # contain events of the minute before.
        now_s = (int(self.clock.wall()) // SAMPLE_S - 1) * SAMPLE_S
        span: Span = {}
        for component in sorted(counted)[:COMPONENTS_MAX]:
            one = counted[component]
            # The first sample of a new component covers its whole life: it was created after the last sample.
            span[component] = one.since(self._counted.get(component, Sample()))
        self._counted = dict(counted)
        self._recent.append((now_s, span))
        for step_s in STEPS_S:
            self._fill(step_s, now_s, span)

    def _fill(self, step_s: int, now_s: int, span: Span) -> None:
        begin = now_s - now_s % step_s
        at, filled = self._open.get(step_s, (begin, {}))
        if at != begin:
            self._unwritten.append(Unwritten(step_s, at, filled))
            if step_s == MINUTE_S and FIVE_MINUTES_S in self._open:
                # The five minutes so far are rewritten each minute, so that a kill costs one minute and not five.
                five_at, five = self._open[FIVE_MINUTES_S]
                # This is a copy, because `five` continues to grow. If the store takes it late, it would contain samples
                # of the next minute as well. `unwritten_since` still counts those as unwritten, so they would be
                # counted twice.
                so_far: Span = {}
                extend(so_far, five)
                self._unwritten.append(Unwritten(FIVE_MINUTES_S, five_at, so_far))
            filled = {}
        extend(filled, span)
        self._open[step_s] = (begin, filled)

    @property
    def newest(self) -> tuple[int, Span] | None:
        """The last sample, with the start of its span in wall seconds."""
        return self._recent[-1] if self._recent else None

    def on_event(self, event: Event) -> None:
        """Keep a mark of the event for the charts."""
        mark = _mark_of(event, self.clock.wall())
        if mark is not None:
            self._marks.append(mark)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_news(self) -> bool:
        """Whether anything is waiting to be written."""
        return bool(self._unwritten or self._marks)

    async def write(self) -> None:
        """Write everything that is waiting. If it raises `StoreUnavailable`, the rest goes on waiting."""
        if not self._is_announced:
            await self.store.history.mark_change(Mark(self.clock.wall(), DEPLOY, KOO, self._version()))
            if settings := self._settings():
                await self.store.history.mark_settings(self.clock.wall(), KOO, settings)
            self._is_announced = True
        if self._unwritten:
            await _hand_over(self._unwritten, self.store.history.write)
            self.writes += 1
        await _hand_over(self._marks, self.store.history.mark)

    def unwritten_since(self, since_s: int) -> Span:
        """The samples that this process has taken since then and not written yet."""
        span: Span = {}
        minutes = [(one.at_s, one.span) for one in self._unwritten if one.step_s == MINUTE_S]
        for at_s, minute in [*minutes, self._open.get(MINUTE_S, (0, {}))]:
            if at_s >= since_s:
                extend(span, minute)
        return span

    async def finish(self) -> None:
        """Write the unfinished spans, because this process is ending. Raises `StoreUnavailable`."""
        for step_s, (at_s, span) in self._open.items():
            self._unwritten.append(Unwritten(step_s, at_s, span))
        self._open = {}
        await self.write()

    # ── reporting ───────────────────────────────────────────────────────────────────────────────────────────

    async def report(
        self,
        seconds: int | None,
        since: float | None,
        until: float | None,
        components: Sequence[str],
        all_processes: bool,
    ) -> shapes.History:
        """The history of a range; see `Platform.history`."""
        ask = self._ask(seconds, since, until, all_processes)
        if components:
            ask = replace(ask, components=frozenset(components))
        trouble, spent, marks = "", None, self._own_marks(ask)
        spans = self._remembered(ask) if not ask.stored_s else {}
        try:
            if ask.stored_s:
                spans = await self.store.history.read(ask.stored_s, ask.since_s, ask.until_s, ask.every_s)
            spent = await self.store.history.spent(ask.since_s, ask.until_s, ask.every_s)
            marks = await self.marks(ask.since_s, ask.until_s)
        except StoreUnavailable as error:
            trouble = str(error)
        return await self._view(ask, spans, spent, marks, trouble)

    def _ask(self, seconds: int | None, since: float | None, until: float | None, all_processes: bool) -> Ask:
        now = self.clock.wall()
        if seconds is not None and (since is not None or until is not None):
            raise _mistake("set either a range, or `since` and `until`, but not both")
        until = now + 1 if until is None else until  # includes the current second
        first = until - (seconds or HOUR_S) if since is None else since
        if not first < until:
            raise _mistake("`since` must be before `until`")
        if until - first > RANGE_S_MAX:
            raise _mistake("the longest range is 30 days")
        stored_s = _stored_step(first, until, now, all_processes)
        base_s = stored_s or SAMPLE_S
        every_s = -(-int(until - first) // (POINTS_MAX * base_s)) * base_s
        begin = int(first) - int(first) % every_s
        return Ask(begin, _round_up(until, every_s), every_s, stored_s)

    def _remembered(self, ask: Ask) -> Spans:
        spans: Spans = {}
        for at_s, span in self._recent:
            if ask.since_s <= at_s < ask.until_s:
                extend(spans.setdefault(at_s - at_s % ask.every_s, {}), span)
        return spans

    def _own_marks(self, ask: Ask) -> list[Mark]:
        return [mark for mark in self._marks if ask.since_s <= mark.at < ask.until_s]

    async def marks(self, since: float, until: float) -> list[Mark]:
        """The marks between two wall times, oldest first, including alerts. Raises `StoreUnavailable`."""
        await self.write()
        stored = await self.store.history.marks(since, until, limit=MARKS_MAX)
        episodes = await self.store.episodes.history(since, until, limit=MARKS_MAX)
        alerts = [mark for episode in episodes for mark in _marks_of(episode)]
        inside = (mark for mark in (*stored, *alerts) if since <= mark.at < until)
        return sorted(inside, key=lambda mark: mark.at)[-MARKS_MAX:]

    async def marks_since(self, since: float) -> list[shapes.HistoryMark]:
        """The marks since a wall time, of all processes, or of this one while the state store is unreachable."""
        ask = Ask(int(since), int(self.clock.wall()) + 1, SAMPLE_S, 0)
        try:
            return list(map(_mark_view, await self.marks(ask.since_s, ask.until_s)))
        except StoreUnavailable:
            return list(map(_mark_view, self._own_marks(ask)))

    async def _view(
        self,
        ask: Ask,
        spans: Spans,
        spent: Mapping[tuple[str, int], int] | None,
        marks: Sequence[Mark],
        trouble: str,
    ) -> shapes.History:
        begins = range(ask.since_s, ask.until_s, ask.every_s)
        names = {name for span in spans.values() for name in span}
        if ask.components is not None:
            names &= ask.components
        series = {}
        for name in sorted(names):
            samples = [spans[at].get(name) if at in spans else None for at in begins]
            series[name] = series_of(name, samples, _spent_by(name, spent), begins)
            await asyncio.sleep(0)  # many components in a row would block the event loop for too long
        return {
            "since": iso(ask.since_s),
            "until": iso(ask.until_s),
            "step_s": ask.every_s,
            "scope": "all processes" if ask.stored_s else "this process",
            "series": series,
            "marks": [
                _mark_view(mark)
                for mark in marks
                if ask.components is None or mark.component == KOO or _is_of(mark.component, ask.components)
            ],
            "trouble": trouble,
            "timestamp": now_iso(self.clock),
        }


def _mark_view(mark: Mark) -> shapes.HistoryMark:
    return {"at": iso(mark.at), "kind": mark.kind, "component": mark.component, "text": mark.text}


async def _hand_over(waiting: deque[T], write: Callable[[Sequence[T]], Awaitable[None]]) -> None:
    """Write everything in the queue. A row leaves it only when it is written, or when newer rows push it out."""
    while waiting:
        # During the write the queue may grow, and, being bounded, drop its oldest rows. Removing as many rows as were
        # written could then remove newer ones that were not; so each row is compared with the one in front.
        several = tuple(waiting)
        await write(several)
        for one in several:
            if waiting and waiting[0] is one:
                waiting.popleft()


class HistoryReports:
    """The history of one platform, from any event loop."""

    def __init__(
        self, history: History, at_home: AtHome, saved: Callable[[], Coroutine[Any, Any, Saved]]
    ) -> None:
        self._history = history
        self._at_home = at_home
        self._saved = saved

    async def report(
        self,
        *,
        range_s: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        components: Sequence[str] = (),
        all_processes: bool = False,
    ) -> shapes.History:
        """The history of the last `range_s` seconds (default: an hour), or from `since` to `until`.

        At most 720 spans, at most 30 days, of `components` or of all. The last hour covers this process only, unless
        `all_processes` is set. While the state store is unreachable, `trouble` has the reason and the stored part is
        missing. Raises `InvalidRequest`.
        """
        first, last = _seconds(since), _seconds(until)
        return await self._at_home(
            lambda: self._history.report(range_s, first, last, components, all_processes)
        )

    async def requests(
        self,
        *,
        service: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> BookedCalls:
        """The last calls with a cost, of all processes, newest first. They contain no prompt and no answer.

        `limit` is at most 500; `cursor` is the `next_cursor` of the previous page. Raises `InvalidRequest`, and
        `ServiceRefused` while the state store is unreachable.
        """
        store, clock = self._history.store, self._history.clock
        return await self._at_home(
            lambda: page_of(store, clock, service=service, model=model, tag=tag, limit=limit, cursor=cursor)
        )

    async def saved(self) -> Saved:
        """What koo saved today (UTC), in all processes. While the state store is unreachable, returns what was last
        read."""
        return await self._at_home(self._saved)

    async def marks(self, since: datetime) -> list[shapes.HistoryMark]:
        """The marks since then, oldest first, of all processes, or of this one while the state store is unreachable."""
        return await self._at_home(lambda: self._history.marks_since(since.timestamp()))

    async def newest_requests(self, limit: int) -> list[BookedCall]:
        """Like `requests`, but only what is already in the state store, without booking pending entries first."""
        store, clock = self._history.store, self._history.clock
        page = await self._at_home(
            lambda: page_of(
                store, clock, service=None, model=None, tag=None, limit=limit, cursor=None, is_booked=True
            )
        )
        return page["requests"]


def _seconds(at: datetime | None) -> float | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise _mistake("a time needs a time zone, as in 2026-11-29T03:00:00Z")
    return at.timestamp()


def _mistake(sentence: str) -> InvalidRequest:
    return InvalidRequest("history", sentence, kind=Kind.INVALID_REQUEST)


def _stored_step(since: float, until: float, now: float, all_processes: bool) -> int:
    """The step of the stored rows that cover a range: minutes or five minutes; 0: the samples in memory."""
    if since >= now - HOUR_S - SAMPLE_S and not all_processes:
        return 0
    return MINUTE_S if since >= now - MINUTES_S_MAX and until - since <= MINUTES_S_MAX else FIVE_MINUTES_S


def _round_up(value: float, step: int) -> int:
    return -int(-value // step) * step


def _spent_by(name: str, spent: Mapping[tuple[str, int], int] | None) -> Mapping[int, int] | None:
    if spent is None:
        return None
    service = name.removeprefix(SERVICE)
    return {at: amount for (of, at), amount in spent.items() if of == service}


def _mark_of(event: Event, now: float) -> Mark | None:
    if isinstance(event, CircuitOpened):
        return Mark(now, "circuit", _component(event.source), f"opened: {event.reason}")
    if isinstance(event, CircuitClosed):
        by = f"closed by an operator{_words(event.act)}" if event.by_operator else "closed"
        return Mark(now, "act" if event.by_operator else "circuit", _component(event.source), by)
    if isinstance(event, OverrideSet):
        at = now if event.act is None or event.act.at is None else event.act.at
        return Mark(at, "act", _component(event.source), f"{WORDS[event.override]}{_words(event.act)}")
    if isinstance(event, KeyBlocked):
        return Mark(now, "circuit", _component(event.source), "the key was refused")
    for kind, text in _ACTS.items():
        if isinstance(event, kind):
            return Mark(now, "act", _component(event.source), f"{text}{_words(getattr(event, 'act', None))}")
    return None


def _words(act: Act | None) -> str:
    return "" if act is None or not act.words else f" ({act.words})"


_ACTS: Mapping[type[Event], str] = {
    DatabasePaused: "paused",
    DatabaseDraining: "draining",
    DatabaseResumed: "resumed",
    DatabaseRotated: "rotated",
}


def _is_of(component: str, wholes: Collection[str]) -> bool:
    """Whether the component is one of `wholes`, or a part of one, as "ai:claude/opus" is of "ai:claude"."""
    return any(component == whole or component.startswith(f"{whole}/") for whole in wholes)


def _component(source: str) -> str:
    name = source.partition("/")[0]
    return name if name == "database" or name.startswith(CHANNEL) else SERVICE + name


def _marks_of(episode: Episode) -> list[Mark]:
    began = Mark(episode.started_at, "alert", episode.component, episode.message)
    if episode.ended_at is None:
        return [began]
    return [began, Mark(episode.ended_at, "alert", episode.component, f"ended: {episode.message}")]
