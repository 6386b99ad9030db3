"""The outermost layer of the server: request ids, log lines, no caching, a limit on bodies, no tracebacks for callers.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` runs the application in a separate task, which is not notified
when the client disconnects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koo.failures import safe
from koo.log_options import LogRequests
from koo.logs.lines import request_id
from koo.web.bounds import BODY_BYTES_MAX, CAREFUL, CLOSE, MARK, BodyTooLarge, announced_bytes
from koo.web.problems import PROBLEMS, http_problem, respond, shown_path
from koo.web.request_ids import HEADER, ID, make_id
from koo.web.spans import put_back

LEFT = 499
"""The status that is logged for a request whose client disconnected before the response."""
PROBES = frozenset({"/livez", "/readyz", "/metrics"})
log = logging.getLogger("koo.web")


class Edge:
    """Wraps the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        body_bytes_max: int = BODY_BYTES_MAX,
        log_requests: Callable[[], LogRequests] = lambda: "failed",
    ) -> None:
        """`log_requests`: which requests are logged, in addition to those that fail."""
        self.app = app
        self._body_bytes_max = body_bytes_max
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        put_back(scope)
        request = Request(scope)
        scope[ID], scope[MARK] = make_id(request), True
        scope[
            PROBLEMS
        ] = []  # a list, because Starlette copies the scope for mounted applications, and copies share it
        exchange = _Exchange(scope, receive, send, self._body_bytes_max)
        asked_by = request_id.set(scope[ID])
        try:
            if announced_bytes(request) > self._body_bytes_max:
                raise BodyTooLarge(self._body_bytes_max)
            await self.app(scope, exchange.receive, exchange.send)
        except BodyTooLarge as error:
            await exchange.refuse(413, error.detail)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"], extra=exchange.facts(500))
            await exchange.refuse(500, "internal error; see the server's log")
        finally:
            request_id.reset(asked_by)
            exchange.tell(self._log_requests())


class _Exchange:
    """One request and its response, on their way through the edge."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, bytes_max: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._bytes_max = self._bytes_left = bytes_max
        self._began_at = time.perf_counter()
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes_left -= len(message.get("body", b""))
            if self._bytes_left < 0:
                raise BodyTooLarge(self._bytes_max)
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[HEADER] = self._scope[ID]
            for name, value in CAREFUL.items():
                headers.setdefault(name, value)  # a route may have set a policy of its own
        await self._send(message)

    async def refuse(self, status: int, detail: str) -> None:
        """Respond with a problem. If a response has already begun, it can only be aborted, so this raises."""
        if self.status is not None:
            raise ConnectionAbortedError("the request failed after its response had begun")
        answer = respond(http_problem(Request(self._scope), status, detail), CLOSE)
        await answer(self._scope, self._receive, self.send)

    def tell(self, which: LogRequests) -> None:
        """Log one line, if `which` asks for it or the request failed. Never log the query string: it may contain a
        token.
        """
        status, path = self.status or LEFT, shown_path(self._scope)
        if status < 400 and (which == "failed" or is_probe(self._scope)):
            return
        took_ms = (time.perf_counter() - self._began_at) * 1000
        facts = {**self.facts(status), "took_ms": round(took_ms, 1)}
        cause = f": {facts['kind']}, {facts['cause']}" if facts.get("cause") else ""
        log.log(
            # A 4xx is the client's mistake and no reason to warn the operator.
            logging.WARNING if status >= 500 else logging.INFO,
            "%s %s %d in %.0f ms%s [request %s]",
            facts["method"],
            path,
            status,
            took_ms,
            cause,
            facts["request_id"],
            extra=facts,
        )

    def facts(self, status: int) -> dict[str, Any]:
        """Return the log line's machine-readable fields. A problem response adds its kind and cause."""
        scope, facts = self._scope, dict[str, Any]()
        if scope[PROBLEMS]:
            problem = scope[PROBLEMS][-1]  # the last one: an earlier one may have been replaced
            facts = {"service": problem.service, "kind": problem.kind, "cause": safe(problem.detail)}
        facts |= {
            "what": "request",
            "method": scope["method"],
            "path": shown_path(scope),
            "status": status,
            "request_id": scope[ID],
        }
        return {name: value for name, value in facts.items() if value is not None}


def is_probe(scope: Scope) -> bool:
    """Return whether the request is a probe, even below a path prefix of a proxy or an outer application."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path in PROBES or path.removeprefix(root) in PROBES
