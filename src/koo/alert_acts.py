"""Operators' acts on alerts: acknowledge one, silence some, list past ones.

All of them are stored in the state store and apply to every process on it, so they are refused while the store is
unreachable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from koo.alerts.keeping import AlertKeeper
from koo.alerts.views import past_view, silence_view
from koo.clock import Clock, iso
from koo.episodes import Acknowledgement, Place, Silence, in_ms, new_id
from koo.errors import CallerMistake, InvalidRequest, Kind, ServiceRefused
from koo.monitoring.alert_shapes import AlertHistory
from koo.monitoring.guards import now_iso
from koo.monitoring.shapes import Alert, SilenceView
from koo.options import DAY_S
from koo.plain_text import plain
from koo.storage.base import Store, StoreUnavailable

log = logging.getLogger("koo")

T = TypeVar("T")

HOLDS_S_MAX = 30 * DAY_S
"""A silence that was forgotten hides the next outage, so its time is limited."""
HISTORY_S = 7 * DAY_S
PAGE_MAX = 500
NAME_MAX = 100
WORDS_MAX = 500
AWAY_RETRY_S = 5.0


class AtHome(Protocol):
    """Runs a coroutine on koo's loop, from any other loop."""

    async def __call__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T: ...


class AlertActs:
    """Acts on the alerts of one platform. Times are datetimes with a time zone, or seconds from now.

    Each method raises `ServiceRefused` while the state store is unreachable, and `InvalidRequest` for invalid
    arguments.
    """

    def __init__(self, keeper: AlertKeeper, store: Store, clock: Clock, at_home: AtHome) -> None:
        self._at_home = at_home
        self._keeper = keeper
        self._store = store
        self._clock = clock

    def current(self) -> list[Alert]:
        """Active alerts, worst first, then those that ended within the last fifteen minutes. Without I/O."""
        return self._keeper.views()

    async def acknowledge(
        self,
        alert_id: str,
        *,
        by: str,
        for_s: float | None = None,
        until: datetime | None = None,
        note: str = "",
    ) -> Alert:
        """Record who is working on an alert, for a time or until it ends. Until then no reminders are sent.

        Raises `CallerMistake` if no alert with that `id` is active.
        """
        now = in_ms(self._clock.wall())
        ends_at = None if for_s is None and until is None else _end(now, for_s, until)
        said = Acknowledgement(_name(by), now, ends_at, plain(note, most=WORDS_MAX))
        alert = await self._set(alert_id, said)
        words = said.by, alert["kind"], alert["component"], said.note
        log.warning("%r acknowledged the alert %s of %s; reason: %r", *words)
        return alert

    async def unacknowledge(self, alert_id: str, *, by: str = "", reason: str = "") -> Alert:
        """Remove an acknowledgement. Raises `CallerMistake` if no alert with that `id` is active."""
        alert = await self._set(alert_id, None)
        words = plain(by), alert["kind"], alert["component"], plain(reason)
        log.warning("%r removed the acknowledgement of the alert %s of %s; reason: %r", *words)
        return alert

    async def _set(self, alert_id: str, said: Acknowledgement | None) -> Alert:
        episode = await self._ask(lambda: self._keeper.acknowledge(alert_id, said))
        if episode is None:
            raise CallerMistake("alerts", "no alert with that id is active", kind=Kind.NOT_FOUND)
        own = (view for view in self._keeper.views() if view["id"] == alert_id and view["active"])
        return next(own, past_view(episode, has_channel=self._keeper.has_channel))

    async def silence(
        self,
        *,
        kind: str = "*",
        component: str = "*",
        for_s: float | None = None,
        ends_at: datetime | None = None,
        by: str,
        reason: str,
    ) -> SilenceView:
        """Stop notices of matching alerts until the silence ends. `kind` and `component` may be patterns such as
        `ai:*`."""
        now = in_ms(self._clock.wall())
        silence = Silence(
            id=new_id(),
            kind=_pattern(kind, "kind"),
            component=_pattern(component, "component"),
            made_at=now,
            ends_at=_end(now, for_s, ends_at),
            by=_name(by),
            reason=_reason(reason),
        )
        await self._ask(lambda: self._keeper.silence(silence))
        words = silence.by, silence.kind, silence.component, iso(silence.ends_at), silence.reason
        log.warning("%r silenced alerts: kind %r, component %r, until %s; reason: %r", *words)
        return silence_view(silence)

    async def end_silence(self, silence_id: str, *, by: str = "", reason: str = "") -> SilenceView:
        """End a silence early. Raises `CallerMistake` if no silence with that `id` is in force."""
        ended = await self._ask(lambda: self._keeper.end_silence(silence_id))
        if ended is None:
            raise CallerMistake("alerts", "no silence with that id is in force", kind=Kind.NOT_FOUND)
        words = plain(by), ended.by, ended.kind, ended.component, plain(reason)
        log.warning("%r ended the silence of %r: kind %r, component %r; reason: %r", *words)
        return silence_view(ended)

    async def silences(self) -> list[SilenceView]:
        """The silences in force, the next to end first."""
        now = in_ms(self._clock.wall())
        return [silence_view(one) for one in await self._ask(lambda: self._store.silences.lasting(now))]

    async def history(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> AlertHistory:
        """Episodes of all processes that fired and were active between two times, by default in the last seven days.

        The episode that began last is first; `cursor` is the `next_cursor` of the previous page.
        """
        now = in_ms(self._clock.wall())
        last = now if until is None else _wall(until, "until")
        first = last - HISTORY_S if since is None else _wall(since, "since")
        if first > last or not 1 <= limit <= PAGE_MAX:
            raise _mistake(f"`since` must not be after `until`, and `limit` must be 1 to {PAGE_MAX}")
        after = None if cursor is None else _place(cursor)
        episodes = self._store.episodes
        found = await self._ask(lambda: episodes.history(first, last, limit=limit + 1, after=after))
        page = found[:limit]
        return {
            "episodes": [past_view(episode, has_channel=self._keeper.has_channel) for episode in page],
            "next_cursor": None if len(found) <= limit else _cursor(page[-1].started_at, page[-1].id),
            "since": iso(first),
            "until": iso(last),
            "timestamp": now_iso(self._clock),
        }

    async def _ask(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await self._at_home(work)
        except StoreUnavailable as error:
            raise _away(error) from error


# ── checking arguments ────────────────────────────────────────────────────────────────────────────────────────────


def _end(now: float, for_s: float | None, until: datetime | None) -> float:
    if (for_s is None) is (until is None):
        raise _mistake("set the end: either a number of seconds or a time")
    ends_at = in_ms(now + for_s if for_s is not None else _wall(until, "the end"))
    if not now < ends_at <= now + HOLDS_S_MAX:
        raise _mistake("it must end in the future and within 30 days")
    return ends_at


def _wall(at: datetime | None, what: str) -> float:
    if at is None or at.tzinfo is None:
        raise _mistake(f"{what} must be a time with a time zone, such as 2026-11-29T03:00:00+00:00")
    return at.astimezone(UTC).timestamp()


def _name(by: str) -> str:
    name = plain(by, most=NAME_MAX).strip()
    if not name:
        raise _mistake("`by` must say who does this")
    return name


def _reason(reason: str) -> str:
    words = plain(reason, most=WORDS_MAX).strip()
    if not words:
        raise _mistake("reason must not be empty: the next person on call will need it")
    return words


def _pattern(pattern: str, what: str) -> str:
    if not pattern or len(pattern) > NAME_MAX * 3:
        raise _mistake(f"{what} must be a name or a pattern such as *")
    return pattern


def _cursor(started_at: float, episode_id: str) -> str:
    return f"{round(started_at * 1000)}-{episode_id}"


def _place(cursor: str) -> Place:
    started_ms, _, episode_id = cursor.partition("-")
    if not (started_ms.isdecimal() and len(started_ms) < 16 and episode_id):
        raise _mistake("cursor must be the next_cursor of the previous page")
    return Place(int(started_ms) / 1000, episode_id)


def _mistake(reason: str) -> InvalidRequest:
    return InvalidRequest("alerts", reason, kind=Kind.INVALID_REQUEST)


def _away(error: StoreUnavailable) -> ServiceRefused:
    return ServiceRefused("state store", str(error), AWAY_RETRY_S, kind=Kind.CONNECTION)
