"""Streams an answer from the small local model: no key, no server to start.

.venv/bin/python examples/stream.py
"""

from __future__ import annotations

import asyncio

from koo import ExternalServiceError, StreamTruncated, stream_ai


async def read_to_the_end() -> None:
    """Print each chunk as it arrives, and then the tokens and the cost of the whole answer."""
    stream = stream_ai("local", "Name three colours.", max_tokens=40, timeout_s=60)
    async with stream:
        async for chunk in stream:
            print(chunk, end="", flush=True)
    print()
    if stream.answer is not None:
        print(f"{stream.answer.usage.output_tokens} tokens, {stream.answer.cost_usd} USD")


async def leave_early() -> None:
    """Stop reading when you have enough: the model stops, and the tokens used so far are booked."""
    words = 0
    async with stream_ai("local", "Tell me a long story.", max_tokens=200) as stream:
        async for _ in stream:
            words += 1
            if words == 3:
                break
    print(f"stopped after {words} chunks")


async def main() -> None:
    try:
        await read_to_the_end()
        await leave_early()
    except StreamTruncated as error:
        print(f"\nbroke off after {len(error.partial_text)} characters: {error}")
    except ExternalServiceError as error:
        print(f"no answer: {error}")


if __name__ == "__main__":
    asyncio.run(main())
