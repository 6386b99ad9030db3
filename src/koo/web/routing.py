"""What all of koo's routes have in common: errors become problems, and a client that disconnects ends the work.

Both are part of the routes and not of the application, so they also work if the routers are mounted in another
application, whose own errors are left as they are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.routing import APIRoute
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core.core_schema import CoreSchema, any_schema
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from koo.errors import KooError
from koo.web.as_json import as_json
from koo.web.bodies import BatchBody
from koo.web.door import Door
from koo.web.examples import RECORDED
from koo.web.links import base_of, runbook_of
from koo.web.problems import (
    MEDIA_TYPE,
    Problem,
    error_problem,
    http_problem,
    respond,
    validation_problem,
)
from koo.web.reading import Reading
from koo.web.request_ids import identified
from koo.web.security import Kind

T = TypeVar("T")

PROBLEM_WORDS: dict[int, str] = {
    401: "no token was sent, or it is unknown",
    403: "the request's Host, origin or token is not allowed",
    404: "no such service, alert or silence, or the provider does not have the model; see `detail`",
    413: "the body is larger than 16 MiB",
    422: "the request is invalid",
    429: "a limit or a budget is reached, koo's or the provider's",
    500: "an error in the server itself",
    502: "the provider failed, or its response was invalid",
    503: "refused by an open breaker, unavailable, or too busy",
    504: "the deadline passed, or the provider did not respond in time",
}


HEAD = "koo.head"
"""Set in the scope of a request whose response has no body. A stream then has nothing to wait for."""


class CallerLeft(Exception):
    """The client has closed the connection and no longer waits for the response."""


class ProblemRoute(APIRoute):
    """A route with an access check, whose errors are problems. HEAD is answered like GET; OPTIONS lists the methods."""

    door: ClassVar[Door]
    kind: ClassVar[Kind]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        with identified(scope, send) as named:
            await self._handle(scope, receive, named)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The oldest supported FastAPI puts the prefix of a router into the path of each of its routes.
        state = getattr(scope.get("app"), "state", None)
        template = self.path_format.removeprefix(getattr(state, "koo_prefix", ""))
        passed = await self.door.pass_through(self.kind, template, scope, receive, send)
        if passed is None:
            return
        receive, send = passed
        method, methods = scope["method"], self.methods or set()
        if method not in methods:
            if method == "HEAD" and "GET" in methods:
                # The scope is copied, because uvicorn reads its own scope to decide that no body follows.
                scope = {**scope, "method": "GET", HEAD: True}
            else:
                await _tell_allowed(Request(scope), methods)(scope, receive, send)
                return
        if self.kind == "probe":
            # A probe takes nothing from the request. FastAPI's parameter handling would double its cost.
            await (await self._probe(scope))(scope, receive, send)
        else:
            await super().handle(scope, receive, send)

    async def _probe(self, scope: Scope) -> Response:
        try:
            answer: Response = await self.endpoint()
        except KooError as error:
            return answer_error(Request(scope), error)
        except HTTPException as error:
            return answer_http_error(Request(scope), error)
        return answer

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        body = self.body_field
        is_batch = body is not None and body.field_info.annotation is BatchBody

        async def answer(request: Request) -> Response:
            reading = Reading(request, is_batch)
            try:
                return await handle(reading)
            except KooError as error:
                return answer_error(request, error)
            except RequestValidationError as error:
                return respond(validation_problem(request, error.errors()))
            except HTTPException as error:
                return answer_http_error(request, error)
            except CallerLeft:
                return Response(status_code=499)
            finally:
                reading.close_body()

        return answer


def _tell_allowed(request: Request, methods: set[str]) -> Response:
    """Answer OPTIONS with the allowed methods, and any other method with 405."""
    more = {"OPTIONS", "HEAD"} if "GET" in methods else {"OPTIONS"}
    allow = {"Allow": ", ".join(sorted(methods | more))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    return respond(http_problem(request, 405, f"{request.method[:20]} is not allowed here"), allow)


def answer_error(request: Request, error: KooError) -> Response:
    """The response to one of koo's errors."""
    return respond(error_problem(request, error, runbook_of(error, base_of(request))))


def answer_http_error(request: Request, error: StarletteHTTPException) -> Response:
    """The response to an error of HTTP itself. A body that cannot be read is the client's mistake: 422."""
    if error.status_code == 400:
        return respond(http_problem(request, 422, "the body cannot be read as JSON"))
    kind = getattr(error, "kind", "")
    return respond(http_problem(request, error.status_code, str(error.detail), kind), error.headers)


def behind(door: Door, kind: Kind) -> type[ProblemRoute]:
    """Return a class of routes with this access check. A router that is included elsewhere keeps its class."""
    return type("GuardedRoute", (ProblemRoute,), {"door": door, "kind": kind})


def make_router(prefix: str, tag: str, door: Door, kind: Kind = "guarded") -> APIRouter:
    """A router whose operations are called `<tag>_<function>` in the API description."""
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=behind(door, kind),
        generate_unique_id_function=lambda route: f"{tag}_{route.name}",
        redirect_slashes=False,
    )


def file_router(door: Door) -> APIRouter:
    """A router for a page's files, which are not part of the API description."""
    return APIRouter(include_in_schema=False, route_class=behind(door, "page"))


def add_file(
    router: APIRouter, path: str, content: bytes, media_type: str, headers: Mapping[str, str]
) -> None:
    """Add a route that serves one file."""

    async def serve() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    router.add_api_route(path, serve, methods=["GET"])


class Described:
    """A response's shape, used only in the API description. Routes send what `koo.monitoring` built, without
    validation.

    The schema is built when the description is requested. FastAPI would build it at startup, which takes tens of
    milliseconds per route, for a description that few servers are ever asked for.
    """

    def __init__(self, shape: Any) -> None:
        self._shape = shape

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return any_schema()

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(TypeAdapter(self._shape).core_schema)


def described(shape: Any, *statuses: int, name: str = "") -> dict[str, Any]:
    """Return keyword arguments of a route: its response's shape with a recorded example, and its possible problems.

    `name`: the example's name, if it is not the shape's.
    """
    example = RECORDED.get(name or shape.__name__)
    answer = {"content": {"application/json": {"example": example}}}
    return {
        "response_model": Annotated[Any, Described(shape)],
        "responses": {200: answer, **problems(*statuses)},
    }


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route can have, for its description, in addition to those that every route has."""
    return {
        status: {"model": Problem, "description": PROBLEM_WORDS[status]}
        for status in sorted({401, 403, 500, *statuses})
    }


def describe_problems(app: FastAPI) -> None:
    """Correct the application's OpenAPI description where FastAPI's is wrong for koo's routes. koo's problems are
    `application/problem+json`, and its routes have no `HTTPValidationError`, which FastAPI adds to each route with a
    parameter.
    """
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        for ways in schema.get("paths", {}).values():
            for operation in ways.values():
                _mend_responses(operation.get("responses", {}))
        if '/HTTPValidationError"' not in json.dumps(schema.get("paths", {})):
            for name in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def describe_access(app: FastAPI, is_guarded: Callable[[str], bool]) -> None:
    """Mark in the application's OpenAPI description which paths need a token, so that generated clients send one."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        guarded = [ways for path, ways in schema.get("paths", {}).items() if is_guarded(path)]
        if guarded:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for ways in guarded:
            for operation in ways.values():
                operation["security"] = [{"token": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _mend_responses(responses: dict[str, Any]) -> None:
    contents = {status: response.get("content", {}) for status, response in responses.items()}
    ours = [status for status, content in contents.items() if _names(content, "Problem")]
    for status in ours:
        content = contents[status]
        content[MEDIA_TYPE] = content.pop("application/json")
    if ours and _names(contents.get("422", {}), "HTTPValidationError"):
        del responses["422"]


def _names(content: dict[str, Any], model: str) -> bool:
    schema = content.get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).endswith(f"/{model}")


class JsonView(Response):
    """Sends a view unchanged: only `monitoring.snapshot` decides which numbers exist and how they are named."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return as_json(content)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it if the client disconnects: a response that is never read would still be paid for."""
    # Both tasks are always cancelled and awaited in `finally`, even if this request itself is cancelled. Otherwise the
    # provider call would go on, and cost money, for a request that no longer exists.
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CallerLeft
        return task.result()
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _until_left(request: Request) -> None:
    """Return when the connection is closed. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
