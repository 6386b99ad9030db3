"""The exact line of each event, at the event's severity, without anything that must not be logged."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from koo import events
from koo.errors import Failure, Kind
from koo.events import (
    BillExceededHold,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CircuitPrimed,
    CommitUnknown,
    CooldownBegan,
    DatabaseDraining,
    DatabasePaused,
    DatabaseReadOnly,
    DatabaseResumed,
    DatabaseRotated,
    DatabaseWritable,
    DeliveryFailed,
    DeliveryGivenUp,
    Event,
    HealthCheckFailed,
    HealthCheckPassed,
    KeyBlocked,
    KeyUnblocked,
    OverrideSet,
    ProcessRenamed,
    StoreForgot,
    StoreFound,
    StoreLost,
)
from koo.logs import event_lines
from koo.logs.event_lines import LINES
from koo.logs.event_log import LEVELS, EventLog
from koo.logs.lines import request_id
from koo.monitoring.runbook import runbooks
from koo.openings import Act
from koo.testing.clock import WALL_S, StandingClock

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
]
FAILED = Failure(Kind.SERVER_ERROR, "it failed (status 500, api_error)", 500, "api_error")
REFUSED = Failure(
    Kind.AUTH,
    "it rejects the API key: set a valid one (status 401, authentication_error)",
    401,
    "authentication_error",
)
GUIDE = "koo runbook"

EXACT: list[tuple[Event, str]] = [
    (
        CircuitOpened("claude/fable", "5 failures in a row, the last: status 500, api_error", 63.0, FAILED),
        "CRITICAL claude/fable: circuit opened: 5 failures in a row, the last: status 500, api_error; "
        "calls are refused until 2026-09-21T14:14:23Z (in 63 s), then one call at a time tests recovery; "
        f"koo does that automatically; if it stays open: {GUIDE} circuit_open",
    ),
    (
        CircuitHalfOpened("claude/fable"),
        "WARNING claude/fable: circuit half open: one call at a time tests recovery, all others are refused; "
        "it has been refusing calls since 2026-09-21T14:13:20Z",
    ),
    (
        CircuitOpened("claude/fable", "5 failures in a row, then a failed probe", 120.0),
        "CRITICAL claude/fable: circuit opened: 5 failures in a row, then a failed probe; "
        "it has been open since 2026-09-21T14:13:20Z; "
        "calls are refused until 2026-09-21T14:15:40Z (in 2 min), then one call at a time tests recovery; "
        f"koo does that automatically; if it stays open: {GUIDE} circuit_open",
    ),
    (
        CircuitClosed("claude/fable"),
        "INFO claude/fable: circuit closed: calls pass again; "
        "it refused calls for 30 s, since 2026-09-21T14:13:20Z",
    ),
    (
        CircuitClosed("lab", by_operator=True),
        "INFO lab: circuit closed: an operator reset it",
    ),
    (
        OverrideSet("claude", "forced_open"),
        "WARNING claude: an operator set an override: forced open: every call is refused until it is lifted",
    ),
    (
        OverrideSet("claude", "none", Act("ada@desk", "seen enough")),
        "WARNING claude: an operator set an override: lifted: the breaker decides again; "
        "by ada@desk: seen enough; it was in force for 10 s, since 2026-09-21T14:14:10Z",
    ),
    (
        CooldownBegan("claude/fable", 45.0, "the provider limits the request rate"),
        "WARNING claude/fable: pause: the provider limits the request rate; "
        "nothing is sent until 2026-09-21T14:15:15Z (in 45 s)",
    ),
    (
        CooldownBegan("openai", 86_400.0, "the provider's quota is used up", Kind.QUOTA, whole_service=True),
        "WARNING openai: quota used up: the provider's quota is used up; "
        "nothing is sent to the whole service until 2026-09-22T14:14:40Z (in 24 h 0 min); "
        "raise the quota at the provider, or use another service",
    ),
    (
        KeyBlocked("claude", "the provider refused the key", last_error=REFUSED, again_in_s=60.0),
        "CRITICAL claude: key refused: the provider refused the key; "
        "what broke: it rejects the API key: set a valid one (status 401, authentication_error); "
        "nothing is sent with it until it works; it is tried again from 2026-09-21T14:15:50Z (in 60 s); "
        f"set a valid key, or check the account at the provider: {GUIDE} service_down",
    ),
    (
        KeyUnblocked("claude"),
        "INFO claude: key works: it is used again; it was refused for 10 s, since 2026-09-21T14:14:50Z",
    ),
    (
        HealthCheckFailed("database", "the server refuses connections", Kind.CONNECTION),
        "WARNING database: health check failed: the server refuses connections; "
        "it is checked again automatically; three failures in a row make the state unhealthy",
    ),
    (
        HealthCheckPassed("database", 3),
        "INFO database: health check passed: 3 checks had failed for 10 s, since 2026-09-21T14:15:10Z",
    ),
    (
        CommitUnknown("database", "GET /orders (app.orders:41)", "UPDATE orders SET"),
        "CRITICAL database: outcome of a commit unknown: the connection was lost during COMMIT: "
        "the transaction may or may not have happened, and was not run again; in GET /orders (app.orders:41); "
        "last statement UPDATE orders SET; check whether it happened before repeating it",
    ),
    (
        DatabaseReadOnly("database"),
        "WARNING database: read-only: it accepts no writes: it is a standby, or its disk is full; "
        f"reads succeed, writes fail; it is checked again automatically: {GUIDE} database_read_only",
    ),
    (
        DatabaseWritable("database"),
        "INFO database: accepts writes again: it was read-only for 10 s, since 2026-09-21T14:15:40Z",
    ),
    (
        DatabasePaused("database", 1, Act("ada", "failover")),
        "WARNING database: paused by an operator: by ada: failover; new scopes wait, each until its own deadline; "
        "1 scope is still open; `koo db resume` ends it",
    ),
    (
        DatabaseDraining("database", 2),
        "WARNING database: drained by an operator: new scopes are refused; 2 scopes are still open; "
        "`koo db resume` ends it",
    ),
    (
        DatabaseResumed("database"),
        "INFO database: resumed by an operator: new scopes begin again; "
        "they waited or were refused for 20 s, since 2026-09-21T14:16:00Z",
    ),
    (
        DatabaseRotated("database", 0),
        "INFO database: connections rotated by an operator: new scopes get new connections",
    ),
    (
        BillExceededHold("claude", "0.75", "0.5"),
        "CRITICAL claude: bill above its hold: a bill of 0.75 USD was above its worst case of 0.5 USD; "
        f"it is booked in full, and the budget may be overspent by the difference: {GUIDE} bill_above_hold",
    ),
    (
        StoreLost("state store", "the disk is full"),
        "CRITICAL state store: lost: the disk is full; "
        f"koo tries again every few seconds: {GUIDE} budget_local",
    ),
    (
        StoreFound("state store"),
        "INFO state store: found again: it was unreachable for 10 s, since 2026-09-21T14:16:50Z; "
        "what was spent during that time is now reported to it",
    ),
    (
        StoreForgot("state store", "1.25"),
        "CRITICAL state store: forgot: it is older than what this process reported: it was replaced, or has lost "
        "acknowledged writes; 1.25 USD that this process had booked were missing there, and are booked again; "
        "spending by processes that have ended since that copy is not in the budgets; "
        f"no money is granted for six seconds: {GUIDE} store_forgot",
    ),
    (
        ProcessRenamed("state store", "host:42:abcd"),
        "WARNING state store: name taken: another process used this one's name in the state store, "
        "or this one was written off; this process continues as host:42:abcd, and what it held is booked twice: "
        f"{GUIDE} process_renamed",
    ),
    (
        DeliveryFailed("webhook", "the receiver answered 500", 30.0),
        "WARNING webhook: alerts not delivered: the receiver answered 500; "
        "this channel delivers no alerts; next attempt at 2026-09-21T14:18:00Z (in 30 s); "
        "`koo alerts test` tries it now",
    ),
    (
        DeliveryGivenUp("webhook", "the receiver answered 500", 2),
        "CRITICAL webhook: alerts given up: the receiver answered 500; "
        "the message with 2 alerts will not be sent again: `koo alerts` lists them",
    ),
    (
        CircuitPrimed("claude/fable", "5 of 8 processes have it open"),
        "WARNING claude/fable: circuit primed: 5 of 8 processes have it open; "
        "one failure in this process will open it",
    ),
    (
        CircuitOpened("gemini", "5 failures in a row", 60.0, is_shadow=True),
        "CRITICAL gemini: circuit would open: 5 failures in a row; in shadow: it counts, and every call passes",
    ),
    (
        CircuitHalfOpened("gemini"),
        "WARNING gemini: circuit would be half open: in shadow: it counts, and every call passes",
    ),
    (CircuitClosed("gemini"), "INFO gemini: circuit closed: calls pass again"),
]
"""Every event once at least, ten seconds apart."""


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> EventLog:
    caplog.set_level(logging.INFO, "koo")
    return EventLog(StandingClock(WALL_S))


def test_the_line_of_each_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "koo")
    clock = StandingClock(WALL_S)
    log = EventLog(clock)
    for event, line in EXACT:
        caplog.clear()
        log.on_event(event)
        (record,) = caplog.records
        assert f"{record.levelname} {record.getMessage()}" == line
        clock.advance(10)


def test_every_event_has_a_line() -> None:
    assert set(LINES) == set(KINDS)
    assert {type(event) for event, _ in EXACT} == set(KINDS)


@pytest.mark.parametrize(
    "event", {type(event): event for event, _ in EXACT}.values(), ids=lambda event: type(event).__name__
)
def test_a_line_has_its_events_severity_name_and_source(
    log: EventLog, caplog: pytest.LogCaptureFixture, event: Event
) -> None:
    log.on_event(event)
    (record,) = caplog.records
    assert record.levelno == LEVELS[event.severity]
    assert vars(record)["service"] == event.source
    assert vars(record)["what"] == re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def test_an_events_values_are_facts_for_programs(log: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    token = request_id.set("0b2f")
    log.on_event(CircuitOpened("claude", "5 failures in a row", 60.0, FAILED))
    request_id.reset(token)
    (record,) = caplog.records
    assert {
        "what": "circuit_opened",
        "service": "claude",
        "cause": "5 failures in a row",
        "kind": "server_error",
        "status": 500,
        "since": "2026-09-21T14:13:20Z",
        "until": "2026-09-21T14:14:20Z",
        "request_id": "0b2f",
    }.items() <= vars(record).items()
    assert record.getMessage().endswith("[request 0b2f]")


def test_an_applications_own_event_is_logged_under_its_class_name(
    log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclass(frozen=True, slots=True)
    class OrderLost(Event):
        number: int

        severity = "warning"

    log.on_event(OrderLost("shop", 41))
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "shop: order lost")


HOSTILE = "x\x1b[2J\x9b\u202e\n2026-11-29 CRITICAL all is lost\u2028 sk-abcdefghijklmnopqrst postgres://u:hunter2@h/d "


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_events_line_is_a_single_line_without_secrets_whatever_it_contains(
    log: EventLog, caplog: pytest.LogCaptureFixture, kind: type[Event]
) -> None:
    words = {one.name: HOSTILE * 20 for one in fields(kind) if one.type in {"str", "str | None"}}
    numbers = {one.name: 5.0 for one in fields(kind) if str(one.type).startswith(("float", "int"))}
    other = {"kind": Kind.QUOTA} if "kind" in kind.__dataclass_fields__ else {}
    if "last_error" in kind.__dataclass_fields__:
        other["last_error"] = Failure(Kind.QUOTA, HOSTILE * 20, 429)  # type: ignore[assignment]
    log.on_event(kind(**{**words, **numbers, **other}))  # type: ignore[arg-type]
    (message,) = caplog.messages
    assert message.isprintable()
    assert "hunter2" not in message and "sk-abc" not in message
    assert len(message) < 1500


def test_the_number_of_remembered_beginnings_is_bounded(
    log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Model names come from callers, and a breaker that is dropped with its model never closes."""
    for number in range(2000):
        log.on_event(CircuitOpened(f"claude/{number}", "5 failures in a row", 60.0))
    caplog.clear()
    log.on_event(CircuitClosed("claude/0"))
    log.on_event(CircuitClosed("claude/1999"))
    assert ["it refused calls" in message for message in caplog.messages] == [False, True]


def test_lines_refer_only_to_what_an_installed_koo_contains() -> None:
    """Each kind that the lines name is in the package's runbook, and no line refers to a file of the repository."""
    source = Path(event_lines.__file__).read_text(encoding="utf-8")
    kinds = {*re.findall(r"\{GUIDE\}(\w+)", source), "database_unavailable", "circuit_open"}
    assert len(kinds) > 6 and kinds <= runbooks().keys()
    assert "docs/" not in source and event_lines.GUIDE == "koo runbook "
