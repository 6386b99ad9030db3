"""The header `Idempotency-Key`: a route whose work happens once for it, and whose answer is stored with that work.

    payments = APIRouter(route_class=IdempotentRoute)
    Once = Annotated[AsyncSession, idempotent(caller=user_id)]

    @payments.post("/payments", status_code=201)
    async def pay(payment: Payment, session: Once) -> Paid: ...

The dependency begins the transaction and takes the key; the route's class stores the answer as the transaction's last
statement, commits, and only then lets the answer go. So no client sees an answer whose work is not committed, and a
client that saw none sends the same request again.

What commits is stored, whatever its status; what raises is rolled back, and its key is free again. Dependencies run
before a stored answer is returned, so a check of who asks is made for repeats too. A key belongs to the caller that
sent it: two users with the same key have two answers.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import Depends, Header
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from koo.database.database import Database
from koo.database.operations import Operation, Stored
from koo.default.platform import platform
from koo.errors import CommitOutcomeUnknown, IdempotencyKeyInUse, IdempotencyKeyReused, KooError
from koo.web.problems import error_problem, http_problem, respond

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEY_MAX = 200
"""Of what a client sends; beside it the row's key has the route and the caller."""
_NOT_STORED = frozenset({b"content-length", b"set-cookie"})
"""The first is counted anew. The second is a secret of one session, which a table must not keep."""
_Described = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description=f"one for each operation, the same for its repeats; 1 to {KEY_MAX} characters",
    ),
]


class _Refused(Exception):
    """The header cannot be used; the text is for the client."""


class _Exchange:
    """One request: the transaction that its route works in, and the answer that was stored before, if any."""

    def __init__(self) -> None:
        self.transaction = AsyncExitStack()
        self.stored: Stored | None = None
        self._session: AsyncSession | None = None
        self._operation: Operation | None = None

    async def begin(self, database: Database, operation: Operation | None) -> AsyncSession:
        if self._session is not None:
            raise RuntimeError("a route has one session of koo.idempotent, and this one has two")
        self._session = await self.transaction.enter_async_context(database.session_scope())
        if operation is not None:
            self.stored = await operation.begin(self._session)
            self._operation = operation
        return self._session

    async def keep(self, response: Response) -> None:
        """Store the answer in the transaction, unless it came from there."""
        if self._session is not None and self._operation is not None and self.stored is None:
            await self._operation.finish(self._session, _record(response))


_current: ContextVar[_Exchange | None] = ContextVar("koo_idempotent_exchange", default=None)


class IdempotentRoute(APIRoute):
    """A route that stores answers: `APIRouter(route_class=IdempotentRoute)`.

    Needed by a route with a session of `idempotent`; routes without one are as they were.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _unless_stored(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, within the transaction of its request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            exchange = _Exchange()
            token = _current.set(exchange)
            try:
                if HEADER in request.headers:
                    await (
                        request.body()
                    )  # A form's body is gone once it is parsed, and the fingerprint needs it.
                async with exchange.transaction:
                    response = await handler(request)
                    await exchange.keep(response)
                return response
            except _Refused as refused:
                return respond(http_problem(request, 400, str(refused)))
            except (IdempotencyKeyInUse, IdempotencyKeyReused) as error:
                return respond(error_problem(request, error))
            except CommitOutcomeUnknown as error:
                return _ask_again(request, error)
            finally:
                _current.reset(token)

        return handle


def idempotent(
    *,
    caller: Callable[..., Any] | None,
    required: bool = True,
    wait_s: float = 0.0,
    database: Callable[[], Database] | None = None,
) -> Any:
    """A dependency: one transaction, whose key is the request's `Idempotency-Key`. For `IdempotentRoute`.

    `caller`: a dependency of FastAPI's that returns who asks, as what stays the same for a user (a str, int or UUID;
    anything else is a TypeError, at the request); or None, for a route without users: all callers share its keys and
    answers. `required`: whether a request without the header is refused (400), or works without a key. `wait_s`: how
    long to wait for another request with the key, before 409. `database`: another platform's.
    """
    find = database or _own_database

    async def begin(
        request: Request, key: _Described = None, who: Any = Depends(caller or _everyone)
    ) -> AsyncSession:
        exchange = _current.get()
        if exchange is None:
            raise RuntimeError(
                "a session of koo.idempotent needs its route's class: APIRouter(route_class=koo.IdempotentRoute)"
            )
        sent = _key_of(request, required)
        name = "" if caller is None else _name_of(who)
        operation = None if sent is None else await _operation(request, sent, name, wait_s)
        return await exchange.begin(find(), operation)

    return Depends(begin)


def _everyone() -> None:
    return None


def _name_of(who: object) -> str:
    """An object's text may differ between requests: a repeat would count as another caller's, and run again."""
    if not isinstance(who, str | int | UUID) or who == "":
        raise TypeError(
            "the caller of koo.idempotent returns what stays the same for a user, a str (not empty), an int or a UUID,"
            f" and not {'an empty str' if who == '' else type(who).__name__}"
        )
    return str(who)


def _own_database() -> Database:
    return platform.database


def _key_of(request: Request, required: bool) -> str | None:
    sent = request.headers.getlist(HEADER)
    if not sent:
        if required:
            raise _Refused(
                f"send the header {HEADER}, with a key of your own for each operation, a UUID for example"
            )
        return None
    key = sent[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':  # The header's draft writes it as a string in quotes.
        key = key[1:-1]
    if len(sent) > 1 or not 1 <= len(key) <= KEY_MAX or not (key.isascii() and key.isprintable()):
        raise _Refused(f"{HEADER} is one key of 1 to {KEY_MAX} printable ASCII characters")
    return key


async def _operation(request: Request, key: str, caller: str, wait_s: float) -> Operation:
    route = request.scope["route"]
    of_whom = json.dumps([request.method, getattr(route, "path_format", request.url.path), caller])
    whole = json.dumps([request.method, request.scope["path"], request.url.query])
    body = hashlib.sha256(await request.body()).hexdigest()
    scope = hashlib.sha256(of_whom.encode()).hexdigest()[:32]
    return Operation(f"http:{scope}:{key}", f"{whole} {body}", wait_s=wait_s)


def _unless_stored(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The same endpoint, which is not called where its answer is stored already."""
    if hasattr(endpoint, "koo_idempotent"):
        return endpoint

    def stored_answer() -> Response | None:
        exchange = _current.get()
        return None if exchange is None or exchange.stored is None else _replay(exchange.stored.result)

    @functools.wraps(endpoint)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return stored_answer() or await endpoint(*args, **kwargs)

    @functools.wraps(endpoint)
    def call_in_thread(*args: Any, **kwargs: Any) -> Any:
        return stored_answer() or endpoint(*args, **kwargs)

    # FastAPI awaits a coroutine function and runs any other in a thread; for an object its `__call__` decides.
    is_async = inspect.iscoroutinefunction(endpoint) or inspect.iscoroutinefunction(
        getattr(endpoint, "__call__", None)  # noqa: B004 - not whether it can be called, but how
    )
    wrapped: Any = call if is_async else call_in_thread
    wrapped.koo_idempotent = True
    return cast("Callable[..., Any]", wrapped)


def _record(response: Response) -> dict[str, Any]:
    body = getattr(response, "body", None)
    if body is None:
        raise RuntimeError(
            "an answer that is streamed cannot be stored: return it whole from a route with a key"
        )
    headers = [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name, value in response.raw_headers
        if name.lower() not in _NOT_STORED
    ]
    return {
        "status": response.status_code,
        "headers": headers,
        "body": base64.b64encode(bytes(body)).decode(),
    }


def _replay(record: dict[str, Any]) -> Response:
    response = Response(base64.b64decode(record["body"]), record["status"])
    for name, value in [*record["headers"], [REPLAYED, "true"]]:
        response.headers.append(name, value)
    return response


def _ask_again(request: Request, error: KooError) -> Response:
    """Not the 500 of other lost COMMITs: with the key a repeat is safe, and only a repeat shows the outcome."""
    problem = error_problem(request, error)
    return respond(
        problem.model_copy(
            update={
                "status": 503,
                "title": "Service Unavailable",
                "retry_after_s": 1.0,
                "detail": f"its outcome is not known yet: send it again with the same {HEADER}",
            }
        )
    )
