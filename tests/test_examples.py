"""Each example runs as its first lines describe, in an empty KOO_HOME, and prints what it promises."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.docs.markdown import links
from tests.log_lines import strange_lines

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 120.0

PRINTED = {
    "own_operation": r"""1\.08 after 3 calls
failed: the rates server is down
failed: the rates server is down
failed: the rates server is down
refused; try again in 3\d s
refused; try again in 3\d s
3 calls reached the server
1\.08
refused: koo's limit of 2 requests a minute is reached
2 calls reached the server
""",
    "stream": r""".+
\d+ tokens, 0 USD
stopped after 3 chunks
""",
    "transactions": r"""\{'ada': 20, 'bob': 80\}
rolled back: ada does not have 30 cents
\{'ada': 20, 'bob': 80\}
0 connections in use, 0 callers waiting
""",
    "fallback_and_budget": r"""claude answered: Paris\.
lab answered, because claude is overloaded
[1-9] of 10 fitted into the budget together
refused until midnight UTC: True
within the budget: True
lab answered, for 0 USD
no service answered: BudgetExceeded ServiceFailed
""",
}
"""What each script prints."""
SERVERS = {"mounted", "flask_app"}
"""`mounted` has separate tests below, `flask_app` in `tests/bridge/test_flask.py`."""


def environment(home: Path) -> dict[str, str]:
    """An environment without the developer's settings and keys, in which warnings are errors."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return kept | {"HOME": str(home), "KOO_HOME": str(home), "PYTHONWARNINGS": "error"}


def test_each_example_is_listed_and_tested() -> None:
    there = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = {Path(target).stem for _, target in links(EXAMPLES / "README.md") if "/" not in target}
    assert there == listed == {*PRINTED, *SERVERS}


@pytest.mark.model
@pytest.mark.parametrize("name", PRINTED)
def test_the_example_prints_what_it_shows(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, strange_lines(done.stderr)) == (0, []), done.stdout
    assert re.fullmatch(PRINTED[name], done.stdout, re.DOTALL), done.stdout


# ── mounted: a real server on a free port ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the application as its first lines describe; yields its address."""
    home = tmp_path_factory.mktemp("mounted")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uvicorn = Path(sys.executable).with_name("uvicorn")
    command = [str(uvicorn), "--app-dir", str(EXAMPLES), "mounted:app", "--port", str(port)]
    log = home / "server.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=home, env=environment(home), stdout=out, stderr=out) as process,
    ):
        try:
            _wait_until_it_answers(f"http://127.0.0.1:{port}/livez", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)
    assert "Traceback" not in log.read_text()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + 60
    while time.monotonic() < ends_at:
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"the server does not answer: {log.read_text()}")


def ask(url: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, str, Any]:
    """Status, content type and body."""
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return _read(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return _read(refusal)


def _read(answer: HTTPResponse | urllib.error.HTTPError) -> tuple[int, str, Any]:
    content = answer.read()
    kind = str(answer.headers.get_content_type())
    return answer.status or 0, kind, json.loads(content) if "json" in kind else content.decode()


def test_the_mounted_examples_own_route_uses_the_guarded_database(mounted: str) -> None:
    assert ask(f"{mounted}/orders/8") == (200, "application/json", {"order": 8, "half": 4})
    assert ask(f"{mounted}/orders/x")[0] == 422


def test_the_mounted_example_has_koos_routes(mounted: str) -> None:
    status, _, health = ask(f"{mounted}/api/v1/monitoring/health")
    assert (status, health["overall_health"]) == (200, "healthy")
    for path in (
        "/api/v1/monitoring/alerts",
        "/api/v1/ai/services/health",
        "/livez",
        "/readyz",
        "/metrics",
        "/dashboard/",
    ):
        assert ask(f"{mounted}{path}")[0] == 200, path
    described = ask(f"{mounted}/openapi.json")[2]["paths"]
    assert {"/orders/{number}", "/api/v1/ai/query"} <= described.keys()
    status, kind, problem = ask(f"{mounted}/api/v1/ai/services/nobody/health")
    assert (status, kind, problem["status"]) == (404, "application/problem+json", 404)


@pytest.mark.model
def test_the_mounted_example_answers_a_query(mounted: str) -> None:
    question = {"service": "local", "prompt": "Say hello.", "max_tokens": 10}
    status, _, answer = ask(f"{mounted}/api/v1/ai/query", "POST", question)
    assert (status, answer["service"], answer["cost"]) == (200, "local", "0")


def test_in_the_mounted_example_a_page_of_another_origin_cannot_change_anything(mounted: str) -> None:
    reset = f"{mounted}/api/v1/monitoring/database/reset-circuit-breaker"
    assert ask(reset, "POST", Origin="https://evil.example")[:2] == (403, "application/problem+json")
    assert ask(reset, "POST", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert ask(reset, "POST", Host="evil.example")[0] == 403, "nor a name that was rebound to this machine"
    assert ask(reset, "POST")[0] == 200, "curl may"
