"""Limits on the work for a response: a huge error is read only in part, and a long stream lets other tasks run."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from koo.ai.providers.openai_errors import FIELDS_MAX, parse_error
from koo.ai.providers.streaming import read_events
from koo.http.events import EVENTS_AT_ONCE, PORTION_BYTES


def test_only_the_first_fields_of_a_huge_error_are_read() -> None:
    waits = {f"retry_after_{number}": number for number in range(10 * FIELDS_MAX)}
    error = parse_error(429, {}, {"error": {"message": "m", **waits, "metadata": {"headers": waits}}})
    assert FIELDS_MAX - 1 <= len(error.stated) <= FIELDS_MAX and len(error.headers) == FIELDS_MAX
    quotas = [{"quotaId": "x"}] * FIELDS_MAX + [{"quotaId": "PerDay"}]
    assert parse_error(429, {}, {"error": {"violations": quotas}}).more == ()


@pytest.mark.parametrize("body", [b"data: 1\n\n" * 20_000, (b"data: {}\n" * 5_000 + b"\n") * 2])
def test_a_stream_in_place_of_a_response_is_read_in_portions(body: bytes) -> None:
    """The test counts the events between two turns of the loop."""
    turns, read = [0], list[int]()

    class Cut(Exception):
        """The stream has no end."""

    async def turn() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def main() -> None:
        turning = asyncio.create_task(turn())
        reader: Any = SimpleNamespace(
            read_leniently=lambda event: read.append(turns[0]),
            finish=lambda: None,
            wire=SimpleNamespace(unfinished=Cut),
        )
        with pytest.raises(Cut):
            await read_events(reader, body)
        turning.cancel()

    asyncio.run(main())
    assert len(read) == body.count(b"data") and turns[0] > len(body) // PORTION_BYTES
    assert max(read.count(one) for one in set(read)) <= EVENTS_AT_ONCE
