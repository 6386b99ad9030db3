"""The header `Idempotency-Key`: a route's work is done once for each key, and its response is stored with that work.

    payments = APIRouter(route_class=IdempotentRoute)
    Once = Annotated[AsyncSession, idempotent(caller=user_id)]

    @payments.post("/payments", status_code=201)
    async def pay(payment: Payment, session: Once) -> Paid: ...

The dependency begins the transaction and claims the key. The route class stores the response in the transaction's last
statement, commits, and only then sends the response. So no client sees a response whose work is not committed, and a
client that received no response sends the same request again.

A response that commits is stored, whatever its status. An exception rolls the transaction back, and the key is free
again. Dependencies run before a stored response is returned, so access checks apply to repeats too. A key belongs to
the caller that sent it: two users with the same key get two responses.
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
"""The limit for a client's key. The row's key also contains the route and the caller."""
_NOT_STORED = frozenset({b"content-length", b"set-cookie"})
"""The first is computed again. The second is a secret of one session, which must not be kept in a table."""
_Described = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description=f"a key for each operation, the same for its repeats; 1 to {KEY_MAX} characters",
    ),
]


class _Refused(Exception):
    """The header is not valid; the text is for the client."""


class _Exchange:
    """One request: the transaction in which its route works, and the stored response, if any."""

    # The route class enters this stack and the dependency fills it. A dependency with `yield` could not end the
    # transaction: it never sees the response that has to be stored, and by default FastAPI leaves it only after the
    # response has been sent, when a failed COMMIT can no longer be reported.
    def __init__(self) -> None:
        self.transaction = AsyncExitStack()
        self.stored: Stored | None = None
        self._session: AsyncSession | None = None
        self._operation: Operation | None = None

    async def begin(self, database: Database, operation: Operation | None) -> AsyncSession:
        if self._session is not None:
            raise RuntimeError("a route can have only one session of koo.idempotent; this one has two")
        self._session = await self.transaction.enter_async_context(database.session_scope())
        if operation is not None:
            self.stored = await operation.begin(self._session)
            self._operation = operation
        return self._session

    async def keep(self, response: Response) -> None:
        """Store the response in the transaction, unless it came from there."""
        if self._session is not None and self._operation is not None and self.stored is None:
            await self._operation.finish(self._session, _record(response))


# The endpoint's wrapper must know whether a response is stored, but receives only the arguments that the endpoint
# declares. A context variable connects it with the route class and the dependency; it also reaches endpoints that
# FastAPI runs in a thread.
_current: ContextVar[_Exchange | None] = ContextVar("koo_idempotent_exchange", default=None)


class IdempotentRoute(APIRoute):
    """A route class that stores responses: `APIRouter(route_class=IdempotentRoute)`.

    Needed by routes whose session comes from `idempotent`; other routes behave as before.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _unless_stored(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, inside the transaction of its request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            exchange = _Exchange()
            token = _current.set(exchange)
            try:
                # Starlette caches the body, but a form parser consumes the stream without doing so. Read it first: the
                # fingerprint needs it, and is computed in a dependency, after FastAPI has parsed the form.
                if HEADER in request.headers:
                    await request.body()
                # The response is stored inside the `async with`, so leaving the block commits both. If COMMIT fails,
                # `return` is never reached: nothing was sent, and the client may safely repeat the request.
                async with exchange.transaction:
                    response = await handler(request)
                    await exchange.keep(response)
                return response
            except _Refused as refused:
                return respond(http_problem(request, 400, str(refused)))
            except (IdempotencyKeyInUse, IdempotencyKeyReused) as error:
                return respond(error_problem(request, error))
            except CommitOutcomeUnknown as error:
                return _ask_again(request, error)  # 503 instead of the usual 500
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
    """Return a dependency: one transaction, whose key is the request's `Idempotency-Key`. Requires `IdempotentRoute`.

    `caller`: a FastAPI dependency that returns a user's permanent identity (a str, int or UUID; anything else raises
    TypeError when a request arrives), or None for a route without users, where all callers share keys and responses.
    `required`: whether a request without the header is refused (400) or works without a key. `wait_s`: how long to
    wait for another request with the same key before 409. `database`: that of another platform.
    """
    find = database or _own_database

    async def begin(
        request: Request, key: _Described = None, who: Any = Depends(caller or _everyone)
    ) -> AsyncSession:
        exchange = _current.get()
        if exchange is None:
            raise RuntimeError(
                "a session of koo.idempotent needs the route class APIRouter(route_class=koo.IdempotentRoute)"
            )
        sent = _key_of(request, required)
        name = "" if caller is None else _name_of(who)
        operation = None if sent is None else await _operation(request, sent, name, wait_s)
        return await exchange.begin(find(), operation)

    return Depends(begin)


def _everyone() -> None:
    return None


def _name_of(who: object) -> str:
    """Refuse any other object: its text may differ between requests, so a repeat would count as another caller's and
    run again.
    """
    if not isinstance(who, str | int | UUID) or who == "":
        raise TypeError(
            "the caller of koo.idempotent must return a user's permanent identity, a str (not empty), int or UUID,"
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
                f"send the header {HEADER} with your own key for each operation, for example a UUID"
            )
        return None
    key = sent[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':  # the header's draft specifies a quoted string
        key = key[1:-1]
    if len(sent) > 1 or not 1 <= len(key) <= KEY_MAX or not (key.isascii() and key.isprintable()):
        raise _Refused(f"{HEADER} must be one key of 1 to {KEY_MAX} printable ASCII characters")
    return key


async def _operation(request: Request, key: str, caller: str, wait_s: float) -> Operation:
    # Two different hashes. The row's key contains method, route template and caller: the same key of another user, or
    # on another route, is another operation. The fingerprint contains the concrete path, query and body: the same key
    # with a different request is the client's mistake (422), and must not return a response to something else.
    route = request.scope["route"]
    of_whom = json.dumps([request.method, getattr(route, "path_format", request.url.path), caller])
    whole = json.dumps([request.method, request.scope["path"], request.url.query])
    body = hashlib.sha256(await request.body()).hexdigest()
    scope = hashlib.sha256(of_whom.encode()).hexdigest()[:32]
    return Operation(f"http:{scope}:{key}", f"{whole} {body}", wait_s=wait_s)


def _unless_stored(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the endpoint, so that it is not called if its response is already stored."""
    if hasattr(
        endpoint, "koo_idempotent"
    ):  # a router that is included in another one wraps its endpoints again
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

    # FastAPI awaits a coroutine function and runs any other callable in a thread. The wrapper must be of the same
    # kind: an `async def` around a blocking endpoint would run it on the event loop. For an object, its `__call__`
    # decides.
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
            "a streamed response cannot be stored; a route with an idempotency key must return it whole"
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
    """Answer with 503 instead of the 500 of other lost COMMITs: with the key a repeat is safe, and only it shows the
    outcome.
    """
    problem = error_problem(request, error)
    return respond(
        problem.model_copy(
            update={
                "status": 503,
                "title": "Service Unavailable",
                "retry_after_s": 1.0,
                "detail": f"the outcome is not known yet; send the request again with the same {HEADER}",
            }
        )
    )
