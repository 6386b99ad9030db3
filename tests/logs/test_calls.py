"""Failed and refused calls: the first of a service and kind is logged immediately, the others are counted."""

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


def test_the_first_failure_is_logged_immediately_with_all_facts(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("koo", "WARNING", FAILED)
    facts = {"what": "call_failed", "service": "claude", "kind": "server_error", "status": 500, "attempts": 2}
    assert facts.items() <= vars(record).items()


def test_a_refusals_line_has_the_time_of_the_next_attempt(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    calls.failed("claude", "query", refused(), Kind.CIRCUIT_OPEN, 0, "openai is called next")
    assert caplog.messages == [
        "claude: query refused (circuit_open): the circuit is open after 5 failures in a row; "
        "next attempt from 2026-09-21T14:14:02Z (in 42 s); openai is called next"
    ]


def test_following_failures_are_counted_and_logged_at_the_end_of_the_minute(
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


def test_a_minute_without_failures_ends_a_run_and_the_next_failure_is_logged_immediately(
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


def test_a_single_failure_has_no_line_about_its_end(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    clock.advance(60)
    calls.tick()
    assert caplog.messages == [FAILED]


def test_each_service_and_kind_is_counted_separately(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    fail(calls, "openai")
    calls.failed("claude", "query", refused(), Kind.CIRCUIT_OPEN, 0)
    assert [message.split(":")[0] for message in caplog.messages] == ["claude", "openai", "claude"]


def test_the_last_count_is_logged_on_close(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    fail(calls)
    fail(calls)
    clock.advance(12)
    calls.close()
    assert "1 more in the last 12 s" in caplog.messages[-1]
    calls.close()
    assert len(caplog.messages) == 2


def test_the_line_and_the_count_contain_the_request_id(
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


def test_invented_names_fill_neither_the_log_nor_the_memory(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(RUNS_MAX + 1000):
        fail(calls, f"made-up-{number}")
    assert len(caplog.messages) == RUNS_MAX + 1
    assert caplog.messages[-1].startswith("others: query failed")


def test_only_the_class_of_a_foreign_error_is_logged(
    calls: CallLog, clock: StandingClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The error's text is not koo's own, and may contain a prompt or a key."""
    for _ in range(2):
        calls.failed("own", "operation", RuntimeError("secret 4711"), Kind.UNKNOWN, 1)
    clock.advance(60)
    calls.tick()
    assert caplog.messages == [
        "own: operation failed (unknown): it raised RuntimeError; 1 attempt",
        "own: operations failed (unknown): 1 more in the last 60 s; the last: RuntimeError",
    ]


def test_a_name_or_sentence_with_control_characters_is_cut_to_one_plain_line(
    calls: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    name = "x\x1b[2J\u202egnp\u2028" + "y" * 500
    calls.failed(name, "query", ServiceFailed(name, "bad\nworse\x9b31m"), Kind.SERVER_ERROR, 1)
    (message,) = caplog.messages
    assert message.isprintable() and len(message) < 300


def test_the_call_log_keeps_no_reference_to_an_error(calls: CallLog) -> None:
    """The error's traceback would keep everything in its caller's frames alive."""
    import gc

    errors = [failed(), failed()]
    for error in errors:
        calls.failed("claude", "query", error, Kind.SERVER_ERROR, 1)
    for error in errors:
        assert [one for one in gc.get_referrers(error) if one is not errors] == []
