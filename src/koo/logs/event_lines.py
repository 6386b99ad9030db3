"""The log line of each event: what happened, to what, why, since when, until when, and what to do.

A table maps each event class to a function, which returns the line without its level; the level is the event's
severity. `Since` remembers when a condition began, so that the line of its end can say how long it lasted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from koo import events
from koo.errors import Failure, Kind, describe_s
from koo.events import Event
from koo.failures import safe
from koo.logs.lines import at, until
from koo.openings import Act

BEGUN_MAX = 1000
"""The maximum number of remembered beginnings: model names, and so breaker names, come from callers."""
GUIDE = "koo runbook "
"""Lines name the command, because the documents are not installed with the package."""


class Since:
    """When active conditions began, in wall seconds, by kind and owner. `now` is the time of the current event."""

    def __init__(self) -> None:
        self.now = 0.0
        self._begun: dict[tuple[str, ...], float] = {}

    def begin(self, *what: str, at: float | None = None) -> float | None:
        """Record a beginning, now or at `at`, unless it is known; returns the earlier one, if there was one."""
        known = self._begun.get(what)
        if known is None:
            self._begun[what] = self.now if at is None else at
            if len(self._begun) > BEGUN_MAX:
                del self._begun[next(iter(self._begun))]
        return known

    def find(self, *what: str) -> float | None:
        """When the condition began; None if unknown."""
        return self._begun.get(what)

    def end(self, *what: str) -> float | None:
        """Remove the beginning of a condition; returns it, or None."""
        return self._begun.pop(what, None)

    def lasted(self, began: float | None) -> str:
        """How long something lasted that ends now: "for 42 s, since 2026-11-29T02:14:05Z"; empty if unknown."""
        return "" if began is None else f"for {describe_s(max(self.now - began, 0.0))}, since {at(began)}"


@dataclass(slots=True)
class Told:
    """The text of a line, and its facts; `since` and `until` are in wall seconds."""

    words: str
    said: list[str]
    cause: str = ""
    since: float | None = None
    until: float | None = None
    last_error: Failure | None = None
    kind: Kind | None = None


# ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _opened(event: events.CircuitOpened, since: Since) -> Told:
    reason, again = event.reason, until(since.now, event.open_for_s)
    if event.is_shadow:
        since.begin("shadow", event.source)
        said = [reason, _what_broke(reason, event.last_error), "in shadow: it counts, and every call passes"]
        return Told("circuit would open", said, reason, since.now, None, event.last_error)
    began = since.begin("circuit", event.source)
    kind = "database_unavailable" if event.source == "database" else "circuit_open"
    said = [
        reason,
        _what_broke(reason, event.last_error),
        f"it has been open since {at(began)}" if began is not None else "",
        f"calls are refused until {again}, then one call at a time tests recovery",
        f"koo does that automatically; if it stays open: {GUIDE}{kind}",
    ]
    since_s = since.now if began is None else began
    return Told("circuit opened", said, reason, since_s, since.now + event.open_for_s, event.last_error)


def _what_broke(reason: str, failure: Failure | None) -> str:
    if failure is None or failure.sentence in reason or failure.brief in reason:
        return ""
    return f"what broke: {failure.sentence}"


def _primed(event: events.CircuitPrimed, since: Since) -> Told:
    return Told("circuit primed", [event.told, "one failure in this process will open it"], event.told)


def _half_opened(event: events.CircuitHalfOpened, since: Since) -> Told:
    if since.find("shadow", event.source) is not None:
        return Told("circuit would be half open", ["in shadow: it counts, and every call passes"])
    began = since.find("circuit", event.source)
    said = ["one call at a time tests recovery, all others are refused", _open_since(began)]
    return Told("circuit half open", said, since=began)


def _open_since(began: float | None) -> str:
    return "" if began is None else f"it has been refusing calls since {at(began)}"


def _closed(event: events.CircuitClosed, since: Since) -> Told:
    since.end("shadow", event.source)
    began = since.end("circuit", event.source)
    lasted = since.lasted(began)
    said = [
        "an operator reset it" if event.by_operator else "calls pass again",
        _who(event.act),
        f"it refused calls {lasted}" if lasted else "",
    ]
    return Told("circuit closed", said, since=began, until=None if began is None else since.now)


OVERRIDES = {
    "none": "lifted: the breaker decides again",
    "forced_open": "forced open: every call is refused until it is lifted",
    "disabled": "disabled: every call passes, and nothing counts",
    "metrics_only": "metrics only: failures are counted, and every call passes",
}


def _override(event: events.OverrideSet, since: Since) -> Told:
    key = "override", event.source
    at = None if event.act is None else event.act.at
    began = since.end(*key) if event.override == "none" else since.begin(*key, at=at)
    ends_at = None if event.act is None else event.act.until
    ends = "" if ends_at is None else f"until {until(since.now, ends_at - since.now)}"
    said = [OVERRIDES.get(event.override, event.override), _who(event.act), ends, _from(since, began)]
    return Told("an operator set an override", said, since=began)


def _who(act: Act | None) -> str:
    """Who did it and why."""
    return "" if act is None or not act.words else f"by {act.words}" if act.by else act.reason


def _from(since: Since, began: float | None) -> str:
    lasted = since.lasted(began)
    return f"it was in force {lasted}" if lasted else ""


# ── pauses and keys ───────────────────────────────────────────────────────────────────────────────────────────────


def _cooldown(event: events.CooldownBegan, since: Since) -> Told:
    reason, again = event.reason, until(since.now, event.for_s)
    lasting = event.kind is not Kind.THROTTLED
    said = [
        reason,
        _what_broke(reason, event.last_error),
        f"nothing is sent {'to the whole service ' if event.whole_service else ''}until {again}",
        _whose(event.credential),
        "raise the quota at the provider, or use another service" if lasting else "",
    ]
    ends = since.now + event.for_s
    words = "quota used up" if lasting else "pause"
    return Told(words, said, reason, since.now, ends, event.last_error, event.kind)


def _whose(credential: str) -> str:
    return "it concerns a key that a caller supplied, not the service's own" if credential else ""


def _key_blocked(event: events.KeyBlocked, since: Since) -> Told:
    reason, again = event.reason, until(since.now, event.again_in_s)
    since.begin("key", event.source, event.model or "", event.credential)
    for_model = f" for model {safe(event.model, 80)}" if event.model else ""
    page = "client_key_refused" if event.credential else "service_down"
    said = [
        reason,
        _what_broke(reason, event.last_error),
        f"nothing is sent with it{for_model} until it works; it is tried again from {again}" if again else "",
        _whose(event.credential),
        f"set a valid key, or check the account at the provider: {GUIDE}{page}",
    ]
    again_at = None if event.again_in_s is None else since.now + event.again_in_s
    return Told("key refused", said, reason, since.now, again_at, event.last_error)


def _key_unblocked(event: events.KeyUnblocked, since: Since) -> Told:
    began = since.end("key", event.source, event.model or "", event.credential)
    lasted = since.lasted(began)
    said = [
        f"it is used again for model {safe(event.model, 80)}" if event.model else "it is used again",
        f"it was refused {lasted}" if lasted else "",
        _whose(event.credential),
    ]
    return Told("key works", said, since=began, until=None if began is None else since.now)


# ── health checks ─────────────────────────────────────────────────────────────────────────────────────────────────


def _check_failed(event: events.HealthCheckFailed, since: Since) -> Told:
    reason = event.reason
    since.begin("check", event.source)
    said = [reason, "it is checked again automatically; three failures in a row make the state unhealthy"]
    return Told("health check failed", said, reason, since.now, kind=event.kind)


def _check_passed(event: events.HealthCheckPassed, since: Since) -> Told:
    began = since.end("check", event.source)
    lasted = since.lasted(began)
    failed = "1 check had failed" if event.failed == 1 else f"{event.failed} checks had failed"
    return Told("health check passed", [f"{failed} {lasted}".strip()], since=began)


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


def _commit_unknown(event: events.CommitUnknown, since: Since) -> Told:
    where, statement = safe(event.where, 200), safe(event.statement, 100)
    cause = "the connection was lost during COMMIT"
    said = [
        f"{cause}: the transaction may or may not have happened, and was not run again",
        f"in {where}" if where else "",
        f"last statement {statement}" if statement else "",
        f"its marker is {event.key}" if event.key else "",
        "check whether it happened before repeating it",
    ]
    return Told("outcome of a commit unknown", said, cause, since.now, kind=Kind.OUTCOME_UNKNOWN)


def _read_only(event: events.DatabaseReadOnly, since: Since) -> Told:
    since.begin("read_only", event.source)
    said = [
        "it accepts no writes: it is a standby, or its disk is full",
        f"reads succeed, writes fail; it is checked again automatically: {GUIDE}database_read_only",
    ]
    return Told("read-only", said, since=since.now, kind=Kind.READ_ONLY)


def _writable(event: events.DatabaseWritable, since: Since) -> Told:
    began = since.end("read_only", event.source)
    lasted = since.lasted(began)
    return Told("accepts writes again", [f"it was read-only {lasted}" if lasted else ""], since=began)


def _paused(event: events.DatabasePaused, since: Since) -> Told:
    since.begin("gate", event.source)
    said = [
        _who(event.act),
        f"new scopes wait, each until its own deadline; {scopes_left(event.running)}",
        "`koo db resume` ends it",
    ]
    return Told("paused by an operator", said, since=since.now)


def _draining(event: events.DatabaseDraining, since: Since) -> Told:
    since.begin("gate", event.source)
    said = [
        _who(event.act),
        f"new scopes are refused; {scopes_left(event.running)}",
        "`koo db resume` ends it",
    ]
    return Told("drained by an operator", said, since=since.now)


def _resumed(event: events.DatabaseResumed, since: Since) -> Told:
    began = since.end("gate", event.source)
    lasted = since.lasted(began)
    said = [
        _who(event.act),
        "new scopes begin again",
        f"they waited or were refused {lasted}" if lasted else "",
    ]
    return Told("resumed by an operator", said, since=began)


def _rotated(event: events.DatabaseRotated, since: Since) -> Told:
    old = f"{scopes_left(event.running)} with an old one" if event.running else ""
    return Told(
        "connections rotated by an operator", ["new scopes get new connections", old], since=since.now
    )


def scopes_left(running: int) -> str:
    """How many scopes are still open."""
    if not running:
        return "no scope is open"
    return "1 scope is still open" if running == 1 else f"{running} scopes are still open"


# ── money and the state store ─────────────────────────────────────────────────────────────────────────────────────


def _bill(event: events.BillExceededHold, since: Since) -> Told:
    cause = f"a bill of {event.billed_usd} USD was above its worst case of {event.held_usd} USD"
    said = [
        cause,
        f"it is booked in full, and the budget may be overspent by the difference: {GUIDE}bill_above_hold",
    ]
    return Told("bill above its hold", said, cause, since.now)


def _store_lost(event: events.StoreLost, since: Since) -> Told:
    reason = event.reason
    since.begin("store", event.source)
    said = [reason, f"koo tries again every few seconds: {GUIDE}budget_local"]
    return Told("lost", said, reason, since.now)


def _store_found(event: events.StoreFound, since: Since) -> Told:
    began = since.end("store", event.source)
    lasted = since.lasted(began)
    said = [
        f"it was unreachable {lasted}" if lasted else "",
        "what was spent during that time is now reported to it",
    ]
    return Told("found again", said, since=began)


def _store_forgot(event: events.StoreForgot, since: Since) -> Told:
    cause = f"{event.forgotten_usd} USD that this process had booked were missing there"
    said = [
        "it is older than what this process reported: it was replaced, or has lost acknowledged writes",
        f"{cause}, and are booked again; spending by processes that have ended since that copy is not in the budgets",
        f"no money is granted for six seconds: {GUIDE}store_forgot",
    ]
    return Told("forgot", said, cause, since.now)


def _renamed(event: events.ProcessRenamed, since: Since) -> Told:
    cause = "another process used this one's name in the state store, or this one was written off"
    named = (
        f"this process continues as {event.name}"
        if event.name
        else "this process continues under another name"
    )
    said = [cause, f"{named}, and what it held is booked twice: {GUIDE}process_renamed"]
    return Told("name taken", said, cause, since.now)


# ── delivery of alerts ────────────────────────────────────────────────────────────────────────────────────────────


def _not_delivered(event: events.DeliveryFailed, since: Since) -> Told:
    again = until(since.now, event.next_in_s)
    said = [
        event.reason,
        f"this channel delivers no alerts; next attempt at {again}",
        "`koo alerts test` tries it now",
    ]
    return Told("alerts not delivered", said, event.reason, since.now, since.now + event.next_in_s)


def _given_up(event: events.DeliveryGivenUp, since: Since) -> Told:
    alerts = "1 alert" if event.notices == 1 else f"{event.notices} alerts"
    said = [event.reason, f"the message with {alerts} will not be sent again: `koo alerts` lists them"]
    return Told("alerts given up", said, event.reason, since.now)


LINES: dict[type[Event], Callable[[Any, Since], Told]] = {
    events.CircuitOpened: _opened,
    events.CircuitPrimed: _primed,
    events.CircuitHalfOpened: _half_opened,
    events.CircuitClosed: _closed,
    events.OverrideSet: _override,
    events.CooldownBegan: _cooldown,
    events.KeyBlocked: _key_blocked,
    events.KeyUnblocked: _key_unblocked,
    events.HealthCheckFailed: _check_failed,
    events.HealthCheckPassed: _check_passed,
    events.CommitUnknown: _commit_unknown,
    events.DatabaseReadOnly: _read_only,
    events.DatabaseWritable: _writable,
    events.DatabasePaused: _paused,
    events.DatabaseDraining: _draining,
    events.DatabaseResumed: _resumed,
    events.DatabaseRotated: _rotated,
    events.BillExceededHold: _bill,
    events.StoreLost: _store_lost,
    events.StoreFound: _store_found,
    events.StoreForgot: _store_forgot,
    events.ProcessRenamed: _renamed,
    events.DeliveryFailed: _not_delivered,
    events.DeliveryGivenUp: _given_up,
}
"""The line of each of koo's events. An application's own event is logged under its class name."""
