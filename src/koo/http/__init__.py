"""An HTTP client on top of aiohttp that reports how far a failed request got and limits what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koo.http.client import HttpClient

__all__ = ["HttpClient"]


def __getattr__(name: str) -> Any:
    """Import `HttpClient` on first use, because it loads aiohttp, which the other modules here do not need."""
    if name == "HttpClient":
        from koo.http.client import HttpClient

        return HttpClient
    raise AttributeError(name)
