"""koo's errors as problem+json in Django, for synchronous and `async def` views: one middleware.

python examples/handlers/django_app.py runserver 8003
"""

from __future__ import annotations

import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.deprecation import MiddlewareMixin

import koo


class KooErrors(MiddlewareMixin):
    """Django calls it with each exception of a view; None leaves other errors to Django."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, koo.KooError):
            return None
        body, status, headers = koo.problem_answer(error, request.path)
        return HttpResponse(body, status=status, headers=headers)


def ask(request: HttpRequest) -> HttpResponse:
    """A view whose call is refused by an open circuit."""
    raise koo.CircuitOpen("claude", "5 failures in a row", 41.7)


async def ask_async(request: HttpRequest) -> HttpResponse:
    """The same under ASGI."""
    raise koo.CircuitOpen("claude", "5 failures in a row", 41.7)


urlpatterns = [path("ask", ask), path("ask-async", ask_async)]

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=[f"{__name__}.KooErrors"],
    SECRET_KEY="an example's",
)

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
