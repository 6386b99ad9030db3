"""koo's errors as problem+json in Quart: one handler.

quart --app examples/handlers/quart_app.py run --port 8003
"""

from __future__ import annotations

from quart import Quart, request

import koo

app = Quart(__name__)


@app.errorhandler(koo.KooError)
async def answer(error: koo.KooError) -> koo.ProblemAnswer:
    """Return body, status and headers, which Quart accepts from a view."""
    return koo.problem_answer(error, request.path)


@app.get("/ask")
async def ask() -> str:
    """A view whose call is refused by an open circuit."""
    raise koo.CircuitOpen("claude", "5 failures in a row", 41.7)
