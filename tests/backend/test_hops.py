"""The call stack from `query_ai` to the wire. A frame that only forwards its arguments is one more file to read."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from koo.http.client import HttpClient
from koo.testing.providers import FakeAnthropic

ROOT = Path(__file__).parents[2]
WAY = [
    "src/koo/default/questions.py query_ai",
    "src/koo/platform.py query",  # opens the platform if it is not open
    "src/koo/ai/gateway.py query",  # turns the completion into an answer
    "src/koo/ai/gateway.py _begin",  # one service after another
    "src/koo/guard.py begin",  # keeps the permit until the answer is complete
    "src/koo/guard.py call",  # one attempt after another
    "src/koo/ai/providers/adapter.py complete",  # the wire format
    "src/koo/ai/providers/transport.py request",  # maps errors to koo's
]
STREAMED = [
    "src/koo/ai/stream.py __anext__",
    "src/koo/ai/guarded_stream.py _begin",
    "src/koo/ai/stream.py _open",  # the part that differs from an operation's stream
    "src/koo/ai/gateway.py start",
    "src/koo/ai/gateway.py _begin",
    "src/koo/guard.py begin",
    "src/koo/guard.py call",
    "src/koo/ai/stream.py open_stream",
    "src/koo/ai/stream.py next_text",
    "src/koo/ai/providers/streaming.py read_stream",
    "src/koo/ai/providers/transport.py open",
]


@pytest.mark.parametrize(("method", "way"), [("request", WAY), ("stream", STREAMED)])
def test_a_prompt_passes_through_few_frames(
    fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch, method: str, way: list[str]
) -> None:
    """The frames of koo's own code above the HTTP client, outermost first."""
    from services.hybrid_ai_manager import query_ai, stream_ai

    seen: list[list[str]] = []
    real = getattr(HttpClient, method)

    async def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(frames())
        return await real(*args, **kwargs)

    monkeypatch.setattr(HttpClient, method, watched)

    async def main() -> None:
        if method == "request":
            await query_ai("claude", "Hi")
        else:
            async with stream_ai("claude", "Hi") as chunks:
                await anext(chunks)

    asyncio.run(main())
    assert seen == [way]


def frames() -> list[str]:
    found, frame = list[str](), inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "src") or path.is_relative_to(ROOT / "backend"):
            found.insert(0, f"{path.relative_to(ROOT)} {frame.f_code.co_name}")
        frame = frame.f_back
    return found
