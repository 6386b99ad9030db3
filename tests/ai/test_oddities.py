"""koo treats each odd answer as its row of the tables says. Each row is sent over a socket."""

from __future__ import annotations

import asyncio

import pytest

from koo.errors import StreamTruncated
from koo.testing.providers import answer
from koo.testing.providers.script import raw
from tests.ai.odd_answers import ANSWERS, MESSAGE_START, MESSAGE_STOP, message, message_end
from tests.ai.odd_refusals import ROWS as REFUSALS
from tests.ai.odd_server import ask_koo
from tests.ai.oddities import EVENTS, ODDITIES, Oddity, document, events
from tests.ai.worlds import world

ALL = (*ODDITIES, *ANSWERS, *REFUSALS)


@pytest.mark.parametrize("oddity", ALL, ids=lambda oddity: oddity.name)
def test_koo_does_what_the_table_says(oddity: Oddity) -> None:
    text, error, requests = asyncio.run(ask_koo(oddity))
    assert (error.kind if error else None, requests) == (oddity.kind, oddity.requests), error
    if oddity.streamed or error is None:
        assert text == oddity.text
    if text and error is not None:
        assert isinstance(error, StreamTruncated) and error.partial_text == text


def test_each_oddity_has_a_unique_name() -> None:
    names = [oddity.name for oddity in ALL]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "body",
    [
        document(message("Par", stop_reason="error")),
        document(message("Par", error={"type": "api_error", "message": "failed"})),
        events(MESSAGE_START, message_end(usage=None), MESSAGE_STOP),
    ],
    ids=["a failure as the stop reason", "an error next to content", "no content"],
)
def test_after_a_failure_disguised_as_a_success_the_next_service_answers(body: bytes) -> None:
    async def main() -> None:
        async with world() as here:
            here.claude.do(raw(body, content_type=EVENTS))
            here.openai.script(answer("Paris."))
            told = await here.ask(fallback=("openai",))
            assert (told.service, told.text) == ("openai", "Paris.")

    asyncio.run(main())
