"""The HTTP interface, as a standalone application (`create_app`) or mounted in another one (`mount`).

from koo.web import mount

mount(app)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koo.web.ai import ai_router
    from koo.web.app import create_app, mount
    from koo.web.beside import serve_beside
    from koo.web.metrics import METRICS_TYPE, metrics_text
    from koo.web.monitoring import monitoring_router
    from koo.web.server import serve

_PLACES = {
    "METRICS_TYPE": "koo.web.metrics",
    "ai_router": "koo.web.ai",
    "create_app": "koo.web.app",
    "metrics_text": "koo.web.metrics",
    "monitoring_router": "koo.web.monitoring",
    "mount": "koo.web.app",
    "serve": "koo.web.server",
    "serve_beside": "koo.web.beside",
}

__all__ = [
    "METRICS_TYPE",
    "ai_router",
    "create_app",
    "metrics_text",
    "monitoring_router",
    "mount",
    "serve",
    "serve_beside",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'koo.web' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
