"""Each handler of examples/handlers, tested through its framework's own test client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import django
import pytest
from django.test import AsyncClient, Client
from litestar.testing import TestClient

from examples.handlers import django_app, flask_app, litestar_app, quart_app

PROBLEM = {
    "type": "urn:koo:problem:circuit_open",
    "title": "Service Unavailable",
    "status": 503,
    "detail": "claude: 5 failures in a row; try again in 42 s",
    "kind": "circuit_open",
    "service": "claude",
    "retry_after_s": 41.7,
    "attempts": 0,
}


def check(status: int, headers: Mapping[str, str], body: bytes, path: str = "/ask") -> None:
    lower = {name.lower(): value for name, value in headers.items()}
    assert status == 503
    assert (lower["content-type"], lower["retry-after"]) == ("application/problem+json", "42")
    assert json.loads(body) == {**PROBLEM, "instance": path}


def test_flask() -> None:
    answer = flask_app.app.test_client().get("/ask")
    check(answer.status_code, dict(answer.headers), answer.data)


def test_quart() -> None:
    async def main() -> None:
        answer = await quart_app.app.test_client().get("/ask")
        check(answer.status_code, dict(answer.headers), await answer.get_data(as_text=False))

    asyncio.run(main())


def test_litestar() -> None:
    with TestClient(litestar_app.app) as client:
        answer = client.get("/ask")
        check(answer.status_code, answer.headers, answer.content)


@pytest.fixture(scope="module", autouse=True)
def django_is_set_up() -> None:
    assert django_app.urlpatterns
    django.setup()


@pytest.mark.parametrize("path", ["/ask", "/ask-async"])
def test_django_under_wsgi(path: str) -> None:
    answer = Client().get(path)
    check(answer.status_code, answer.headers, answer.content, path)


@pytest.mark.parametrize("path", ["/ask", "/ask-async"])
def test_django_under_asgi(path: str) -> None:
    async def main() -> None:
        answer = await AsyncClient().get(path)
        check(answer.status_code, answer.headers, answer.content, path)

    asyncio.run(main())
