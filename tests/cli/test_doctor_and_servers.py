"""`koo doctor` never reports "ok" for an unhealthy server or for another folder's server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from koo.monitoring.overview import digest_of_home
from tests.cli.running import Here, settings_of

BROKEN = "5 failures in a row, the last: status 500, api_error"


WELL = {
    "database": {"state": "healthy", "reason": "", "error": None},
    "ai_services": {"services": {}},
    "severity": None,
    "koo": {},
    "timestamp": "2026-11-29T03:00:00+00:00",
}


@contextmanager
def server_that_says(**health: Any) -> Iterator[str]:
    """A server with the given health. Yields its URL."""

    class Says(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({**WELL, **health}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Says) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def looked_at(here: Here, subject: str) -> dict[str, str]:
    _, out, _ = here.run("doctor", "--json")
    findings: list[dict[str, str]] = json.loads(out)["findings"]
    for one in findings:
        assert not one["found"].startswith(f"{one['subject']}: "), (
            "the subject is already printed in front of it"
        )
    (found,) = [one for one in findings if one["subject"] == subject]
    return found


@pytest.mark.parametrize(
    ("word", "result"),
    [("healthy", "ok"), ("degraded", "warning"), ("unhealthy", "problem"), ("odd", "problem")],
)
def test_the_server_is_as_healthy_as_it_reports(here: Here, word: str, result: str) -> None:
    with server_that_says(overall_health=word, home=digest_of_home(here.home)) as url:
        here.set(settings_of(KOO_URL=url))
        found = looked_at(here, "server")
    assert (found["result"], f"{url} reports {word}" in found["found"]) == (result, True)


def test_an_unhealthy_servers_reasons_are_shown(here: Here) -> None:
    claude = {"configured": True, "state": "circuit_open", "reason": BROKEN}
    without_key = {"configured": False, "state": "unhealthy", "reason": "set OPENAI_API_KEY"}
    database = {"state": "healthy", "reason": "", "error": "the server refuses connections"}
    services = {"services": {"claude": claude, "openai": without_key}}
    with server_that_says(overall_health="unhealthy", database=database, ai_services=services) as url:
        here.set(settings_of(KOO_URL=url))
        found = looked_at(here, "server")["found"]
    assert f"claude circuit_open ({BROKEN})" in found and "the server refuses connections" in found
    assert "OPENAI" not in found, "it is not part of the server's health"


def test_another_folders_server_is_not_evidence_about_this_configuration(
    here: Here, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = digest_of_home(tmp_path_factory.mktemp("elsewhere"))
    for word in ("healthy", "unhealthy"):
        with server_that_says(overall_health=word, home=elsewhere) as url:
            here.set(settings_of(KOO_URL=url))
            found = looked_at(here, "server")
        assert (
            found["result"] == "note" and "another folder" in found["found"] and "KOO_URL" in found["advice"]
        )


def test_a_folders_digest_does_not_depend_on_the_path_to_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert digest_of_home(tmp_path / "link") == digest_of_home(tmp_path) != digest_of_home(tmp_path.parent)
    assert str(tmp_path) not in digest_of_home(tmp_path)


def test_a_database_that_refuses_is_named_by_its_address_without_the_user(here: Here) -> None:
    here.set(
        settings_of(KOO_URL="http://127.0.0.1:9", DATABASE_URL="postgresql://app:hunter2@127.0.0.1:1/shop")
    )
    found = looked_at(here, "database")
    assert found["result"] == "problem" and "hunter2" not in str(found) and "app" not in found["found"]
    assert "shop on 127.0.0.1:1: the server refuses connections" in found["found"]
    assert "try again" not in found["found"], "the time of a check does not show when a caller may try again"
