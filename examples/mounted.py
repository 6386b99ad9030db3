"""Adding koo to an existing FastAPI application: two lines, and your own code does not change.

    .venv/bin/uvicorn --app-dir examples mounted:app --port 8001
    curl http://127.0.0.1:8001/orders/7
    curl http://127.0.0.1:8001/api/v1/monitoring/health

koo's routes are under /api/v1; the probes, /metrics and the page at /dashboard/ are next to it. A web page of another
origin cannot change anything there. koo opens before your application starts, and closes after it has ended.
"""

from __future__ import annotations

from fastapi import FastAPI
from sqlalchemy import text

from koo import db_manager
from koo.web import mount

app = FastAPI(title="orders")
mount(app)


@app.get("/orders/{number}")
async def read_order(number: int) -> dict[str, int]:
    """Your own route on the guarded database: while its breaker is open, the response is a 503 with Retry-After."""
    async with db_manager.session_scope(readonly=True) as session:
        half = (await session.execute(text("SELECT :number / 2"), {"number": number})).scalar_one()
    return {"order": number, "half": half}
