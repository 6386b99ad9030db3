"""Fake provider servers that speak the real wire formats on 127.0.0.1: scripted, counted, billed.

    async with FakeAnthropic() as server:
        server.script(error(529, "overloaded_error"), answer("Paris."))
        ...                                  # two calls of the code under test, with base_url=server.base_url
        assert len(server.requests) == 2
        assert server.billed_usd == ...

Without `async` (`with FakeAnthropic() as server:`) it runs in a separate thread, for synchronous code. For benchmarks
`InstantServer("anthropic")` is a separate process that answers at once with prepared bytes; by hand:
`python -m koo.testing.providers --vendor anthropic --port 8901 --instant`.

What a fake does is said in verbs, `server.fails(529, times=3).answers("Paris.")`, or step by step as above, with
everything that a step can say. It is strict: what is not a step is a TypeError, a taken port raises OSError, and steps
that are left over or requests that it refused end the block with `FakeMisused`, unless it was made with `strict=False`.

A fake checks what the real server checks (key, required fields, values, the model's name) before it looks at its
script, and the vendors' own SDKs talk to it in koo's tests, to prove that it is true.
"""

from __future__ import annotations

from koo.testing.providers.anthropic import FakeAnthropic
from koo.testing.providers.diary import FakeMisused
from koo.testing.providers.gemini import FakeGemini, blocked, quota
from koo.testing.providers.instant import InstantServer
from koo.testing.providers.openai import FakeCompatible, FakeOpenAI
from koo.testing.providers.perplexity import FakePerplexity
from koo.testing.providers.script import (
    Answer,
    Cut,
    Delay,
    Failure,
    Gate,
    Hang,
    Nothing,
    Raw,
    Step,
    Stream,
    answer,
    cut,
    delay,
    error,
    hang,
    html,
    nothing,
    raw,
    stream,
)
from koo.testing.providers.server import Bill, FakeProvider
from koo.testing.providers.wire import ReceivedRequest

__all__ = [
    "Answer",
    "Bill",
    "Cut",
    "Delay",
    "Failure",
    "FakeAnthropic",
    "FakeCompatible",
    "FakeGemini",
    "FakeMisused",
    "FakeOpenAI",
    "FakePerplexity",
    "FakeProvider",
    "Gate",
    "Hang",
    "InstantServer",
    "Nothing",
    "Raw",
    "ReceivedRequest",
    "Step",
    "Stream",
    "answer",
    "blocked",
    "cut",
    "delay",
    "error",
    "hang",
    "html",
    "nothing",
    "quota",
    "raw",
    "stream",
]
