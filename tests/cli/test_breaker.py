"""`koo breaker`: why it opened, and operators' overrides, even if the server was killed while the breaker was open."""

from __future__ import annotations

import json
import signal
import urllib.error
from email.message import Message
from pathlib import Path

import pytest

from koo.monitoring.incident_shapes import OneIncident
from koo.testing.providers import FakeAnthropic, error
from tests.cli.running import Here, serving, settings_of
from tests.cli.test_serve import question
from tests.web.exact import check_exactly

PATIENCE_S = 30.0


def fails(url: str, times: int) -> None:
    for _ in range(times):
        refused(url)


def refused(url: str) -> tuple[Message, str]:
    """The headers of a refusal, and its message."""
    with pytest.raises(urllib.error.HTTPError) as failed:
        question(url)
    with failed.value as answer:
        return answer.headers, str(json.loads(answer.read())["detail"])


def test_a_server_killed_during_an_outage_leaves_the_reason(here: Here, tmp_path: Path) -> None:
    with FakeAnthropic() as fake:
        with serving(tmp_path, **settings_of(fake)) as (url, process):
            here.set({"KOO_URL": url})
            fake.script(*[error(500, "api_error")] * 5)
            fails(url, 8)
            code, out, _ = here.run("breaker", "why", "claude", "--json")
            assert code == 0
            check_exactly(json.loads(out), OneIncident)
            before = json.loads(out)["incident"]
            assert (before["state"], before["refused"], len(before["calls"])) == ("open", 3, 5)
            assert [call["status"] for call in before["calls"]] == [500] * 5
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
        with serving(tmp_path, **settings_of(fake)) as (url, _):
            here.set({"KOO_URL": url})
            code, out, _ = here.run("breaker", "why", before["id"], "--json")
            after = json.loads(out)["incident"]
            known = ("id", "opened_at", "trigger", "calls", "steps", "reason", "refused", "process")
            assert code == 0 and {key: after[key] for key in known} == {key: before[key] for key in known}
            assert after["closed_at"] is None
            code, out, _ = here.run("breaker", "why", "claude", "--markdown")
            assert (
                code == 0
                and "5 failures in a row, and 5 open it." in out
                and out.count("| failed | server") == 5
            )
            assert "| circuit open |" not in here.run("breaker", "list")[1], (
                "the new process has its own breaker"
            )


def test_an_operators_reason_is_shown_to_refused_callers(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    with FakeAnthropic() as fake, serving(tmp_path, **settings_of(fake)) as (url, _):
        here.set({"KOO_URL": url})
        code, out, _ = here.run("breaker", "trip", "claude", "--reason", "it returns nonsense")
        assert code == 0 and "is forced open until it is reset" in out
        headers, sentence = refused(url)
        assert "forced open by ada@" in sentence and "it returns nonsense" in sentence
        assert "try again" not in sentence and "Retry-After" not in headers
        assert "forced open" in here.run("breaker", "list")[1]
        here.run("breaker", "trip", "claude", "--reason", "it returns nonsense", "--for", "10m")
        assert 500 < int(refused(url)[0]["Retry-After"]) <= 602
        code, out, _ = here.run("breaker", "reset", "claude", "--reason", "mended")
        assert code == 0 and "is closed" in out and question(url)["response"]
        code, out, _ = here.run("breaker", "why", "claude")
        assert code == 0 and "an operator forced it open" in out and "refused: 2 calls" in out
        assert "reset by ada@" in out and "mended" in out
        assert here.run("breaker", "trip", "nobody", "--reason", "x")[0] == 2
        assert here.run("breaker", "trip", "a/../b", "--reason", "x")[0] == 2
        assert here.run("breaker", "trip", "claude", "--reason", "x", "--for", "soon")[0] == 2
        code, _, err = here.run("breaker", "why", "database")
        assert code == 2 and "has not opened" in err
        code, _, err = here.run("breaker", "why", "clade")
        assert code == 2 and "there is no breaker of that name; the known ones are: database, claude" in err


def test_why_names_a_refused_key_although_the_breaker_never_opened(here: Here, tmp_path: Path) -> None:
    with FakeAnthropic() as fake, serving(tmp_path, **settings_of(fake)) as (url, _):
        here.set({"KOO_URL": url})
        fake.fails(401)
        refused(url)
        code, _, err = here.run("breaker", "why", "claude")
        assert (
            code == 2
            and "the breaker of claude has not opened in the last 30 days; it is circuit_open: " in err
        )
        assert "the provider refused the key; last error auth" in err
        here.run("breaker", "trip", "claude", "--reason", "invoice")
        assert here.run("breaker", "list")[1].splitlines()[2].split()[:5] == [
            "claude/claude-sonnet-5-5", "forced", "open", "forced", "open",
        ], "since when is not shown: it has not opened because of failures"  # fmt: skip


def test_a_breaker_in_shadow_counts_and_refuses_nothing(here: Here, tmp_path: Path) -> None:
    with FakeAnthropic() as fake, serving(tmp_path, **settings_of(fake)) as (url, _):
        here.set({"KOO_URL": url})
        assert here.run("breaker", "shadow", "claude", "--reason", "a new threshold")[0] == 0
        fake.script(*[error(500, "api_error")] * 7)
        fails(url, 7)
        assert len(fake.queries) == 7, "none was refused"
        assert "circuit open (shadow)" in here.run("breaker", "list")[1]
        status = here.run("status")[1]
        assert "in shadow: it counts but refuses nothing" in status
        assert "a new threshold; until it is turned off or reset" in " ".join(status.split())
        health = json.loads(here.run("status", "--json")[1])
        assert health["ai_services"]["services"]["claude"]["state"] == "unhealthy", "calls pass"
        assert health["severity"] != "critical"
        _, out, _ = here.run("breaker", "why", "claude")
        assert "in shadow: it refused nothing, and would have refused 2 calls" in out
        here.run("breaker", "shadow", "claude", "--off", "--reason", "seen enough")
        assert "circuit is open" in refused(url)[1] and len(fake.queries) == 7
