"""`koo query`: the response on standard output, a summary on standard error, and an exit code for the outcome."""

from __future__ import annotations

import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from koo.testing.providers import FakeAnthropic, answer, error, hang, stream
from koo.web.answers import QueryAnswer
from tests.cli.running import Here, command, environment, settings_of
from tests.web.exact import check_exactly


def test_the_response_goes_to_standard_output_and_the_summary_to_standard_error(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        fake.script(answer("Paris.", input_tokens=20, output_tokens=4))
        code, out, err = here.run("query", "claude", "Capital of France?")
        assert (code, out) == (0, "Paris.\n")
        assert "20 tokens read, 4 written; $0.00008; " in err
        assert "claude claude-sonnet" in err
        assert fake.wants_stream(fake.queries[0])


def test_without_streaming_the_response_is_printed_when_complete(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        code, out, _ = here.run("query", "claude", "Capital of France?", "--no-stream")
        assert (code, out) == (0, "Paris.\n")
        assert not fake.wants_stream(fake.queries[0])


def test_options_reach_the_provider(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        wanted = [
            "--system",
            "One word.",
            "--max-tokens",
            "9",
            "--temperature",
            "0.5",
            "--model",
            "claude-haiku-4-5",
        ]
        code, _, err = here.run("query", "claude", "Capital of France?", *wanted)
        assert code == 0, err
        sent = fake.queries[0].body
        assert (sent["system"], sent["max_tokens"], sent["temperature"]) == ("One word.", 9, 0.5)
        assert sent["model"] == "claude-haiku-4-5"


def test_json_is_what_the_api_returns(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        code, out, err = here.run("query", "claude", "Capital of France?", "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        check_exactly(document, QueryAnswer)
        assert (document["response"], Decimal(document["cost"])) == ("Paris.", fake.billed_usd)


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_the_prompt_may_come_from_standard_input(
    here: Here, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Où est Paris ?".encode())))
        code, _, _ = here.run("query", "claude", *arguments)
        assert code == 0
        assert fake.queries[0].body["messages"][0]["content"] == "Où est Paris ?"


def test_input_that_is_not_text_is_not_a_prompt(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG\xff\xfe")))
    code, out, err = here.run("query", "local", "-")
    assert (code, out) == (2, "")
    assert "UTF-8" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nobody", "Hello?"], 2, "known services: "),
        (["nobody", "Hello?"], 2, "claude"),
        (["claude", "  "], 2, "the prompt is empty"),
        (["claude", "Hello?"], 1, "not configured"),
        (["claude", "Hello?", "--timeout", "-1"], 2, "timeout_s must be"),
        (["claude", "Hello?", "--max-tokens", "0"], 2, "--max-tokens"),
        (["claude", "Hello?", "--tempratur", "1"], 2, "--tempratur"),
        (["claude", "Hello?", "--on-limit", "pray"], 2, "--on-limit"),
        ([], 2, "service"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(
    here: Here, arguments: list[str], code: int, said: str
) -> None:
    ended, out, err = here.run("query", *arguments)
    assert (ended, out) == (code, "")
    assert said.lower() in err.lower()


def test_a_failure_is_one_sentence_without_the_prompt(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        fake.script(error(500, "api_error", message="secret prompt 4711"))
        code, out, err = here.run("query", "claude", "secret prompt 4711")
        assert (code, out) == (1, "")
        assert err.startswith("koo: claude: ") and err.count("\n") == 1
        assert "4711" not in err


def test_with_json_a_failure_is_a_problem_document(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        fake.script(error(429, "rate_limit_error", headers={"retry-after": "300"}))
        code, out, _ = here.run("query", "claude", "Hello?", "--json", "--on-limit", "refuse")
        problem = json.loads(out)["error"]
        assert (code, problem["kind"], problem["status"], problem["service"]) == (
            1,
            "throttled",
            429,
            "claude",
        )
        assert problem["retry_after_s"] >= 300


def test_a_fallback_answers_if_the_first_service_cannot(here: Here) -> None:
    with FakeAnthropic() as fake:
        here.set(settings_of(fake))
        code, out, err = here.run("query", "openai", "Hello?", "--fallback", "gemini", "--fallback", "claude")
        assert (code, out) == (0, "Paris.\n")
        assert "claude" in err


def test_an_invalid_setting_is_reported_before_anything_is_sent(here: Here) -> None:
    here.set({"AI_MAX_RETRIES": "-1"})
    code, _, err = here.run("query", "local", "Hello?")
    assert code == 2
    assert 'AI_MAX_RETRIES is "-1"' in err


# ── as a process ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("how", "before"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ()),
        (signal.SIGTERM, ("sh", "-c", 'trap "" INT; exec "$@"', "sh")),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM in a background job"],
)
def test_a_signal_ends_the_command_immediately_cancels_the_call_and_leaves_no_money_held(
    tmp_path: Path, how: signal.Signals, before: tuple[str, ...]
) -> None:
    with FakeAnthropic() as fake:
        fake.script(hang())
        process = _start(tmp_path, fake, "query", "claude", "Hello?", before=before)
        _until(lambda: bool(fake.queries), process)
        process.send_signal(how)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Traceback" not in err and "interrupted" in err
        with closing(sqlite3.connect(tmp_path / "data" / "koo-state.db")) as store:
            unspent = "SELECT sum(granted - back + over_granted - spent), sum(held) FROM koo_purses"
            assert store.execute(unspent).fetchone() == (0, 0)
        _until(lambda: fake.abandoned == 1, None)


def test_a_reader_that_closes_the_pipe_ends_the_command_without_a_message(tmp_path: Path) -> None:
    """`koo query … | head -1`."""
    with FakeAnthropic() as fake:
        fake.script(stream(["a line of an answer\n"] * 5000))
        process = _start(tmp_path, fake, "query", "claude", "Hello?")
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "a line of an answer\n"
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        process.wait(20)
        assert "Traceback" not in err and "BrokenPipe" not in err and "Exception" not in err


def _start(
    home: Path, fake: FakeAnthropic, *arguments: str, before: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, *command(*arguments)],
        env=environment(home, **settings_of(fake)),
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(condition: object, process: subprocess.Popen[str] | None) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.01)


def test_a_querys_result_is_printed_once_and_not_by_the_log_too(tmp_path: Path) -> None:
    with FakeAnthropic(strict=False) as fake:
        fake.script(error(401, "authentication_error"))
        done = subprocess.run(
            command("query", "claude", "Capital of France?"),
            env=environment(tmp_path, **settings_of(fake)),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "rejects the API key" in done.stderr
