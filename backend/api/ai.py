"""AI services over HTTP: questions, state and resets as a FastAPI router.

    app.include_router(router, prefix="/api/v1")

It serves `/ai/...`; its errors are `application/problem+json`. The rules of access are in its routes, as in those of
`koo serve`: see docs/security.md.
"""

from __future__ import annotations

from koo import platform
from koo.web import ai_router

__all__ = ["router"]

router = ai_router(platform)
