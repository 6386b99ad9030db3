"""A Django application under ASGI or WSGI whose views call koo in every way of Django, for test_django.py."""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from sqlalchemy import text

import koo

koo.ai_error_handler.register_service("search", idempotent=True)


class Client:
    """Like an SDK's client, it belongs to the loop on which it was made."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def find(self, words: str) -> str:
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        return words.upper()


async def query() -> str:
    return str(await koo.query_ai("claude", "What is the capital of France?", max_tokens=20))


async def operation() -> str:
    return await koo.execute_ai_operation("search", Client().find, "shoes")


async def stream() -> str:
    return "".join(
        [str(piece) async for piece in koo.stream_ai("claude", "Capital of France?", max_tokens=20)]
    )


async def transaction() -> str:
    async with koo.db_manager.session_scope() as session:
        return str(await session.scalar(text("SELECT 40 + 2")))


WORK = {"query": query, "operation": operation, "stream": stream, "transaction": transaction}


def bridged(_: HttpRequest, what: str) -> JsonResponse:
    """A synchronous view."""
    return JsonResponse({"said": koo.run(WORK[what]())})


def by_asgiref(_: HttpRequest, what: str) -> JsonResponse:
    """A synchronous view with Django's own bridge."""
    try:
        return JsonResponse({"said": async_to_sync(WORK[what])()})
    except RuntimeError as error:
        return JsonResponse({"told": str(error)})


async def awaited(_: HttpRequest, what: str) -> JsonResponse:
    """An `async def` view."""
    try:
        return JsonResponse({"said": await WORK[what]()})
    except RuntimeError as error:
        return JsonResponse({"told": str(error)})


async def counts(_: HttpRequest) -> JsonResponse:
    """The number of calls."""
    return JsonResponse({name: one["metrics"]["total_requests"] for name, one in status().items()})


def status() -> dict[str, Any]:
    return dict(koo.ai_error_handler.get_all_services_status())


urlpatterns = [
    path("bridged/<what>", bridged),
    path("by-asgiref/<what>", by_asgiref),
    path("awaited/<what>", awaited),
    path("counts", counts),
]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="a trial's", MIDDLEWARE=[])
application = get_asgi_application()
wsgi = get_wsgi_application()
