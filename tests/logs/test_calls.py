"""Calls that fail or are refused: the first of a service and a kind has its line at once, the others are counted."""

from __future__ import annotations

import logging

import pytest

from koo.errors import CircuitOpen, Kind, ServiceFailed
from koo.logs.calls import RUNS_MAX, CallLog
from koo.logs.lines import request_id
from koo.testing.clock import WALL_S, StandingClock

FAILED = "claude: query failed (server_error): it failed (status 500, api_error); 2 attempts"


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock(WALL_S)


@pytest.fixture
def calls(clock: StandingClock, caplog: pytest.LogCaptureFixture) -> CallLog:
    caplog.set_level(logging.INFO, "koo")
    return CallLog(clock)


def failed(service: str = "claude") -> ServiceFailed:
    detail = {"status": 500, "type": "api_error"}
    return ServiceFailed(service, "it failed (status 500, api_error)", detail=detail)


def refused(again_s: float | None = 42.0) -> CircuitOpen:
    return CircuitOpen("claude", "the circuit is open after 5 failures in a row", again_s)


def fail(calls: CallLog, service: str = "claude") -> None:
    calls.failed(service, "query", failed(service), Kind.SERVER_ERROR, 2)


def test_the_first_is_logged_at_once_with_all_that_is_known(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("koo", "WARNING", FAILED)
    facts = {"what": "call_failed", "service": "claude", "kind": "server_error", "status": 500, "attempts": 2}
    assert facts.items() <= vars(record).items()


def test_a_refusal_says_when_the_next_attempt_may_be_made(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    calls.failed("claude", "query", refused(), Kind.CIRCUIT_OPEN, 0, "openai is called next")
    assert caplog.messages == [
        "claude: query refused (circuit_open): the circuit is open after 5 failures in a row; "
        "next attempt from 2026-09-21T14:14:02Z (in 42 s); openai is called next"
    ]


def test_those_that_follow_are_counted_and_told_at_the_end_of_the_minute(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(15):
        fail(calls)
        clock.advance(1)
        calls.tick()
    assert caplog.messages == [FAILED]
    clock.advance(45)
    calls.tick()
    calls.tick()
    assert caplog.messages[1:] == [
        "claude: queries failed (server_error): 14 more in the last 60 s; "
        "the last: it failed (status 500, api_error)"
    ]
    assert vars(caplog.records[1])["count"] == 14


def test_a_minute_without_one_is_the_end_and_the_next_one_is_logged_at_once(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    clock.advance(2)
    fail(calls)
    for seconds in (58, 60):
        clock.advance(seconds)
        calls.tick()
    assert caplog.messages[2:] == [
        "claude: queries failed (server_error): none for 60 s; "
        "2 in all, from 2026-09-21T14:13:20Z until 2026-09-21T14:13:22Z"
    ]
    assert caplog.records[-1].levelname == "INFO"
    fail(calls)
    assert caplog.messages[3:] == [FAILED]


def test_one_alone_needs_no_word_about_its_end(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    clock.advance(60)
    calls.tick()
    assert caplog.messages == [FAILED]


def test_each_service_and_each_kind_is_counted_by_itself(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    fail(calls, "openai")
    calls.failed("claude", "query", refused(), Kind.CIRCUIT_OPEN, 0)
    assert [message.split(":")[0] for message in caplog.messages] == ["claude", "openai", "claude"]


def test_what_was_counted_last_is_told_at_the_end(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    fail(calls)
    clock.advance(12)
    calls.close()
    assert "1 more in the last 12 s" in caplog.messages[-1]
    calls.close()
    assert len(caplog.messages) == 2


def test_the_request_that_it_failed_for_is_named_by_the_line_and_by_the_count(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    for one in ("first", "second"):
        token = request_id.set(one)
        fail(calls)
        request_id.reset(token)
    clock.advance(60)
    calls.tick()
    assert [message.rsplit(" [")[1] for message in caplog.messages] == ["request first]", "request second]"]
    assert [vars(record)["request_id"] for record in caplog.records] == ["first", "second"]


def test_names_that_callers_make_up_fill_neither_log_nor_memory(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(RUNS_MAX + 1000):
        fail(calls, f"made-up-{number}")
    assert len(caplog.messages) == RUNS_MAX + 1
    assert caplog.messages[-1].startswith("others: query failed")


def test_of_an_error_that_koo_did_not_make_only_the_class_is_named(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its text is somebody else's, and may hold a prompt or a key."""
    for _ in range(2):
        calls.failed("own", "operation", RuntimeError("secret 4711"), Kind.UNKNOWN, 1)
    clock.advance(60)
    calls.tick()
    assert caplog.messages == [
        "own: operation failed (unknown): it raised RuntimeError; 1 attempt",
        "own: operations failed (unknown): 1 more in the last 60 s; the last: RuntimeError",
    ]


def test_a_name_or_a_sentence_with_controls_is_cut_and_stays_one_line(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    name = "x\x1b[2J\u202egnp\u2028" + "y" * 500
    calls.failed(name, "query", ServiceFailed(name, "bad\nworse\x9b31m"), Kind.SERVER_ERROR, 1)
    (message,) = caplog.messages
    assert message.isprintable() and len(message) < 300


def test_a_failed_call_keeps_nothing_of_its_error(calls: CallLog) -> None:
    """Its traceback holds all that its caller's frames hold."""
    import gc

    errors = [failed(), failed()]
    for error in errors:
        calls.failed("claude", "query", error, Kind.SERVER_ERROR, 1)
    for error in errors:
        assert [one for one in gc.get_referrers(error) if one is not errors] == []
