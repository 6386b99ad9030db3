"""`koo alerts …` against a running server: list, history, acknowledge, silence, why, test."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from koo.alert_acts import HOLDS_S_MAX
from koo.cli.terminal import FOR_S_MAX
from koo.cli.words import duration
from koo.testing.providers import FakeAnthropic, error
from tests.cli.running import Here, serving, settings_of
from tests.cli.test_serve import question

OUTAGE = {"AI_CIRCUIT_BREAKER_FAILURE_THRESHOLD": "3"}


@contextmanager
def receiver(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook: its URL and what it received."""
    came: list[dict[str, Any]] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def break_claude(fake: FakeAnthropic, url: str) -> None:
    fake.script(*[error(500, "api_error")] * 3)
    for _ in range(3):
        with pytest.raises(urllib.error.HTTPError):
            question(url)


def document(here: Here, *arguments: str) -> Any:
    return json.loads(here.run("alerts", *arguments, "--json")[1])


def until_listed(here: Here) -> dict[str, Any]:
    """Return claude's alert as soon as it is listed."""
    for _ in range(500):
        found = [one for one in document(here)["alerts"] if one["component"].startswith("ai:claude")]
        if found:
            alert: dict[str, Any] = found[0]
            return alert
        time.sleep(0.02)
    raise AssertionError("the outage was never listed")


def test_an_alert_is_acknowledged_silenced_and_explained(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command shows what the others recorded about the alert, with the operator and the reason."""
    monkeypatch.setenv("LOGNAME", "ada")
    with (
        receiver() as (hook, came),
        FakeAnthropic() as fake,
        serving(here.home, **settings_of(fake, **OUTAGE, KOO_ALERT_WEBHOOK=hook)) as (url, _),
    ):
        here.set({"KOO_URL": url})
        assert here.run("alerts", "silences")[:2] == (0, "no silences\n")
        assert here.run("alerts", "history")[:2] == (0, "no alerts\n")
        break_claude(fake, url)
        alert = until_listed(here)
        code, out, err = here.run("alerts")
        assert code == 4 and alert["id"] in out and "firing" in out
        assert f"what to do about {alert['kind']}: {url}{alert['runbook']}" in err

        code, out, _ = here.run("alerts", "ack", alert["id"], "--for", "2h", "--reason", "the pooler [/x]")
        assert code == 0 and "is acknowledged" in out
        assert "acknowledged by ada@" in here.run("alerts")[1]
        assert until_listed(here)["acknowledged"]["note"] == "the pooler [/x]"
        assert here.run("alerts", "unack", alert["id"], "--reason", "not mine")[0] == 0
        assert "acknowledged" not in here.run("alerts")[1]

        code, out, _ = here.run("alerts", "silence", "ai:*", "--for", "30m", "--reason", "a drill")
        assert code == 0 and "ai:*" in out
        _, out, _ = here.run("alerts", "silences")
        row = out.splitlines()[1]
        assert "ai:*" in row and "ada@" in row and "a drill" in row
        assert "silenced by ada@" in here.run("alerts")[1]
        silence = document(here, "silences")["silences"][0]["id"]
        assert here.run("alerts", "unsilence", silence, "--reason", "drill over")[0] == 0
        assert here.run("alerts", "silences")[1] == "no silences\n"

        _, out, _ = here.run("alerts", "history", "--since", "1h")
        assert alert["id"] in out and alert["message"] in out and "active" in out
        while not came:
            time.sleep(0.01)
        for _ in range(500):
            why = document(here, "why", alert["id"])
            if [one for one in why["deliveries"] if one["state"] == "sent"]:
                break
            time.sleep(0.02)
        code, out, _ = here.run("alerts", "why", alert["id"])
        assert code == 0 and "notified at" in out and "sent" in out and "webhook" in out
        assert here.run("alerts", "why")[0] == 0
    log = [line for line in (here.home / "serve.log").read_text().splitlines() if "ada@" in line]
    for said in ("the pooler [/x]", "not mine", "a drill", "drill over"):
        assert [line for line in log if said in line], said


def test_without_a_channel_the_command_alerts_why_says_so(here: Here) -> None:
    with FakeAnthropic() as fake, serving(here.home, **settings_of(fake, **OUTAGE)) as (url, _):
        here.set({"KOO_URL": url})
        break_claude(fake, url)
        alert = until_listed(here)
        code, out, _ = here.run("alerts", "why", alert["id"])
        assert code == 0 and "KOO_ALERT_" in out
        code, _, err = here.run("alerts", "test")
        assert code != 0 and "KOO_ALERT_" in err


@pytest.mark.parametrize(("status", "code"), [(200, 0), (500, 1)])
def test_a_test_message_reports_whether_it_was_accepted(here: Here, status: int, code: int) -> None:
    with receiver(status) as (hook, came), serving(here.home, KOO_ALERT_WEBHOOK=hook) as (url, _):
        here.set({"KOO_URL": url})
        ended, out, err = here.run("alerts", "test", "--channel", "webhook")
        assert ended == code and "webhook" in out and len(came) == 1
        assert ("failed" in out and "not accepted by webhook" in err) is (code == 1)
        ended, out, _ = here.run("alerts", "test", "--json")
        assert ended == code and json.loads(out)["results"][0]["sent"] is (code == 0)


def test_an_invalid_argument_is_reported_in_one_sentence(here: Here) -> None:
    assert FOR_S_MAX == HOLDS_S_MAX
    with serving(here.home) as (url, _):
        here.set({"KOO_URL": url})
        for arguments, said in (
            (("silence", "--reason", "x"), "name a component or a --kind"),
            (("silence", "database", "--reason", "x", "--for", "soon"), "--for is 'soon'; give a duration"),
            (("silence", "database"), "--reason"),
            (("silence", "database", "--reason", "x", "--for", "900d"), "such as 10m, 2h or 1d, at most 30d"),
            (("ack", "nobody"), "no alert with that id"),
            (("ack", "../silences"), "is not an id"),
            (("unsilence", "nobody"), "no silence"),
            (("why", "nobody"), "no alert has the id nobody"),
            (("history", "--since", "yesterday"), "--since is 'yesterday'"),
            (("history", "--limit", "0"), "--limit"),
            (("test", "--channel", "pigeon"), "channel"),
        ):
            code, out, err = here.run("alerts", *arguments)
            assert (code, out) == (2, "") and said in err and err.count("\n") == 1, (arguments, err)
            code, out, err = here.run("alerts", *arguments, "--json")
            assert (code, err) == (2, "") and json.loads(out)["error"]["detail"], arguments


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("30m", 1800), ("30min", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5 d", None), ("1.5d", 129_600),
        ("2w", 1_209_600), ("90", None), ("", None), ("h", None), ("-2h", None), ("2 h", None),
    ],
)  # fmt: skip
def test_a_duration_is_written_with_a_unit(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds
