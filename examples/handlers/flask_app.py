"""koo's errors as problem+json in Flask: one handler.

.venv/bin/flask --app examples/handlers/flask_app.py run --port 8003
"""

from __future__ import annotations

from flask import Flask, request

import koo

app = Flask(__name__)


@app.errorhandler(koo.KooError)
def answer(error: koo.KooError) -> koo.ProblemAnswer:
    """Return body, status and headers, which Flask accepts from a view."""
    return koo.problem_answer(error, request.path)


@app.get("/ask")
def ask() -> str:
    """A view whose call is refused by an open circuit."""
    raise koo.CircuitOpen("claude", "5 failures in a row", 41.7)
