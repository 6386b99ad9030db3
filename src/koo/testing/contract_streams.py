"""The rules for an adapter's streams."""

from __future__ import annotations

import asyncio

import msgspec

from koo.errors import ExternalServiceError, StreamTruncated
from koo.testing.contract_base import (
    LATE_STATUSES,
    STATUSES,
    TEXT,
    WORDS,
    AdapterCase,
    Rules,
    error_of,
    read,
    read_to_error,
    text_of,
)
from koo.testing.providers.script import Answer, Stream
from koo.testing.providers.vendor import Tokens

rule = Rules()


@rule("the caller gets each piece as it arrives, and the vendor's own end of the stream")
async def _a_stream_is_read_to_its_end(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.streams(WORDS)
        chunks = await read(provider, case.asking())
        assert text_of(chunks) == TEXT and sum(bool(chunk.text) for chunk in chunks) >= 2
        assert chunks[-1].final and not any(chunk.final for chunk in chunks[:-1])


@rule("a streamed response costs as much as a whole one")
async def _a_stream_is_counted_as_it_is_billed(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.streams(WORDS)
        usage = [chunk.usage for chunk in await read(provider, case.asking()) if chunk.usage is not None][-1]
        bill = fake.bills[-1]
        assert (usage.read_tokens, usage.output_tokens) == (bill.input_tokens, bill.output_tokens), (
            usage,
            bill,
        )


@rule("without usage in the stream, the bill must be estimated: no other count may pass for the provider's")
async def _a_stream_without_usage_is_estimated(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.streams(WORDS, usage=False)
        usages = [chunk.usage for chunk in await read(provider, case.asking()) if chunk.usage is not None]
        assert all(usage.estimated or not usage.total_tokens for usage in usages), usages


@rule(
    "a stream without a word is a failure that may be repeated, unless its stop reason explains the silence"
)
async def _a_stream_without_a_word_is_an_error(case: AdapterCase) -> None:
    for usage in (True, False):
        async with case.talk() as (provider, fake):
            fake.answers("", output_tokens=0, usage=usage)
            chunks, error = await read_to_error(provider, case)
            reasons = [chunk.stop_reason for chunk in chunks if chunk.stop_reason is not None]
            assert isinstance(error, ExternalServiceError), (
                f"an empty stream passed for an answer, with the stop reason {reasons[-1:]}: "
                "end it with `self._final()`, and set `self.stop_reason` to a word in `SILENT` "
                '(koo/ai/providers/ends.py), for example "stop"'
            )


FAILED_END, OTHER_END = "generation_failed", "end_4711"
"""Stop reasons that no vendor uses. The first reads like a failure."""


async def _is_sent(case: AdapterCase, step: Answer) -> bool:
    """Whether the vendor's format has a field for any stop reason. The Responses format has a fixed status instead."""
    async with case.talk() as (provider, fake):
        await provider.complete(case.asking())
        document = fake.plain(fake.queries[-1], step, Tokens(input=9, output=9), 1)
    return str(step.stop_reason).encode() in msgspec.json.encode(document)


@rule("the caller must see why the model stopped: an answer that ends at its limit looks like a whole one")
async def _the_stop_reason_is_returned(case: AdapterCase) -> None:
    ended = Answer(TEXT, stop_reason=OTHER_END)
    if not await _is_sent(case, ended):
        return
    async with case.talk() as (provider, fake):
        fake.do(ended)
        assert (await provider.complete(case.asking())).stop_reason == OTHER_END, (
            "complete() returns no stop reason"
        )
        reasons = {chunk.stop_reason for chunk in await read(provider, case.asking())}
        assert OTHER_END in reasons, f"the chunks of stream() have the stop reasons {reasons}"


@rule("a model may stop because it failed: that is not an answer, and the tokens up to it are billed")
async def _a_stop_reason_of_a_failure_is_an_error(case: AdapterCase) -> None:
    ended = Answer(TEXT, stop_reason=FAILED_END)
    if not await _is_sent(case, ended):
        return
    for streamed in (False, True):
        error = await error_of(case, ended, streamed=streamed)
        assert error.billable is not False, f"{error!r} is marked as not billed"


@rule("half of a response must not pass for a whole one")
async def _a_stream_that_is_cut_is_an_error(case: AdapterCase) -> None:
    for step in (Stream(WORDS, cut_after=2), Stream(WORDS, end=False)):
        async with case.talk() as (provider, fake):
            fake.script(step)
            chunks, error = await read_to_error(provider, case)
            assert isinstance(error, ExternalServiceError), (step, error)
            assert TEXT.startswith(text_of(chunks)) and text_of(chunks), (
                "the text before the cut must be returned"
            )
            if not step.end:
                assert isinstance(error, StreamTruncated), error


@rule("a server may fail after its response has begun, and koo's reaction depends on the kind")
async def _an_error_inside_a_stream_is_an_error(case: AdapterCase) -> None:
    for status in LATE_STATUSES:
        error = await _error_in_stream(case, status, after=1)
        assert error.kind in STATUSES[status], (
            f"the error event for {status} is {error.kind}, not {', '.join(sorted(STATUSES[status]))}"
        )


@rule(
    "a provider bills the tokens up to an error, but not a request that it refuses at the start of a stream"
)
async def _an_error_is_billed_once_the_provider_has_begun(case: AdapterCase) -> None:
    late = await _error_in_stream(case, 500, after=1)
    assert late.billable is not False, "an error after the first text is billed: set `self._begun`"
    early = await _error_in_stream(case, 500, after=0)
    assert early.billable is not True, "an error in place of the first event is not billed"


async def _error_in_stream(case: AdapterCase, status: int, *, after: int) -> ExternalServiceError:
    async with case.talk() as (provider, fake):
        fake.script(Stream(WORDS, error_after=after, error=fake.failure(status)))
        _, error = await read_to_error(provider, case)
        assert isinstance(error, ExternalServiceError), error
        return error


@rule("a reader that stops must not pay for text that it does not read")
async def _an_abandoned_stream_is_closed(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.streams(["word "] * 2000, stall_after=3)
        stream = provider.stream(case.asking())
        await anext(stream)
        await stream.aclose()
        while not fake.abandoned:  # noqa: ASYNC110 - the server notices it a moment later
            await asyncio.sleep(0.001)
