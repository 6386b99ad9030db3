"""A command writes one JSON document whatever happens, and copes with streams that are closed, full or not UTF-8."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from koo.testing.providers import FakeAnthropic, answer
from tests.cli.running import Here, command, environment, settings_of

NOBODY = "http://127.0.0.1:9"
FULL = Path("/dev/full")


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "kind"),
    [
        (["status"], {}, 4, "no_server"),
        (["alerts"], {}, 4, "no_server"),
        (["reset", "all"], {}, 4, "no_server"),
        (["reset", ".."], {}, 2, "unknown_service"),
        (["config"], {"AI_MAX_RETRIES": "-1"}, 2, "not_configured"),
        (["status"], {"AI_MAX_RETRIES": "-1"}, 2, "not_configured"),
        (["query", "local", "Hello?"], {"AI_MAX_RETRIES": "-1"}, 2, "not_configured"),
        (["query", "nobody", "Hello?"], {}, 2, "unknown_service"),
        (["query", "claude", " "], {}, 2, "invalid_request"),
        (["query", "claude", "Hello?"], {}, 1, "not_configured"),
    ],
)
def test_with_json_a_failing_command_prints_a_document_too(
    here: Here, arguments: list[str], settings: dict[str, str], code: int, kind: str
) -> None:
    here.set({"KOO_URL": NOBODY} | settings)
    ended, out, err = here.run(*arguments, "--json")
    problem = json.loads(out)["error"]
    assert (ended, problem["kind"], err) == (code, kind, "")
    assert problem["detail"]


def test_an_unavailable_store_is_a_finding_without_log_lines(here: Here) -> None:
    here.set({"KOO_URL": NOBODY, "KOO_STATE_URL": "postgresql://u:hunter2@127.0.0.1:1/n"})
    code, out, err = here.run("doctor", "--json")
    found = [finding for finding in json.loads(out)["findings"] if finding["subject"] == "state store"]
    assert (code, err, found[0]["result"]) == (4, "", "problem")
    assert "hunter2" not in out


# ── as a process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def run(home: Path, redirected: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command with its streams redirected as a shell does it."""
    line = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command(*arguments)]
    return subprocess.run(
        line, env=environment(home, **more), cwd=home, capture_output=True, check=False, timeout=60
    )


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-", "<&-"])
@pytest.mark.parametrize(
    "arguments", [("query", "claude", "Hello?"), ("query", "claude", "Hello?", "--json")]
)
def test_nothing_is_written_to_a_closed_stream(
    tmp_path: Path, redirected: str, arguments: tuple[str, ...]
) -> None:
    with FakeAnthropic() as fake:
        done = run(tmp_path, redirected, *arguments, **settings_of(fake))
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr and b"ignored" not in done.stderr
        assert len(fake.queries) == 1


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    "arguments", [("config",), ("query", "claude", "Hello?"), ("--help",), ("--version",)]
)
def test_a_full_disk_is_reported_in_one_sentence(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with FakeAnthropic() as fake:
        done = run(tmp_path, f">{FULL}", *arguments, **settings_of(fake))
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "koo: No space left on device"
    assert b"Traceback" not in done.stderr


def test_a_file_that_a_variable_names_is_reported_with_the_variable(tmp_path: Path) -> None:
    with FakeAnthropic() as fake:
        gone = str(tmp_path / "gone" / "keys")
        done = run(tmp_path, "", "query", "claude", "Hello?", **settings_of(fake), SSLKEYLOGFILE=gone)
    assert done.stderr.decode() == f"koo: No such file or directory: {gone} (SSLKEYLOGFILE)\n"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_result_is_complete_even_if_messages_cannot_be_written(tmp_path: Path) -> None:
    with FakeAnthropic() as fake:
        done = run(tmp_path, f"2>{FULL}", "query", "claude", "Hello?", **settings_of(fake))
    assert (done.returncode, done.stdout) == (0, b"Paris.\n")


def test_a_terminal_without_utf_8_gets_what_it_can_show_and_json_loses_nothing(tmp_path: Path) -> None:
    said = "Zürich → 東京"
    with FakeAnthropic() as fake:
        fake.default = answer(said)
        plain = {**settings_of(fake), "PYTHONIOENCODING": "ascii"}
        assert run(tmp_path, "", "query", "claude", "Hello?", **plain).stdout == b"Z?rich ? ??\n"
        document = json.loads(run(tmp_path, "", "query", "claude", "Hello?", "--json", **plain).stdout)
    assert document["response"] == said


def test_an_argument_that_is_not_text_is_a_usage_error(tmp_path: Path) -> None:
    for arguments in (["query", "claude", "a\udcff"], ["query", "cl\udcff", "a"], ["reset", "cl\udcff/"]):
        done = run(tmp_path, "", *arguments, KOO_URL=NOBODY, ANTHROPIC_API_KEY="k")
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr and done.stderr.startswith(b"koo: ")
