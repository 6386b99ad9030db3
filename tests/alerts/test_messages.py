"""The content of a message in plain text: what is wrong, since when, what it refuses, what to do, and where to look."""

from __future__ import annotations

import json
from typing import Any

import pytest

from koo.alerts.kinds import KINDS
from koo.alerts.messages import ALONE, LISTED_MAX, Sender, compose
from koo.monitoring.runbook import runbook
from koo.notices import Notice

AT_S = 1_790_000_000.0
LINKED = Sender("https://koo.example", "https://koo.example")
UNLINKED = Sender("host-1")


def notice(**changes: Any) -> Notice:
    words: dict[str, Any] = {
        "key": "a1:firing",
        "what": "firing",
        "fingerprint": "service_down:ai:claude",
        "kind": "service_down",
        "severity": "critical",
        "component": "ai:claude",
        "message": "claude cannot be called: the provider refused the key",
        "started_at": AT_S,
        "data": {"refuses": "every call to claude", "next_attempt": None, "also": ["key_refused"]},
    }
    return Notice(**words | changes)


def text_of(*notices: Notice, sender: Sender = LINKED) -> str:
    return compose("k", notices, sender).text


def test_a_message_about_a_firing_alert_is_complete() -> None:
    message = compose("a1:firing", [notice()], LINKED)
    assert message.subject == (
        "[koo] critical: ai:claude: claude cannot be called: the provider refused the key"
    )
    lines = message.text.splitlines()
    assert lines[:5] == [
        "critical: Service down: ai:claude",
        "claude cannot be called: the provider refused the key",
        "",
        "Since:    2026-09-21 14:13:20 UTC",
        "Refuses:  every call to claude",
    ]
    assert lines[6] == "What to do"
    book = runbook("service_down")
    assert book is not None
    assert " ".join(lines[7:-4]) == " ".join(book.advice_for("ai:claude", ["key_refused"]).split())
    assert "run koo reset claude if the old key works again" in " ".join(lines)
    assert lines[-3:] == [
        "Look at:  https://koo.example/dashboard/#ai:claude",
        "Runbook:  https://koo.example/api/v1/runbook/service_down",
        "From:     https://koo.example",
    ]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("also", "first"),
    [
        (["key_refused"], "If the provider refused the key"),
        (["circuit_open"], "If its breaker opened"),
        (None, "If its breaker opened"),
    ],
)
def test_the_advice_begins_with_the_cause_of_this_alert(also: list[str] | None, first: str) -> None:
    message = compose("k", [notice(data={"also": also})], LINKED)
    assert f"What to do\n{first}" in message.text
    assert message.document["alerts"][0]["advice"].startswith(first)
    assert "refused the key" in message.text.partition("What to do")[2], "the rest follows"


def test_a_resolved_message_contains_the_duration_and_no_advice() -> None:
    message = compose("a1:resolved", [notice(what="resolved", ended_at=AT_S + 754)], LINKED)
    assert message.subject.startswith("[koo] resolved: critical: ai:claude: ")
    assert "Until:    2026-09-21 14:25:54 UTC (13 min)" in message.text
    assert "What to do" not in message.text and "Refuses" not in message.text


def test_the_messages_of_one_alert_share_a_thread() -> None:
    firing, resolved = notice(), notice(what="resolved", key="a1:resolved", ended_at=AT_S + 1)
    again = notice(key="b2:firing", started_at=AT_S + 100)
    threads = [compose(one.key, [one], LINKED).thread for one in (firing, resolved, again)]
    assert threads[0] == threads[1] != threads[2]


def test_without_a_public_url_a_message_has_paths_and_says_how_to_get_links() -> None:
    text = text_of(notice(), sender=UNLINKED)
    assert "Look at:  /dashboard/#ai:claude on the koo server (KOO_PUBLIC_URL would make it a link)" in text
    assert "Runbook:  /api/v1/runbook/service_down on the koo server" in text
    assert "http" not in text.replace(runbook_text(), "")
    assert compose("k", [notice()], UNLINKED).document["dashboard_url"] is None


def test_a_message_carries_the_epoch_of_its_sender() -> None:
    sent, again = (compose("k", [notice()], UNLINKED, epoch=epoch) for epoch in (7, 8))
    assert (sent.epoch, again.epoch, sent.document) == (7, 8, again.document)
    assert compose("k", [notice()], UNLINKED, is_alone=True).epoch is None


def runbook_text() -> str:
    book = runbook("service_down")
    return book.advice if book is not None else ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"refuses": "every call to claude"}, "Refuses:  every call to claude"),
        ({"refuses": ""}, "Refuses:  nothing: calls pass"),
        ({}, "Refuses:  every call to the service; with fallback the next service is called."),
    ],
)
def test_a_message_says_what_the_rule_refuses_or_else_what_the_kind_refuses(
    data: dict[str, object], said: str
) -> None:
    assert said in text_of(notice(data=data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["firing", "resolved", "reminder"])
def test_every_kind_can_be_put_into_a_message(kind: str, what: Any) -> None:
    ended_at = AT_S + 60 if what == "resolved" else None
    one = notice(kind=kind, what=what, severity=KINDS[kind].severity, ended_at=ended_at)
    message = compose("k", [one], LINKED)
    head = {"firing": f"{KINDS[kind].severity}: ", "resolved": "resolved: ", "reminder": "still: "}[what]
    assert message.text.startswith(f"{head}{KINDS[kind].title}: ai:claude")
    assert f"https://koo.example/api/v1/runbook/{kind}" in message.text
    assert what == "resolved" or "What to do" in message.text
    (told,) = message.document["alerts"]
    assert told["advice"] and told["runbook_url"].endswith(kind)
    json.dumps(message.document, allow_nan=False)


def test_an_unknown_kind_can_be_put_into_a_message_too() -> None:
    """Another process on the same store may be newer."""
    message = compose("k", [notice(kind="moon_full", fingerprint="moon_full:ai:claude")], LINKED)
    assert message.text.startswith("critical: moon full: ai:claude")
    assert message.document["alerts"][0]["advice"] == ""


def test_a_test_message_says_only_that_it_is_a_test() -> None:
    message = compose("k", [notice(what="test", kind="test", message="nothing is wrong")], UNLINKED)
    assert (message.subject, message.text) == (
        "[koo] test: nothing is wrong",
        "nothing is wrong\n\nFrom:     host-1\n",
    )


def test_several_alerts_are_listed_worst_first_with_one_line_of_advice_per_kind() -> None:
    low = notice(
        key="b2", severity="warning", kind="circuit_recovering", component="database", message="testing"
    )
    over = notice(key="c3", what="resolved", ended_at=AT_S + 9)
    message = compose("together-1", [over, low, notice(), notice(component="ai:openai")], LINKED)
    assert message.subject == (
        "[koo] 4 alerts (2 critical, 1 warning, 1 resolved): ai:claude, ai:openai, database"
    )
    assert message.text.startswith(
        "4 alerts (2 critical, 1 warning, 1 resolved): ai:claude, ai:openai, database\n\n- "
    )
    rows = [line for line in message.text.splitlines() if line.startswith("- ")]
    assert [row.split(":")[0] for row in rows[:4]] == ["- critical", "- critical", "- warning", "- resolved"]
    assert rows[4:] == [
        "- Service down: https://koo.example/api/v1/runbook/service_down",
        "- Recovery is being tested: https://koo.example/api/v1/runbook/circuit_recovering",
    ]
    assert message.document["type"] == "koo.alerts"
    assert [one["key"] for one in message.document["alerts"]] == ["c3", "b2", "a1:firing", "a1:firing"]


def test_a_message_about_very_many_alerts_stays_readable() -> None:
    many = [notice(key=f"n{number}", component=f"ai:s{number}") for number in range(200)]
    message = compose("k", many, LINKED)
    assert message.subject == "[koo] 200 alerts (200 critical): ai:s0, ai:s1, ai:s2 and 197 more"
    assert f"… and {200 - LISTED_MAX} more" in message.text
    assert len(message.text.splitlines()) < LISTED_MAX + 15
    assert len(message.document["alerts"]) == 200


def test_the_same_notices_make_an_identical_message() -> None:
    assert compose("k", [notice()], LINKED) == compose("k", [notice()], LINKED)


def test_a_message_sent_without_the_store_says_so() -> None:
    message = compose("k", [notice()], LINKED, is_alone=True)
    assert message.text.rstrip().endswith(ALONE) and message.document["note"] == ALONE


EVIL = "x\r\nBcc: all@example.com\x1b[31m\u202eevil\u2028\x00\ud800<!channel><b>"


def test_external_text_is_reduced_to_one_plain_line_everywhere() -> None:
    one = notice(
        component=EVIL, message=EVIL, fingerprint=f"service_down:{EVIL}", data={EVIL: [EVIL], "n": 1}
    )
    for message in (compose("k", [one], LINKED), compose("k", [one, notice()], LINKED)):
        assert message.subject.isprintable()
        assert all(line.isprintable() for line in message.text.split("\n"))
        assert "\nBcc:" not in message.text
        shown = json.dumps(message.document, ensure_ascii=False)
        assert shown.isprintable() and shown.encode()


def test_an_overlong_name_does_not_make_an_overlong_message() -> None:
    long = "x" * 1_000_000
    message = compose("k", [notice(component=long, message=long, data={"a": [long] * 1000})], LINKED)
    assert len(message.subject) < 300
    assert len(message.text) < 10_000
    assert len(json.dumps(message.document)) < 100_000


def test_values_that_json_cannot_represent_are_omitted() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    message = compose("k", [notice(data={"rate": float("nan"), "deep": deep})], LINKED)
    assert message.document["alerts"][0]["data"]["rate"] is None
    json.dumps(message.document, allow_nan=False)
