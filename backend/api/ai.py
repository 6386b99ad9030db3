"""AI services over HTTP: queries, state and resets as a FastAPI router.

    app.include_router(router, prefix="/api/v1")

It serves `/ai/...`; its errors are `application/problem+json`. Its routes enforce the same access rules as those of
`koo serve`: see docs/security.md.
"""

from __future__ import annotations

from koo import platform
from koo.web import ai_router

__all__ = ["router"]

router = ai_router(platform)
