"""The access check of koo's routes. It is part of each route, so no way of mounting the routes can leave it out.

The routes may be mounted with a prefix that has a parameter, in a sub-application, or by including a router: the check
is the same. It refuses what `security.py` denies, limits the body's size, adds the headers of a private response, slows
down callers that guess tokens, and records each refusal and each operator's act in the audit.

With `protect=False` the routes have no access rules: the application that mounts them decides who may call them. The
headers and the size limit stay. Under `koo serve`, the edge (`edge.py`) has already applied these two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from koo.platform import Platform
from koo.web.audit import Audit, audit_of
from koo.web.bounds import (
    BODY_BYTES_MAX,
    CAREFUL,
    CLOSE,
    MARK,
    PARAMETERS_MAX,
    BodyTooLarge,
    announced_bytes,
    bounded,
)
from koo.web.problems import http_problem, respond
from koo.web.security import SAFE_METHODS, Access, Asked, Denial, Kind, Who, asked_of
from koo.web.session import Session

QUERIES = ("/ai/query", "/ai/batch-query")
"""Calls of these routes are not recorded as acts: they are the server's purpose and change nothing for other callers.
"""


class Door:
    """The access check of one platform's routes. `access` creates the rules at the first request; None lets every
    caller pass.
    """

    def __init__(
        self,
        access: Callable[[], Access] | None,
        audit: Audit,
    ) -> None:
        self._make = access
        self._access: Access | None = None
        self._audit = audit
        self._guesses = audit.guesses

    @property
    def again_in_s(self) -> int:
        """Seconds until a caller that guessed too often may try again."""
        return self._guesses.again_in_s

    @property
    def protects(self) -> bool:
        """Return whether access rules apply."""
        return self._make is not None

    async def pass_through(
        self, kind: Kind, path: str, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send] | None:
        """Return the `send` that the route continues with, or None if the request was answered here.

        `path` is the route's template, which contains nothing that a caller wrote.
        """
        # The mark is set if the edge or an outer door has already wrapped `receive` and `send`; doing it again would
        # only repeat the work on every chunk.
        if MARK not in scope:
            scope[MARK] = True
            send = careful(send)
            if announced_bytes(Request(scope)) > BODY_BYTES_MAX:
                await _answer(413, BodyTooLarge(BODY_BYTES_MAX).detail, scope, receive, send, CLOSE)
                return None
            receive = bounded(receive, BODY_BYTES_MAX)
        # They are counted before anything parses the query string: parsing thousands of parameters takes longer than
        # most responses.
        if scope["query_string"].count(b"&") > PARAMETERS_MAX:
            detail = f"the address has more than {PARAMETERS_MAX} parameters"
            await _answer(422, detail, scope, receive, send)
            return None
        denial = self._judge(asked_of(scope, kind), path)
        if denial is None:
            return receive, send
        more = {"WWW-Authenticate": "Bearer"} if denial.status == 401 else {}
        if denial.status == 429:
            more["Retry-After"] = str(self._guesses.again_in_s)
        await _answer(denial.status, denial.detail, scope, receive, send, more)
        return None

    # ── sessions ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_sessions(self) -> bool:
        """Return whether a session can be started, which needs a configured token."""
        return self._make is not None and bool(self._rules().tokens)

    @property
    def session_names(self) -> list[str]:
        """The names that session cookies may have."""
        return self._rules().sessions.names

    def begin_session(self, token: str, what: str, scope: Scope) -> tuple[str, str] | Denial:
        """Return the name and value of a session cookie for the caller that has this token. `what`: the act, for the
        audit.
        """
        access, asked = self._rules(), asked_of(scope, "page")
        where = access.caller(asked) or "unknown"
        begun = access.sessions.begin(token, asked.audience, asked.at)
        if begun is None:
            denial = self._slowed(Denial(401, "the token is unknown", is_guess=True), where)
            self._audit.note("", what, where, denial)
            return denial
        name, value, role = begun
        self._audit.note("session" if role == "write" else "read session", what, where, None)
        return name, value

    def look(self, scope: Scope) -> tuple[Who, Session | None]:
        """Return who sent this request, and the session that came with it."""
        if self._make is None:
            return "", None
        asked = asked_of(scope)
        return self._rules().who(asked), self._rules().session(asked)

    def _rules(self) -> Access:
        if self._access is None:
            assert self._make is not None
            self._access = self._make()
        return self._access

    def _slowed(self, denial: Denial, where: str) -> Denial:
        if not self._guesses.are_too_many(where):
            return denial
        return Denial(429, "too many unknown tokens came from this address; try again later")

    def still_lets(self, scope: Scope) -> bool:
        """Return whether a guarded request that was let in a while ago would still be let in."""
        return self._access is None or self._access.judge(asked_of(scope)) is None

    def _judge(self, asked: Asked, path: str) -> Denial | None:
        if self._make is None:
            return None
        access = self._rules()
        denial, where = access.judge(asked), access.caller(asked) or "unknown"
        if denial is not None and denial.is_guess:
            denial = self._slowed(denial, where)
        # Acts are recorded even if they are allowed; reads and queries only if they are refused.
        changes = asked.kind == "guarded" and asked.method not in SAFE_METHODS and not path.endswith(QUERIES)
        if denial is not None or changes:
            self._audit.note(access.who(asked), f"{asked.method} {path}", where, denial)
        return denial


def door_of(platform: Platform, protect: bool = True, hosts: Iterable[str] = ()) -> Door:
    """Return the access check of a platform's routes. `hosts`: further names by which the server is known."""
    names = tuple(hosts)
    return Door((lambda: Access.of(platform.options, names)) if protect else None, audit_of(platform))


def careful(send: Send) -> Send:
    """Add the headers of a private response: no cache may keep it, no browser may guess its type, no page may frame
    it.
    """

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in CAREFUL.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


async def _answer(
    status: int,
    detail: str,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: dict[str, str] | None = None,
) -> None:
    answer: Response = respond(http_problem(Request(scope), status, detail), headers)
    await answer(scope, receive, send)
