"""Fake provider servers that speak the real wire formats on 127.0.0.1: scripted, counted, billed.

    async with FakeAnthropic() as server:
        server.script(error(529, "overloaded_error"), answer("Paris."))
        ...                                  # two calls of the code under test, with base_url=server.base_url
        assert len(server.requests) == 2
        assert server.billed_usd == ...

Without `async` (`with FakeAnthropic() as server:`) it runs in a separate thread, for synchronous code. For benchmarks,
`InstantServer("anthropic")` is a separate process that responds immediately with prepared bytes. To start one from a
shell: `python -m koo.testing.providers --vendor anthropic --port 8901 --instant`.

A fake is set up with verbs, `server.fails(529, times=3).answers("Paris.")`, or step by step as above, with every option
of a step. It is strict: a value that is not a step raises TypeError, a taken port raises OSError, and unused steps or
refused requests end the block with `FakeMisused`, unless the fake was made with `strict=False`.

A fake checks what the real server checks (key, required fields, values, the model's name) before it uses its script. In
koo's tests the vendors' own SDKs talk to the fakes, to verify that they behave like the real servers.
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
