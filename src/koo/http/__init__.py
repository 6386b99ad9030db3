"""One HTTP client over aiohttp: what a request may do, what its failure means, what a body holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koo.http.client import HttpClient

__all__ = ["HttpClient"]


def __getattr__(name: str) -> Any:
    """`HttpClient`; aiohttp is loaded with it, and not for what needs only the words beside it."""
    if name == "HttpClient":
        from koo.http.client import HttpClient

        return HttpClient
    raise AttributeError(name)
