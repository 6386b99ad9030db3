"""The HTTP interface, as a standalone application or mounted in another one.

`create_app(platform)` is what `koo serve` and `backend/main.py` run. `mount(app, platform)` adds the same routes to an
existing application: its other routes, its errors and its middleware stay as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

import koo
from koo.database.database import Database
from koo.errors import KooError
from koo.platform import Platform
from koo.web.ai import ai_router
from koo.web.api_docs import MadeAside, docs_router
from koo.web.dashboard_routes import PATH, dashboard_router
from koo.web.door import Door, door_of
from koo.web.edge import PROBES, Edge
from koo.web.guest import Guest, receive_guest
from koo.web.live import live_of
from koo.web.metrics import METRICS_PATH, metrics_router, told_to_siblings
from koo.web.monitoring import monitoring_router
from koo.web.negotiation import Gzip
from koo.web.probes import probes_router
from koo.web.readiness import Readiness, readiness_of
from koo.web.routing import answer_error, answer_http_error, describe_access, describe_problems
from koo.web.runbook import runbook_router
from koo.web.session_routes import login_router, session_router
from koo.web.spans import Application

PREFIX = "/api/v1"
GZIP_BYTES_MIN = 1024
FIRST_LOOK_S = 0.5
"""A healthy database responds within this time. Startup does not wait longer for one that is unavailable."""
LOOK_AGAIN_S = 1.0
DESCRIPTION = (
    "The resilience layer of a service that depends on a database and on AI providers.\n\n"
    "Times are ISO 8601 in UTC, durations are in seconds, ratios from 0 to 1, money is a decimal string. Errors are "
    "`application/problem+json` (RFC 9457), with `Retry-After` if a time is known."
)
TAGS = [
    {"name": "monitoring", "description": "The state of everything, and the database."},
    {"name": "ai", "description": "Queries to AI services, and their state and resets."},
    {"name": "probes", "description": "For orchestrators and scrapers."},
]


def create_app(platform: Platform, *, hosts: Iterable[str] = ()) -> FastAPI:
    """The whole server for one platform. It opens the platform at startup and closes it at shutdown.

    `hosts`: further names of the server, in addition to those in KOO_HOST, KOO_URL and KOO_PUBLIC_URL; "testserver" for
    a `TestClient`. Nothing is read or opened here. Startup raises `ConfigurationError` if a setting is invalid.
    """
    readiness = readiness_of(platform)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _serving(platform, readiness):
            yield

    app = Application(
        title="koo",
        version=koo.__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"exclude": _is_probe},
        middleware=[
            Middleware(Edge, log_requests=lambda: platform.options.log.requests),
            # Level 6 of 9: higher levels take several times as long for a few percent, on the thread that serves all
            # requests.
            Middleware(Gzip, minimum_size=GZIP_BYTES_MIN, compresslevel=6),
            Middleware(MadeAside),
        ],
        exception_handlers={HTTPException: _answer_http_error, KooError: _answer_error},
    )
    door = _include(app, platform, readiness, PREFIX, True, hosts)
    app.include_router(docs_router(door))
    app.include_router(dashboard_router(door, environment=lambda: platform.options.environment))
    app.include_router(login_router(door, PREFIX, PATH))
    describe_problems(app)
    _name_the_path(app, platform)
    return app


def _name_the_path(app: FastAPI, platform: Platform) -> None:
    """Add the path of KOO_URL to the API description. Generated clients need it behind a proxy that strips a path
    prefix.
    """
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        path = urlsplit(platform.options.url).path.rstrip("/")
        return {**document, "servers": [{"url": path}]} if path else document

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's guide extends it


def mount(
    app: Starlette,
    platform: Platform | None = None,
    *,
    prefix: str = PREFIX,
    protect: bool = True,
    hosts: Iterable[str] = (),
    dashboard: str | None = PATH,
    metrics: str | None = METRICS_PATH,
    name: str = "",
) -> None:
    """Add koo's routes to an existing application of FastAPI or Starlette. Call it before the application starts.

    `platform` defaults to the process's own, which `query_ai`, `db_manager` and `SessionDep` use. `protect`: whether
    the rules of `koo.web.security` apply to koo's routes (and only to these), whatever the prefix. If False, your own
    middleware decides who is allowed. `hosts`: further names of your server, in addition to those in KOO_HOST,
    KOO_URL and KOO_PUBLIC_URL; "testserver" for a `TestClient`. `dashboard`: its path, "/" for your application's root;
    None leaves it out. `metrics`: the path of the metrics for Prometheus, if your application has its own `/metrics`;
    None leaves them out. `name`: your application's name in the dashboard's header; the default is the `title` of a
    FastAPI application. The platform opens before your application's own lifespan and closes after it. koo's errors
    that your routes raise become problems, unless you handle them.
    """
    platform = platform or koo.platform
    prefix, dashboard = prefix.rstrip("/"), dashboard and dashboard.rstrip("/")
    readiness = readiness_of(platform)
    host = app if isinstance(app, FastAPI) else FastAPI(openapi_url=None, redirect_slashes=False)
    door = _include(host, platform, readiness, prefix, protect, hosts, metrics)
    host.state.koo_application = name or _title_of(app)
    if dashboard is not None:
        named = (host.state.koo_application, lambda: platform.options.environment)
        host.include_router(dashboard_router(door, prefix, dashboard, *named))
        host.include_router(login_router(door, prefix, dashboard, host.state.koo_application))
    if host is not app:
        # A Starlette router cannot include FastAPI routes, so they stay in a FastAPI application behind one route. The
        # prefix is set on `app` too: problems that its own routes raise link to the runbook below that prefix.
        app.state.koo_prefix = prefix
        receive_guest(app.router.routes, Guest(host))
    if KooError not in app.exception_handlers:
        app.add_exception_handler(KooError, _answer_error)
    _wrap_lifespan(app, platform, readiness)
    describe_problems(host)


def _title_of(app: Starlette) -> str:
    """The application's name; empty if the title is the framework's default: "FastAPI" says nothing about the
    application."""
    title = app.title if isinstance(app, FastAPI) else ""
    return "" if title == "FastAPI" else title


def _include(
    app: FastAPI,
    platform: Platform,
    readiness: Readiness,
    prefix: str,
    protect: bool,
    hosts: Iterable[str],
    metrics: str | None = METRICS_PATH,
) -> Door:
    app.state.koo_prefix, names = prefix, tuple(hosts)
    readiness.expects_start = True
    door = door_of(platform, protect, names)
    # These routes come first, because routes are tried in order: behind forty others a probe would cost three times as
    # much.
    app.include_router(probes_router(readiness, door))
    app.include_router(monitoring_router(platform, protect=protect, hosts=names), prefix=prefix)
    app.include_router(ai_router(platform, protect=protect, hosts=names), prefix=prefix)
    app.include_router(session_router(door), prefix=prefix)
    app.include_router(runbook_router(door), prefix=prefix)
    if metrics is not None:
        app.include_router(metrics_router(platform, door, metrics))
    describe_access(
        app,
        lambda path: (
            protect
            and platform.options.token is not None
            and (
                path == metrics
                or path.startswith((f"{prefix}/monitoring", f"{prefix}/ai", f"{prefix}/session"))
            )
        ),
    )
    return door


def _wrap_lifespan(app: Starlette, platform: Platform, readiness: Readiness) -> None:
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(inner_app: Any) -> AsyncIterator[Any]:
        async with _serving(platform, readiness), inner(inner_app) as state:
            yield state

    app.router.lifespan_context = lifespan


@asynccontextmanager
async def _serving(platform: Platform, readiness: Readiness) -> AsyncIterator[None]:
    """Open the platform and check the database once, without waiting long for it."""
    async with platform, told_to_siblings(platform):
        # The first check decides what `/readyz` reports. A healthy database is checked before the first request
        # arrives. One that hangs must not delay startup: the server would be killed before it could report why it is
        # not ready.
        live = live_of(platform)
        look = asyncio.create_task(_look_first(platform.database), name="koo first look")
        try:
            await asyncio.wait({look}, timeout=FIRST_LOOK_S)
            readiness.begun, readiness.closing = True, False
            yield
        finally:
            readiness.closing = True
            look.cancel()
            await asyncio.gather(look, live.close(), return_exceptions=True)


async def _look_first(database: Database) -> None:
    """Check the database until it has been opened. From then on it checks itself.

    Without this, a process whose SQLite folder could not be created would stay not ready after the folder is there: no
    traffic is sent to it, so no call opens the database.
    """
    while True:
        await database.health_check()
        if database.connections is not None:
            return
        await database.clock.sleep(LOOK_AGAIN_S)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KooError)
    return answer_error(request, error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer_http_error(request, error)


def _is_probe(scope: Any) -> bool:
    return scope.get("path") in PROBES
