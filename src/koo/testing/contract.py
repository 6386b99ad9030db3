"""What koo expects of your own adapter, as a list of rules for a parametrized test.

    CASE = AdapterCase(AcmeProvider, FakeAcme, "acme-1")

    @pytest.mark.parametrize("rule", koo.testing.rules(), ids=str)
    def test_the_adapter_keeps(rule):
        rule.check(CASE)

The adapter talks to a fake of its vendor over real sockets, so a case needs both. Each rule has a sentence that
explains what goes wrong otherwise, and fails with an AssertionError. koo's own adapters are tested by the same rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from koo.ai.providers.base import Completion, CompletionChunk, Provider, Request
from koo.errors import ExternalServiceError, Kind, StreamTruncated
from koo.http.client import HttpClient
from koo.policies.treatment import fault_of
from koo.policies.verdict import FAILURE
from koo.testing.providers.script import Cut, Failure, Hang, Nothing, Raw, Step, Stream, html
from koo.testing.providers.server import FakeProvider

KEY = "key-4711-of-a-test"
PROMPT = "What is the capital of France? prompt-4711"
WORDS = ("Par", "is", " it", " is", ".")
TEXT = "".join(WORDS)
TOKENS_MAX = 64
PATIENCE_S = 30.0
"""Only an adapter that breaks a rule can take this long."""


@dataclass(frozen=True)
class AdapterCase:
    """An adapter, a function that makes the fake it talks to, and a model that both accept.

    `adapter` is called as koo calls it: `adapter(name, http, base_url=…, api_key=…)`. A subclass of `Adapter` has this
    signature.
    """

    adapter: Callable[..., Provider]
    fake: Callable[..., FakeProvider]
    model: str
    about: dict[str, Any] = field(default_factory=dict)

    def asking(self, **options: Any) -> Request:
        """A request with these options."""
        return Request(**{"prompt": PROMPT, "model": self.model, "max_tokens": TOKENS_MAX, **options})

    @asynccontextmanager
    async def talk(self, *, key: str | None = KEY) -> AsyncIterator[tuple[Provider, FakeProvider]]:
        """The adapter and its fake, which requires `key`."""
        http = HttpClient()
        async with self.fake(key=key, strict=False, **self.about) as fake:
            provider = self.adapter("acme", http, base_url=fake.base_url, api_key=KEY)
            try:
                yield provider, fake
            finally:
                await provider.close()
                await http.close()


@dataclass(frozen=True)
class Rule:
    """One rule: its name, what goes wrong otherwise, and its test."""

    name: str
    why: str
    try_it: Callable[[AdapterCase], Awaitable[None]]

    def __str__(self) -> str:
        return self.name

    def check(self, case: AdapterCase) -> None:
        """Test the rule on a new event loop. Raises AssertionError if the adapter breaks it."""
        asyncio.run(self.check_here(case))

    async def check_here(self, case: AdapterCase) -> None:
        """As `check`, on the running loop."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.try_it(case)
        except AssertionError as error:
            error.add_note(f"{self.name}: {self.why}")
            raise
        except Exception as error:
            raise AssertionError(f"{self.name}: {type(error).__name__}: {error} ({self.why})") from error


def rules() -> tuple[Rule, ...]:
    """All rules for your own adapter."""
    return tuple(_RULES)


_RULES: list[Rule] = []


def _rule(why: str) -> Callable[[Callable[[AdapterCase], Awaitable[None]]], None]:
    def keep(try_it: Callable[[AdapterCase], Awaitable[None]]) -> None:
        _RULES.append(Rule(getattr(try_it, "__name__", "rule").strip("_"), why, try_it))

    return keep


# ── whole answers ─────────────────────────────────────────────────────────────────────────────────────────────────


@_rule("the caller gets the server's text, and the name of the model")
async def _a_whole_answer_is_read(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.answers(TEXT)
        got = await provider.complete(case.asking())
        assert isinstance(got, Completion) and got.text == TEXT and got.model


@_rule("tokens that are counted twice or not at all make a wrong bill: the classes of `Usage` are disjoint")
async def _the_counted_tokens_are_those_billed(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.answers(TEXT, input_tokens=40, output_tokens=9, cache_read_tokens=7)
        usage = (await provider.complete(case.asking())).usage
        assert not usage.estimated and usage.output_tokens == 9, usage
        assert usage.read_tokens == fake.bills[-1].input_tokens, (usage, fake.bills[-1])


@_rule("without usage in the response, the bill must be estimated, or it is booked too low")
async def _an_answer_without_usage_is_estimated(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.answers(TEXT, usage=False)
        usage = (await provider.complete(case.asking())).usage
        assert usage.estimated and usage.input_tokens > 0 and usage.output_tokens > 0, usage


@_rule("the budget holds the cost of `max_tokens`, so the server must receive that limit")
async def _max_tokens_is_always_sent(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        await provider.complete(case.asking(max_tokens=33))
        assert fake.max_tokens_of(fake.queries[-1]) == 33


@_rule("the amount held before a call must not be less than the bill")
async def _the_prompt_is_bounded_from_above(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        for prompt in (PROMPT, "é" * 300, "x"):
            asked = case.asking(prompt=prompt, system="Be brief.")
            await provider.complete(asked)
            assert provider.bound_input_tokens(asked) >= fake.bills[-1].input_tokens


@_rule("the prompt and the system text reach the model, and nothing else does")
async def _the_prompt_reaches_the_server(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        await provider.complete(case.asking(system="Be brief."))
        assert fake.queries[-1].prompt in ("Be brief." + PROMPT, PROMPT + "Be brief.")
        assert fake.model_of(fake.queries[-1]) == case.model


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def _read(provider: Provider, asked: Request) -> list[CompletionChunk]:
    return [chunk async for chunk in provider.stream(asked)]


def _text(chunks: list[CompletionChunk]) -> str:
    return "".join(chunk.text for chunk in chunks if not chunk.reasoning)


@_rule("the caller gets each piece as it arrives, and the vendor's own end of the stream")
async def _a_stream_is_read_to_its_end(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.streams(WORDS)
        chunks = await _read(provider, case.asking())
        assert _text(chunks) == TEXT and sum(bool(chunk.text) for chunk in chunks) >= 2
        assert chunks[-1].final and not any(chunk.final for chunk in chunks[:-1])


@_rule("a streamed response costs as much as a whole one")
async def _a_stream_is_counted_as_it_is_billed(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.streams(WORDS)
        usage = [chunk.usage for chunk in await _read(provider, case.asking()) if chunk.usage is not None][-1]
        bill = fake.bills[-1]
        assert (usage.read_tokens, usage.output_tokens) == (bill.input_tokens, bill.output_tokens), (
            usage,
            bill,
        )


@_rule("half of a response must not pass for a whole one")
async def _a_stream_that_is_cut_is_an_error(case: AdapterCase) -> None:
    for step in (Stream(WORDS, cut_after=2), Stream(WORDS, end=False)):
        async with case.talk() as (provider, fake):
            fake.script(step)
            chunks, error = await _read_to_error(provider, case)
            assert isinstance(error, ExternalServiceError), (step, error)
            assert TEXT.startswith(_text(chunks)) and _text(chunks), (
                "the text before the cut must be returned"
            )
            if not step.end:
                assert isinstance(error, StreamTruncated), error


@_rule("a server may fail after its response has begun")
async def _an_error_inside_a_stream_is_an_error(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        usual = fake.failure(500)
        fake.script(Stream(WORDS, error_after=1, error=usual))
        _, error = await _read_to_error(provider, case)
        assert isinstance(error, ExternalServiceError), error


@_rule("a reader that stops must not pay for text that it does not read")
async def _an_abandoned_stream_is_closed(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.streams(["word "] * 2000, stall_after=3)
        stream = provider.stream(case.asking())
        await anext(stream)
        await stream.aclose()
        while not fake.abandoned:  # noqa: ASYNC110 - the server notices it a moment later
            await asyncio.sleep(0.001)


async def _read_to_error(
    provider: Provider, case: AdapterCase
) -> tuple[list[CompletionChunk], Exception | None]:
    chunks: list[CompletionChunk] = []
    try:
        async for chunk in provider.stream(case.asking()):
            chunks.append(chunk)  # noqa: PERF401
    except Exception as error:  # noqa: BLE001 - the caller checks which one it is
        return chunks, error
    return chunks, None


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────

STATUSES: dict[int, set[Kind]] = {
    400: {Kind.INVALID_REQUEST},
    401: {Kind.AUTH},
    403: {Kind.PERMISSION, Kind.AUTH},
    404: {Kind.NOT_FOUND},
    429: {Kind.THROTTLED, Kind.QUOTA},
    500: {Kind.SERVER_ERROR},
    503: {Kind.OVERLOADED, Kind.SERVER_ERROR},
}
"""The kinds for each status, if the vendor's error body says nothing more specific."""


async def _error_of(case: AdapterCase, *steps: Step, streamed: bool = False) -> ExternalServiceError:
    async with case.talk() as (provider, fake):
        fake.script(*steps)
        try:
            if streamed:
                await _read(provider, case.asking())
            else:
                await provider.complete(case.asking())
        except ExternalServiceError as error:
            assert len(fake.queries) == 1, (
                "an adapter must not repeat a request: koo counts and pays for each attempt"
            )
            return error
    raise AssertionError(f"no error was raised for {steps}")


@_rule("koo's reaction (a repeat, a pause, another service) depends on the kind")
async def _each_status_has_its_kind(case: AdapterCase) -> None:
    async with case.talk() as (_, fake):
        usual = {status: fake.failure(status) for status in STATUSES}
    for status, kinds in STATUSES.items():
        for streamed in (False, True):
            error = await _error_of(case, usual[status], streamed=streamed)
            assert error.kind in kinds, f"{status} is {error.kind}, not {', '.join(sorted(kinds))}"


@_rule("calls must stay away for the time that the server names, and not less")
async def _the_retry_after_time_is_read(case: AdapterCase) -> None:
    async with case.talk() as (_, fake):
        usual = fake.failure(429)
    late = Failure(429, usual.type, code=usual.code, headers={"retry-after": "17"})
    error = await _error_of(case, late)
    assert error.retry_after_s is not None and 16 <= error.retry_after_s <= 60, error.retry_after_s


@_rule("a connection that breaks is the other side's failure, and the call may be repeated")
async def _a_broken_connection_is_a_failure(case: AdapterCase) -> None:
    for step in (Nothing(), Cut(40), Cut(400)):
        error = await _error_of(case, step)
        assert fault_of(error).verdict is FAILURE, (step, error)


@_rule("a web page from an intermediary, and a body that is cut or empty, are errors")
async def _a_web_page_or_a_broken_body_is_an_error(case: AdapterCase) -> None:
    for step in (html(502), html(200), Raw(body=b""), Raw(body=b"{"), Raw(body=b"[1, 2]")):
        await _error_of(case, step)


@_rule("errors are logged and displayed, so they must not contain a key or a prompt")
async def _no_error_shows_the_key_or_the_prompt(case: AdapterCase) -> None:
    async with case.talk() as (_, fake):
        usual = [fake.failure(status) for status in (400, 401, 403, 404, 429, 500)]
    for one in usual:
        said = Failure(one.status, one.type, f"{KEY} asked: {PROMPT}", code=one.code)
        error = await _error_of(case, said)
        chain: BaseException | None = error
        while chain is not None:
            shown = f"{chain} {chain!r} {vars(chain)}"
            assert "4711" not in shown, shown
            chain = chain.__cause__ or chain.__context__


@_rule("a caller that gives up must not leave a request running that costs money")
async def _a_cancelled_call_is_closed_at_the_server(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.script(Hang())
        asked = asyncio.create_task(provider.complete(case.asking()))
        while not fake.queries:  # noqa: ASYNC110 - the request arrives at the fake, which sets no event
            await asyncio.sleep(0.001)
        asked.cancel()
        try:
            await asked
        except asyncio.CancelledError:
            pass
        else:
            raise AssertionError("the cancellation was swallowed")
        while not fake.abandoned:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# ── the check ─────────────────────────────────────────────────────────────────────────────────────────────────────


@_rule("the check runs all the time: it must cost nothing, and must detect a wrong key")
async def _the_check_is_not_billed_and_needs_the_key(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        await provider.check()
        assert not fake.bills and not fake.queries and fake.requests
    async with case.talk(key="another key") as (provider, fake):
        try:
            await provider.check()
        except ExternalServiceError as error:
            assert error.kind is Kind.AUTH, error.kind  # noqa: PT017 - this is not a pytest test
        else:
            raise AssertionError("a wrong key was not detected")


@_rule("the check must detect a server that is down")
async def _the_check_finds_an_outage(case: AdapterCase) -> None:
    async with case.talk() as (provider, fake):
        fake.fails(500)
        try:
            await provider.check()
        except ExternalServiceError:
            return
        raise AssertionError("an outage was not detected")
