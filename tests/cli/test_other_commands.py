"""`koo config`, `koo doctor`, `koo model install`: what is in force, what is missing, what to do."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from koo.ai.local_model import find_model
from koo.ai.local_server import SERVERS
from koo.monitoring.exports import DASHBOARD, RULES, text_of
from koo.monitoring.runbook import runbooks
from koo.testing.providers import FakeAnthropic, error
from tests.cli.running import Here, settings_of


def test_config_shows_the_settings_in_force_and_their_sources(here: Here) -> None:
    here.set({"AI_MAX_RETRIES": "7", "ANTHROPIC_API_KEY": "sk-secret-4711", "KOO_PROT": "1"})
    (here.home / ".env").write_text("DATABASE_URL=postgresql://user:hunter2@host/name\n")
    code, out, err = here.run("config")
    assert code == 0
    assert "AI_MAX_RETRIES" in out and "7  [environment]" in out
    assert "[.env]" in out and "[default]" in out
    assert "4711" not in out + err and "hunter2" not in out + err
    code, out, _ = here.run("config", "--json", "--only-set")
    document = json.loads(out)
    assert {"variable", "value", "source", "meaning", "allowed"} <= document["settings"][0].keys()
    assert {row["source"] for row in document["settings"]} == {"environment", ".env"}
    assert "KOO_PROT" in document["unknown_variables"][0] and "KOO_PORT" in document["unknown_variables"][0]
    assert "4711" not in out and "hunter2" not in out


def findings(here: Here) -> tuple[int, dict[str, list[dict[str, str]]]]:
    code, out, _ = here.run("doctor", "--json")
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(out)["findings"]:
        found.setdefault(finding["subject"], []).append(finding)
    return code, found


def test_doctor_checks_everything_and_gives_advice(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake, KOO_URL="http://127.0.0.1:9"))
        _, found = findings(here)
        for subject in ("configuration", "permissions", "disk", "clock", "database"):
            assert [finding["result"] for finding in found[subject]] == ["ok"], subject
        # A test's home is usually in a temporary folder, which is a separate finding.
        assert {finding["result"] for finding in found["state store"]} <= {"ok", "note"}
        assert [finding["result"] for finding in found["claude"]] == [
            "ok",
            "ok",
        ]  # it responds; its price is known
        assert found["openai"][0]["result"] == "note"
        assert "OPENAI_API_KEY" in found["openai"][0]["advice"]
        assert found["server"][0]["result"] == "note"
        assert fake.queries == []  # nothing was billed


def test_doctor_finds_what_is_wrong(here: Here) -> None:
    with FakeAnthropic(strict=False) as fake:
        fake.default = error(401, "authentication_error")
        here.set(
            settings_of(fake, ANTHROPIC_API_KEY="wrong", DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/n")
        )
        env = here.home / ".env"
        env.write_text("KOO_PROT=1\n")
        env.chmod(0o644)
        code, found = findings(here)
        assert code == 4
        assert found["database"][0]["result"] == "problem"
        assert found["claude"][0]["result"] == "problem"
        assert (
            found["configuration"][1]["result"] == "warning"
            and "KOO_PORT" in found["configuration"][1]["found"]
        )
        assert "chmod 600" in found["permissions"][0]["advice"]
        assert "hunter2" not in json.dumps(found)
        assert stat.S_IMODE(env.stat().st_mode) == 0o644  # it changes nothing


def test_doctor_generates_a_token_with_the_local_model_before_it_reports_ok(
    here: Here, tmp_path: Path
) -> None:
    model = find_model()
    if model is None:
        pytest.skip("the model is not installed")
    here.set(settings_of(KOO_URL="http://127.0.0.1:9"))
    _, found = findings(here)
    assert found["local"][0]["result"] == "ok"
    assert found["local"][0]["found"] == "SmolLM2-135M-Instruct.Q4_1 was loaded and responds"
    half = tmp_path / "half.gguf"
    with model.open("rb") as whole:
        half.write_bytes(whole.read(3_000_000))
    here.set({"AI_SERVICES__LOCAL__MODEL": str(half)})
    code, found = findings(here)
    assert (code, found["local"][0]["result"]) == (4, "problem")
    assert "could not be loaded" in found["local"][0]["found"]


def test_without_the_engine_doctor_says_so_and_no_model_is_installed(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    SERVERS.stop()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    here.set(settings_of(KOO_URL="http://127.0.0.1:9"))
    _, found = findings(here)
    assert [check["result"] for check in found["local"]] == ["note"]
    assert "pip install -U '/path/to/koo[local]', then koo model install" in found["local"][0]["found"]
    # If it looked for the model first, it would find it and report success.
    code, out, err = here.run("model", "install")
    assert (code, out) == (1, "")
    assert "its engine xllamacpp is not installed" in err
    code, _, err = here.run("query", "local", "Hello?")
    assert code == 1 and "its engine xllamacpp is not installed" in err


def test_doctor_names_the_setting_that_prevents_all_other_checks(here: Here) -> None:
    here.set({"DATABASE_POOL_SIZE": "0"})
    code, out, _ = here.run("doctor")
    assert code == 4
    assert out.startswith("PROBLEM  configuration: DATABASE_POOL_SIZE")


def test_an_existing_model_is_not_installed_again(here: Here) -> None:
    path = find_model()
    if path is None:
        pytest.skip("the model is not installed")
    assert here.run("model", "install")[:2] == (0, f"{path}\n")
    code, out, _ = here.run("model", "install", "--json")
    assert (code, Path(json.loads(out)["path"])) == (0, path)


def test_the_runbook_needs_no_server(here: Here) -> None:
    here.set({"KOO_URL": "http://127.0.0.1:9"})
    code, out, _ = here.run("runbook", "circuit_open")
    assert code == 0 and out.startswith("Circuit breaker open (circuit_open, critical)\nBegins: ")
    code, out, _ = here.run("runbook")
    assert code == 0 and {line.split()[0] for line in out.splitlines()} == set(runbooks())
    code, out, _ = here.run("runbook", "circuit_open", "--json")
    assert [one["kind"] for one in json.loads(out)["kinds"]] == ["circuit_open"]
    code, _, err = here.run("runbook", "curcuit_open")
    assert code == 2 and "unknown kind of alert: curcuit_open; `koo runbook` lists them" in err


def test_rules_and_dashboard_are_printed_completely_without_a_server(here: Here) -> None:
    for words, name in ((("prometheus", "rules"), RULES), (("grafana", "dashboard"), DASHBOARD)):
        code, out, err = here.run(*words)
        assert (code, out, err) == (0, text_of(name), "")
