"""koo in a Flask application, which has threads and no event loop: each view passes its coroutines to `koo.run`.

.venv/bin/flask --app examples/flask_app.py run --port 8002
.venv/bin/gunicorn --chdir examples --workers 2 --threads 8 --bind 127.0.0.1:8002 flask_app:app

curl 'http://127.0.0.1:8002/ask?q=Say+hello.'
curl 'http://127.0.0.1:8002/stream?q=Say+hello.'
curl http://127.0.0.1:8002/half/8
curl http://127.0.0.1:8002/health
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, request
from sqlalchemy import text

import koo
from koo import db_manager, get_all_ai_services_health, query_ai, stream_ai

app = Flask(__name__)


@app.get("/ask")
def ask() -> dict[str, Any]:
    """A whole answer, with the view's deadline: a call that takes longer is cancelled, and its cost so far is
    booked."""
    answer = koo.run(query_ai(service(), request.args["q"], max_tokens=20, timeout_s=60))
    return {"answer": str(answer), "service": answer.service, "cost": str(answer.cost_usd)}


@app.get("/stream")
def stream() -> Response:
    """An answer piece by piece. A client that disconnects closes the generator, and so the stream at the provider."""
    pieces = koo.run(stream_ai(service(), request.args["q"], max_tokens=20))
    return Response((str(piece) for piece in pieces), mimetype="text/plain")


@app.get("/half/<int:number>")
def half(number: int) -> dict[str, int]:
    """Write a transaction as one coroutine, so that all of it runs on koo's loop."""

    async def work() -> int:
        async with db_manager.session_scope() as session:
            return int((await session.execute(text("SELECT :number / 2"), {"number": number})).scalar_one())

    return {"half": koo.run(work())}


@app.get("/health")
def health() -> dict[str, Any]:
    """Status functions are synchronous in koo, and do not need `koo.run`."""
    return {"services": get_all_ai_services_health()["overall_health"]}


@app.errorhandler(koo.ExternalServiceError)
def refused(error: koo.ExternalServiceError) -> tuple[dict[str, str], int, dict[str, str]]:
    """koo's own message, and a `Retry-After` header."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(int(error.retry_after_s) + 1)}
    return {"error": str(error), "kind": error.kind}, 503, headers


def service() -> str:
    """The service that the request names, or else the small model on this machine."""
    return request.args.get("service", "local")
