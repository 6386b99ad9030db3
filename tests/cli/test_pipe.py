"""Commands print whole words, one line per entry and no control characters for programs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from koo.cli.text import json_text, name, one_line, shown
from tests.cli.canned import (
    ALERT,
    AT,
    EVIL,
    MESSAGE,
    MODEL,
    NAME,
    NOW,
    alerts_of,
    canned,
    error_of,
    health_of,
    service_of,
)
from tests.cli.running import Here, command, environment

# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_alert_is_one_line_whatever_the_windows_width(here: Here) -> None:
    """Square brackets are not markup: they neither vanish nor end the command with a traceback."""
    long = MESSAGE + " x" * 2000
    with canned(alerts_of(ALERT, {**ALERT, "message": long, "type": "warning"})) as url:
        here.set({"KOO_URL": url, "COLUMNS": "40"})
        code, out, _ = here.run("alerts")
    lines = out.splitlines()
    assert code == 4 and len(lines) == 3
    assert lines[1].split()[:3] == ["2026-11-28T14:07:06Z", "critical", MODEL]
    assert f" {MESSAGE} " in lines[1] and f" {long} " in lines[2]
    assert lines[1].split()[-2:] == ["firing", ALERT["id"]]


def test_an_alert_shows_operators_acts_and_its_runbook(here: Here) -> None:
    """The alert's line has the operators' acts, and standard error has the runbook, so a pipe gets only alerts."""
    silence = {"by": "bob@host", "ends_at": AT}
    alert = {
        **ALERT,
        "acknowledged": {"by": "ada@host"},
        "silenced": silence,
        "runbook": "/runbook/circuit_open",
    }
    with canned(alerts_of(alert, {**alert, "message": "again"})) as url:
        here.set({"KOO_URL": url})
        _, out, err = here.run("alerts")
    assert "firing, acknowledged by ada@host, silenced by bob@host until 2026-11-28T14:07:06Z" in out
    assert err == f"what to do about circuit_open: {url}/runbook/circuit_open\n"


def test_an_older_servers_alerts_are_listed_too(here: Here) -> None:
    new = ("id", "phase", "acknowledged", "silenced")
    with canned(alerts_of({key: value for key, value in ALERT.items() if key not in new})) as url:
        here.set({"KOO_URL": url})
        code, out, _ = here.run("alerts")
    assert code == 4 and MESSAGE in out and "firing" in out


def test_status_has_one_line_per_service_and_one_per_reason(here: Here) -> None:
    """The lines include the next attempt, times with their zone, and numbers as on the page."""
    open_ = {"circuit_breaker_state": "open", "next_attempt": AT}
    quota = f"the provider's quota is used up until {AT}"
    why = "5 failures in a row [/x], the last: status 500, api_error"
    said = error_of("status 500, api_error: boom")
    free: dict[str, Any] = {"override": "none"}
    refused = {**free, "key_refused": "it refuses the key", "key_checked_at": AT}
    services = {
        NAME: service_of(state="circuit_open", reason=why, health=open_, last_error=said),
        "claude": service_of(state="rate_limited", reason=quota),
        "openai": service_of(
            state="circuit_open", reason="the provider refused the key", models={"m": refused, "n": free}
        ),
        "lab": service_of(),
    }
    with canned(health_of("degraded", **services)) as url:
        here.set({"KOO_URL": url, "COLUMNS": "40"})
        code, out, _ = here.run("status")
    next_attempt = "next attempt 2026-11-28T14:07:06Z (in 43 s)"
    lines = out.splitlines()
    assert code == 3
    assert f"koo at {url}: degraded at 2026-11-28T14:06:24Z" in lines
    assert (
        "database: circuit_open on db.example:5432/shop, 1 of 30 connections in use — 5 failures in a row; "
        f"last error connection: the server refuses connections, 60 s ago; {next_attempt}"
    ) in lines
    error = "last error server_error: status 500, api_error: boom, 60 s ago"
    assert f"{NAME}: {why}; {error}; {next_attempt}" in lines
    assert (
        "claude: the provider's quota is used up until 2026-11-28T14:07:06Z (in 43 s)"
        f"; {next_attempt}" in lines
    )
    check = f"an unbilled check that succeeds, the next one {next_attempt.removeprefix('next attempt ')}, or a reset"
    assert f"openai: the provider refused the key; next attempt after {check}" in lines
    assert next(line for line in lines if line.startswith("openai ")).split()[:4] == [
        "openai", "circuit_open", "key", "refused",
    ]  # fmt: skip
    row = next(line for line in lines if line.startswith(NAME) and "5 failures" not in line)
    assert row.split() == f"{NAME} circuit_open open 8 5 31 1.9 ms $0.000082 of $10.00".split()
    assert "what to do: koo alerts" in lines


def test_a_warning_while_all_is_healthy_leads_to_the_alerts_too(here: Here) -> None:
    documents: Any = health_of("healthy", lab=service_of())
    for severity, leads in ((None, False), ("warning", True)):
        documents["/monitoring/health"]["severity"] = severity
        with canned(documents) as url:
            here.set({"KOO_URL": url})
            code, out, _ = here.run("status")
        assert code == 0 and ("what to do: koo alerts" in out) is leads


def test_status_shows_what_is_wrong_with_koo_itself(here: Here) -> None:
    """The status has lines about koo's store, disks, shortages and overdue work, and none if nothing is wrong."""
    documents: Any = health_of("degraded", lab=service_of())
    well = {
        "state_store": {"reachable": True, "reason": "", "lost_at": None, "refuses": []},
        "disks": [{"name": "home", "state": "ok", "free_bytes": 2**33, "total_bytes": 2**34}],
        "short_of": "",
        "late": [],
        "blocked_s": 0.0,
    }
    ill = {
        "state_store": {"reachable": False, "reason": "a full disk", "lost_at": AT, "refuses": ["lab"]},
        "disks": [{"name": "home", "state": "nearly_full", "free_bytes": 2**29, "total_bytes": 2**34}],
        "short_of": "file descriptors",
        "late": ["the checks of services"],
        "blocked_s": 4.2,
    }
    said = []
    for koo in (well, ill):
        documents["/monitoring/health"]["koo"] = koo
        with canned(documents) as url:
            here.set({"KOO_URL": url})
            said.append(here.run("status")[1].splitlines())
    assert [line for line in said[1] if line not in said[0]][1:] == [
        "state store: unreachable since 2026-11-28T14:07:06Z: a full disk; "
        "calls of lab are refused once the money granted to this process is used up",
        "disk of home: nearly full, 0.5 of 16.0 GiB free",
        "koo: calls lacked file descriptors within the last minute",
        "koo: overdue: the checks of services; what is shown may be outdated",
        "koo: its event loop was blocked for 4 s within the last five minutes",
    ]


def test_the_database_is_named_with_the_time_from_which_its_probe_has_succeeded(here: Here) -> None:
    """The duration of a refused probe is not shown as a latency."""
    documents: Any = health_of("degraded", lab=service_of())
    view = documents["/monitoring/health"]["database"]
    view |= {"error": None, "answers_since": AT, "server": {"host": None, "port": None, "name": "app.db"}}
    with canned(documents) as url:
        here.set({"KOO_URL": url})
        _, out, _ = here.run("status")
        line = next(line for line in out.splitlines() if line.startswith("database:"))
        assert "circuit_open in app.db, 1.9 ms, 1 of 30 connections in use — 5 failures in a row" in line
        assert (
            "5 failures in a row; last error connection: the server refuses connections, 60 s ago; its probe"
            in line
        )
        assert "; its probe has succeeded since 2026-11-28T14:07:06Z; next attempt" in line


def test_an_exhausted_limit_shows_when_it_resets(here: Here) -> None:
    """The reason contains no time, so the line ends with the latest reset of all used-up limits."""
    limits = service_of()["rate_limits"]
    full = {"used": 60, "limit": 60, "remaining": 0, "resets_at": AT}
    spent = {**limits["daily_budget"], "remaining": "0", "resets_at": "2026-11-29T00:00:00+00:00"}
    services = {
        "claude": service_of(
            state="rate_limited", reason="full", rate_limits=limits | {"requests_per_day": full}
        ),
        "lab": service_of(state="rate_limited", reason="spent", rate_limits=limits | {"daily_budget": spent}),
    }
    with canned(health_of("degraded", **services)) as url:
        here.set({"KOO_URL": url})
        _, out, _ = here.run("status")
    assert "claude: full; next attempt 2026-11-28T14:07:06Z" in out
    assert "lab: spent; next attempt 2026-11-29T00:00:00Z (in 9 h 54 min)" in out


def test_an_error_before_a_limit_or_an_operators_act_is_not_shown_as_its_reason(here: Here) -> None:
    """Calls have succeeded since the error, or would not be tried again before the operator's override ends."""
    said, forced = (
        error_of("it rejects the API key"),
        "forced open by ada: invoice; until 2026-11-28T14:07:06Z",
    )
    later = {"circuit_breaker_state": "closed", "next_attempt": None, "last_success": NOW}
    services = {
        "claude": service_of(state="rate_limited", reason="the budget is used up", health=later, last_error=said),
        "lab": service_of(
            state="circuit_open", reason=forced, models={"m": {"override": "none", "state": "forced_open"}},
            health={"circuit_breaker_state": "forced_open", "next_attempt": AT}, last_error=said,
        ),
    }  # fmt: skip
    documents = health_of("degraded", **services)
    database: Any = documents["/monitoring/health"]
    database["database"] |= {"state": "circuit_open", "reason": forced, "last_error": said}
    breaker = {"state": "forced_open", "override": "none", "next_attempt": AT}
    database["database"]["circuit_breaker"] = breaker
    with canned(documents) as url:
        here.set({"KOO_URL": url})
        lines = here.run("status")[1].splitlines()
    assert "claude: the budget is used up" in lines and f"lab: {forced} (in 42 s)" in lines
    assert lines[1].startswith("database: ") and lines[1].endswith(f" — {forced} (in 42 s)")


def test_the_times_in_an_alerts_message_are_to_the_second(here: Here) -> None:
    with canned(alerts_of(ALERT | {"message": f"the provider limits our rate, until {AT}"})) as url:
        here.set({"KOO_URL": url})
        assert "limits our rate, until 2026-11-28T14:07:06Z (in 43 s)" in here.run("alerts")[1]


def test_a_database_that_has_just_stopped_responding_is_not_called_healthy(here: Here) -> None:
    """The alert appears after the first failed probe, the unhealthy state after the third."""
    documents: Any = health_of("degraded", lab=service_of())
    documents["/monitoring/health"]["database"] |= {"state": "healthy", "reason": ""}
    with canned(documents) as url:
        here.set({"KOO_URL": url})
        _, out, _ = here.run("status")
    assert "database: no answer on db.example:5432/shop" in out and "database: healthy" not in out


def test_control_characters_in_a_name_are_escaped(here: Here) -> None:
    alert = {**ALERT, "component": f"ai:x/{EVIL}", "message": f"no model {EVIL}"}
    with canned(alerts_of(alert) | health_of("healthy", lab=service_of())) as url:
        here.set({"KOO_URL": url})
        _, listed, _ = here.run("alerts")
        _, status, _ = here.run("status")
        _, document, _ = here.run("alerts", "--json")
    wanted = r"m\x1b]0;owned\x07\x1b[31m\n\u202enimda\u2069 \x9b2J"
    assert f"ai:x/{wanted}" in listed and f"no model {wanted}" in listed and f"team/{wanted}" in status
    assert len(listed.splitlines()) == 2
    assert json.loads(document)["alerts"][0]["message"] == f"no model {EVIL}"
    for text in (listed, status, document):
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2069"} & set(text)


def test_a_refusal_of_the_server_is_one_line_without_escapes(here: Here) -> None:
    with canned({"/monitoring/alerts": {"kind": "not_found", "detail": f"no {EVIL}"}}) as url:
        here.set({"KOO_URL": url})
        _, _, err = here.run("alerts")
    assert err.count("\n") == 1 and r"m\x1b]0;owned" in err and "\x1b" not in err


def on_a_terminal(tmp_path: Path, url: str, columns: int, word: str) -> str:
    """What a command prints to a window of that width."""
    ours, theirs = pty.openpty()
    env = environment(tmp_path, KOO_URL=url, TERM="xterm", COLUMNS=str(columns))
    with subprocess.Popen(command(word), stdout=theirs, stderr=theirs, stdin=theirs, env=env) as run:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError:
            pass  # Linux reports this if the other end of a terminal is closed
        assert run.wait(60) in (3, 4)
    os.close(ours)
    return seen.decode()


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_no_window_cuts_a_number_or_breaks_a_name_into_letters(tmp_path: Path, columns: int) -> None:
    """The terminal itself wraps what is too long; nothing is left out."""
    services = {"claude": service_of(state="circuit_open"), NAME[:40]: service_of()}
    with canned(health_of("degraded", **services)) as url:
        text = on_a_terminal(tmp_path, url, columns, "status")
    for whole in ("claude", "circuit_open", "$0.000082 of $10.00", "1.9 ms"):
        assert whole in text, text
    rows = [line for line in text.splitlines() if "$0.000082 of $10.00" in line]
    assert len(rows) == 2 and any(NAME[:20] in row for row in rows)
    if columns < 80:
        assert (
            "claude: state circuit_open, breaker closed, requests 8, failed 5, refused 31, p95 1.9 ms" in text
        )


def test_control_characters_in_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    alert = {**ALERT, "message": f"no model {EVIL}"}
    with canned(alerts_of(alert)) as url:
        text = on_a_terminal(tmp_path, url, 60, "alerts")
    assert "owned" in text and not {"\x07", "\x9b", "\u202e"} & set(text) and "\x1b]" not in text
    assert "2026-11-28T14:07:06Z" in text and "…" not in text


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("written", "reads"),
    [
        ("plain words, Zürich 東京 👩‍🚀", "plain words, Zürich 東京 👩‍🚀"),
        ("a\tb\r\nc", r"a\tb\r\nc"),
        ("\x1b[2J\x9b", r"\x1b[2J\x9b"),
        ("\u202eabc\u2066\u200f", r"\u202eabc\u2066\u200f"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("\U000e0041\ufeff\u200b", r"\U000e0041\ufeff\u200b"),
        ("\udcff", r"\udcff"),
    ],
)
def test_invisible_characters_are_written_as_escapes(written: str, reads: str) -> None:
    assert one_line(written) == reads


def test_a_long_name_is_cut_and_a_long_response_is_not() -> None:
    assert len(name("x" * 5000)) == 200 and name("x" * 200) == "x" * 200
    assert shown("a\tb\nc" * 5000) == "a\tb\nc" * 5000
    assert shown("\x1b[31m\u202e") == "�[31m�"


def test_a_json_document_with_escaped_characters_has_the_same_meaning() -> None:
    given = {"name": EVIL + "\U000e0041"}
    written = json_text(json.dumps(given, ensure_ascii=False))
    assert json.loads(written) == given
    assert written.isprintable()


# ── mistakes on the command line ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("status", "--nope"), "no such option: --nope; see `koo status --help`"),
        (("statsu",), "no such command 'statsu'. Did you mean 'status'? see `koo --help`"),
        (("query",), "missing argument 'service'; see `koo query --help`"),
        (("status", "--json=yes"), "option '--json' does not take a value; see `koo status --help`"),
        (("db", "pause", "now"), "(now); see `koo db pause --help`"),
        (("query", "claude", "Hi", "--max-tokens", "many"), "--max-tokens"),
        (("help", "statsu"), "no such command 'statsu'"),
        (("spend", "--days", "0"), "--days"),
    ],
)
def test_a_mistake_is_one_sentence_or_one_document(here: Here, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = here.run(*arguments)
    # The oldest supported typer writes the name of an argument in capitals.
    assert (code, out) == (2, "") and err.startswith("koo: ") and said.lower() in err.lower()
    assert err.count("\n") == 1
    if arguments[0] == "help":
        return
    code, out, err = here.run(*arguments, "--json")
    problem = json.loads(out)["error"]
    assert (code, err, problem["kind"]) == (2, "", "usage")
    assert said.lower() in problem["detail"].lower()


def test_json_after_two_dashes_is_an_argument_and_not_an_option(here: Here) -> None:
    code, out, err = here.run("status", "--", "--json")
    assert (code, out) == (2, "") and "unexpected extra argument" in err


# ── help ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_is_a_command_too_and_shows_a_flag_without_a_type(here: Here) -> None:
    code, out, _ = here.run("help")
    assert code == 0 and "Exit codes" in out and "<bool>" not in out
    assert here.run("help", "db", "pause")[1] == here.run("db", "pause", "--help")[1]
    for words in (("query",), ("spend", "write-off"), ("db",), ("doctor",)):
        code, out, _ = here.run("help", *words)
        assert code == 0 and "<bool>" not in out and "--help" in out


def test_the_version_has_a_short_option(here: Here) -> None:
    assert here.run("-V") == here.run("--version")


# ── which server ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("before", [{}, {"KOO_URL": "http://127.0.0.1:9"}])
def test_url_names_the_server_and_overrides_the_setting(here: Here, before: dict[str, str]) -> None:
    here.set(before)
    with canned(alerts_of()) as url:
        assert here.run("alerts", "--url", url) == (0, "no alerts\n", "")
    code, out, err = here.run("alerts", "--url", "nonsense", "--json")
    assert (code, err) == (2, "") and "KOO_URL" in json.loads(out)["error"]["detail"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("alerts",), ("reset", "all"), ("spend",), ("spend", "write-off", "--all"),
        ("db", "pause"), ("db", "resume"), ("db", "drain"), ("db", "rotate"), ("doctor",),
    ],
)  # fmt: skip
def test_every_command_that_uses_a_server_accepts_its_url(here: Here, arguments: tuple[str, ...]) -> None:
    _, out, err = here.run(*arguments, "--url", "http://127.0.0.1:9/elsewhere")
    assert "no koo server answers at http://127.0.0.1:9/elsewhere" in out + err


@pytest.mark.parametrize(
    "arguments", [("config",), ("config", "--json"), ("--help",), ("help", "query"), ("status",)]
)
def test_a_reader_that_closes_the_pipe_ends_a_command_quietly(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """`koo config | head -1`: nothing failed, so the exit code is 0 and nothing is printed about it."""
    with canned(health_of("degraded")) as url:
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run(
                command(*arguments), env=environment(tmp_path, KOO_URL=url), cwd=tmp_path, stdout=write,
                stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            )  # fmt: skip
        finally:
            os.close(write)
    said = [line for line in done.stderr.splitlines() if not line.startswith("KOO_HOME is ")]
    assert (done.returncode, said) == (0, [])
