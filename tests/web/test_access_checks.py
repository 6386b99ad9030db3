"""Every route of koo, collected from the routers themselves, has its access check, however it is mounted.

A role is refused or allowed by the route's kind and the method alone. So a new route cannot be forgotten, and no way
of mounting leaves the check out: `create_app`, `mount` below three prefixes, routers included by hand, an application
in an application.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

from koo import run
from koo.platform import Platform
from koo.web import ai_router, create_app, monitoring_router, mount
from koo.web.api_docs import docs_router
from koo.web.dashboard_routes import dashboard_router
from koo.web.door import door_of
from koo.web.metrics import metrics_router
from koo.web.probes import probes_router
from koo.web.readiness import readiness_of
from koo.web.routing import ProblemRoute
from koo.web.runbook import runbook_router
from tests.web.serving import platform

WRITE, READ = "w" * 32, "r" * 32
ROLES = {"nobody": "", "a guess": "x" * 32, "reads": READ, "writes": WRITE}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
PREFIXES = ("/api/v1", "/t/{tenant}/api", "")


class One(NamedTuple):
    """A route: its path below the application, its router, and its kind."""

    path: str
    kind: str
    methods: frozenset[str]


def routes(koo: Platform, prefix: str) -> Iterator[One]:
    """Collected from the routers, not written down."""
    door = door_of(koo)
    for router, before in (
        (monitoring_router(koo), prefix),
        (ai_router(koo), prefix),
        (runbook_router(door), prefix),
        (metrics_router(koo, door), ""),
        (probes_router(readiness_of(koo), door), ""),
        (docs_router(door), ""),
        (dashboard_router(door), ""),
    ):
        for route in router.routes:
            assert isinstance(route, ProblemRoute)
            path = re.sub(r"\{[^}]*\}", "claude", before + route.path)
            yield One(path, route.kind, frozenset(route.methods or ()))


def served_by(koo: Platform) -> FastAPI:
    return create_app(koo)


def mounted(prefix: str) -> Callable[[Platform], FastAPI]:
    def make(koo: Platform) -> FastAPI:
        app = FastAPI()
        mount(app, koo, prefix=prefix)
        return app

    return make


def in_starlette(koo: Platform) -> Starlette:
    app = Starlette()
    mount(app, koo)
    return app


def by_hand(koo: Platform) -> FastAPI:
    app = FastAPI()
    for router in (monitoring_router(koo), ai_router(koo)):
        app.include_router(router, prefix="/hand/{made}")
    return app


def within(koo: Platform) -> Starlette:
    inner = FastAPI()
    mount(inner, koo)
    return Starlette(routes=[Mount("/outer", inner)])


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Platform]]:
    """Platforms that are closed at the end: each request of a test client opens them on a background loop."""
    open_ones: list[Platform] = []

    def make(**options: Any) -> Platform:
        open_ones.append(platform(tmp_path, **options))
        return open_ones[-1]

    yield make
    for one in open_ones:
        run(one.close())


WAYS: dict[str, tuple[Callable[[Platform], Any], str, str]] = {
    "create_app": (served_by, "", "/api/v1"),
    **{f"mount at {prefix or '/'}": (mounted(prefix), "", prefix) for prefix in PREFIXES},
    "mount in Starlette": (in_starlette, "", "/api/v1"),
    "by hand": (by_hand, "", "/hand/{made}"),
    "an application within": (within, "/outer", "/api/v1"),
}


def expected(one: One, role: str, method: str) -> set[int]:
    """The statuses expected from the access check. Empty: it lets the request through, and the route decides."""
    if one.kind != "guarded" or role == "writes":
        return set()
    if role == "reads":
        return set() if method in ("GET", "HEAD", "OPTIONS") else {403}
    return {401, 429} if role == "a guess" else {401}


@pytest.mark.parametrize("way", WAYS)
def test_each_route_requires_a_token_however_it_is_mounted(way: str, made: Callable[..., Platform]) -> None:
    """Routes are requested with every method in koo's own application, and elsewhere with one method that they have
    and one that they do not have.
    """
    make, before, prefix = WAYS[way]
    koo = made(token=WRITE, read_token=READ)
    mine = {"/monitoring", "/ai"} if way == "by hand" else {""}
    seen = 0
    with TestClient(make(koo), base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        for one in routes(koo, prefix):
            if not any(part in one.path for part in mine) or (before + prefix + one.path).endswith("/rotate"):
                continue
            if way.startswith(("mount", "an app")) and one.path.startswith("/docs"):
                continue  # the host's own
            methods = METHODS if way == "create_app" else (min(one.methods), "PROPFIND")
            for role in ("nobody", "a guess", "reads"):
                headers = {"Authorization": f"Bearer {ROLES[role]}"} if ROLES[role] else {}
                for method in methods:
                    statuses = expected(one, role, method)
                    if statuses:
                        reply = client.request(method, before + one.path, headers=headers)
                        assert reply.status_code in statuses, (way, role, method, one.path, reply.status_code)
                        assert reply.headers["Cache-Control"] == "no-store"
                        assert reply.headers["X-Content-Type-Options"] == "nosniff"
                        seen += 1
    assert seen > 100


@pytest.mark.parametrize("way", WAYS)
def test_without_a_token_foreign_pages_and_other_machines_are_refused(
    way: str, made: Callable[..., Platform]
) -> None:
    make, before, prefix = WAYS[way]
    koo = made()
    app = make(koo)
    far = TestClient(app, base_url="http://localhost", client=("203.0.113.9", 50000))
    mine = {"/monitoring", "/ai"} if way == "by hand" else {""}
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as near:
        far.portal = near.portal  # one loop for all requests
        for one in routes(koo, prefix):
            if one.kind != "guarded" or not any(part in one.path for part in mine):
                continue
            path = before + one.path
            for method in one.methods:
                assert far.request(method, path).status_code == 403, (way, method, path)
                assert near.request(method, path, headers={"Host": "evil.example"}).status_code == 403
                assert near.request(method, path, headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 403
                if method == "POST":
                    for page in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                        assert near.request(method, path, headers=page).status_code == 403, (way, path)


def test_with_protect_false_headers_and_size_limits_remain(made: Callable[..., Platform]) -> None:
    app = FastAPI()
    mount(app, made(), protect=False)
    client = TestClient(app, base_url="http://localhost")
    reply = client.get("/api/v1/monitoring/health")
    assert (reply.status_code, reply.headers["Cache-Control"]) == (200, "no-store")
    body = b'{"service": "claude", "prompt": "' + b"a" * (17 * 2**20) + b'"}'
    assert client.post("/api/v1/ai/query", content=body).status_code == 413


def test_a_body_without_a_length_is_limited_too(made: Callable[..., Platform]) -> None:
    app = FastAPI()
    mount(app, made(), hosts=["testserver"])

    def pieces() -> Iterator[bytes]:
        for _ in range(17):
            yield b"a" * 2**20

    reply = TestClient(app).post("/api/v1/ai/query", content=pieces())
    assert reply.status_code == 413
