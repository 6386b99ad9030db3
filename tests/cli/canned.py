"""A server that returns the documents that a test wants, and the documents."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "summaries-for-the-sales-department-of-the-northern-region"
MODEL = f"ai:{NAME}/mistral[/inst]-with-a-longer-name-2026"
MESSAGE = "the circuit breaker is open: 5 failures in a row, the last: status 500, api_error: [bold]boom[/bold] [/x]"
AT = "2026-11-28T14:07:06.058907+00:00"
NOW = "2026-11-28T14:06:24+00:00"
EVIL = "m\x1b]0;owned\x07\x1b[31m\n\u202enimda\u2069 \x9b2J"
ALERT = {
    "type": "critical",
    "component": MODEL,
    "message": MESSAGE,
    "timestamp": AT,
    "kind": "circuit_open",
    "active": True,
    "ended_at": None,
    "data": {},
    "id": "3f2a9c0d1e4b5a67",
    "phase": "firing",
    "acknowledged": None,
    "silenced": None,
}


@contextmanager
def canned(documents: Mapping[str, object], port: int = 0, asked: list[str] | None = None) -> Iterator[str]:
    """A server that returns the current document for each path below `/api/v1`.

    `asked` receives the path and query of each request.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            path = self.path.removeprefix("/api/v1").partition("?")[0]
            known = path in documents
            body = json.dumps(documents[path] if known else {"kind": "not_found", "detail": path}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def alerts_of(*listed: Mapping[str, object]) -> dict[str, object]:
    return {"/monitoring/alerts": {"alerts": list(listed), "alert_count": len(listed), "timestamp": NOW}}


def service_of(**more: Any) -> dict[str, Any]:
    limit = {"used": 1, "limit": 60, "remaining": 59, "resets_at": AT}
    budget = {"spent": "0.000082", "reserved": "0", "limit": "10", "remaining": "9.999918", "resets_at": AT}
    windows = dict.fromkeys(("requests_per_minute", "requests_per_hour", "requests_per_day"), limit)
    given = {
        "state": "healthy",
        "configured": True,
        "reason": "",
        "health": {"circuit_breaker_state": "closed", "next_attempt": None},
        "metrics": {
            "total_requests": 8,
            "failed_requests": 5,
            "refused_requests": 31,
            "p50": 0.0012,
            "p95": 0.0019,
            "recent": {"calls": 8, "failed": 5, "slow": 0, "window_s": 300.0},
        },
        "models": {},
        "rate_limits": {**windows, "daily_budget": budget},
        "configuration": {"kind": "openai_compatible"},
        "last_error": None,
    }
    return given | more


def error_of(sentence: str) -> dict[str, object]:
    """A last error, a minute ago."""
    return {"kind": "server_error", "status": 500, "sentence": sentence, "at": "2026-11-28T14:05:24+00:00"}


def health_of(overall: str, **services: dict[str, Any]) -> dict[str, object]:
    pool = {"active_connections": 1, "max_connections": 30, "waiting": 0, "held_by": []}
    database: dict[str, object] = {
        "state": "circuit_open",
        "reason": "5 failures in a row",
        "error": f"database: the server refuses connections; try again at {AT}",
        "last_error": error_of("the server refuses connections") | {"kind": "connection"},
        "server": {"host": "db.example", "port": 5432, "name": "shop"},
        "answers_since": None,
        "conditions": [],
        "response_time_ms": 1.94,
        "pool_status": pool,
        "circuit_breaker": {"next_attempt": AT, "override": "none"},
    }
    budget = {
        "title": f"team/{EVIL}",
        "period": "day",
        "spent": "0.000082",
        "reserved": "1",
        "limit": None,
        "remaining": None,
        "unsettled": "0",
        "runs_out": {"earliest": AT, "latest": None, "then": "calls are refused"},
    }
    ai = {"services": services, "budgets": [budget]}
    return {
        "/monitoring/health": {
            "overall_health": overall,
            "database": database,
            "ai_services": ai,
            "timestamp": NOW,
        }
    }
