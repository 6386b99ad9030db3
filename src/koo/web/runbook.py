"""`/runbook`: what to do about each kind of alert, as a page, or as JSON for clients that request it.

It contains nothing about this installation, so it needs no token: the link in an alert must work on the phone of an
operator who has just been woken. One file without scripts, under a policy that loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from html import escape

from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import Response

from koo.monitoring.runbook import PATH, Runbook, runbook, runbooks
from koo.web.door import Door
from koo.web.routing import JsonView, file_router

STYLE = (
    ":root{color-scheme:light dark}"
    "body{margin:0 auto;max-width:44rem;padding:1.25rem;font:16px/1.5 system-ui,sans-serif}"
    "h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .25rem}p{margin:.4rem 0}"
    "dt{font-weight:600;margin-top:.5rem}dd{margin:0}"
    "article:target{outline:2px solid;outline-offset:.5rem;border-radius:4px}"
)
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
}


def runbook_router(door: Door) -> APIRouter:
    """The page with all kinds, and one page for each."""
    router = file_router(door)

    @router.get(PATH)
    async def get_runbook(request: Request) -> Response:
        return _answer(request, runbooks().values())

    @router.get(f"{PATH}/{{kind}}")
    async def get_kind(kind: str, request: Request) -> Response:
        found = runbook(kind)
        if found is None:
            raise HTTPException(404, "no such kind of alert")
        return _answer(request, [found])

    return router


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _answer(request: Request, entries: Iterable[Runbook]) -> Response:
    if "text/html" not in request.headers.get("accept", "text/html"):
        return JsonView({one.kind: asdict(one) for one in entries})
    listed = list(entries)
    title = f"{listed[0].title}: what to do" if len(listed) == 1 else "What to do about alerts"
    body = "".join(map(_article, listed))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · koo</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>"
    )
    return Response(page, media_type="text/html", headers=HEADERS)


def _article(one: Runbook) -> str:
    advice = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in one.advice.split("\n\n"))
    facts = {"Refuses": one.refuses, "Begins": one.begins, "Ends": one.ends}
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    head = f"<h2>{escape(one.title)}</h2><p><code>{escape(one.kind)}</code>, {escape(one.severity)}</p>"
    return f'<article id="{escape(one.kind)}">{head}{advice}<dl>{rows}</dl></article>'
