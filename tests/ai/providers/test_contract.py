"""Every vendor's adapter keeps koo's rules for adapters, and an adapter that breaks a rule is detected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from koo.ai.assembly import HOSTED
from koo.ai.providers.adapter import Vendor
from koo.ai.providers.base import Completion, CompletionChunk, Request
from koo.ai.providers.faults import FaultTable
from koo.ai.providers.forms import Forms
from koo.ai.providers.openai_compatible import OpenAICompatibleProvider
from koo.ai.providers.openai_errors import read_error
from koo.ai.types import Usage
from koo.errors import ExternalServiceError, InvalidRequest, Kind, ServiceFailed, StreamTruncated
from koo.testing import AdapterCase, rules
from koo.testing.contract import Rule
from koo.testing.providers import FakeAnthropic, FakeCompatible, FakeGemini, FakeOpenAI, FakePerplexity

CASES = {
    "anthropic": AdapterCase(HOSTED["anthropic"], FakeAnthropic, "claude-sonnet-5-5"),
    "openai": AdapterCase(HOSTED["openai"], FakeOpenAI, "gpt-6.1-terra"),
    "openai_compatible": AdapterCase(HOSTED["openai_compatible"], FakeCompatible, "qwen3:8b"),
    "gemini": AdapterCase(HOSTED["gemini"], FakeGemini, "gemini-3.8-flash"),
    "perplexity": AdapterCase(HOSTED["perplexity"], FakePerplexity, "perplexity/sonar"),
}


def test_each_kind_of_service_has_a_case() -> None:
    assert set(CASES) == set(HOSTED)


@pytest.mark.parametrize("rule", rules(), ids=str)
@pytest.mark.parametrize("vendor", CASES)
def test_the_adapter_keeps_the_rule(vendor: str, rule: Rule) -> None:
    rule.check(CASES[vendor])


# ── adapters that break a rule ────────────────────────────────────────────────────────────────────────────────────────


class Base(OpenAICompatibleProvider):
    """A correct adapter, to be broken by subclasses."""


class Deaf(Base):
    """Reports no usage, and always returns the same text."""

    async def complete(self, request: Request) -> Completion:
        got = await super().complete(request)
        return Completion(text="always", model=got.model, usage=Usage())


class Overcounts(Base):
    async def complete(self, request: Request) -> Completion:
        got = await super().complete(request)
        got.usage = replace(got.usage, output_tokens=got.usage.output_tokens * 2)
        return got


class Certain(Base):
    """Takes every count for the provider's own."""

    async def complete(self, request: Request) -> Completion:
        got = await super().complete(request)
        got.usage = replace(got.usage, estimated=False)
        return got


class Unbounded(Base):
    def encode(self, request: Request, *, stream: bool) -> bytes:
        return super().encode(replace(request, max_tokens=4096), stream=stream)


class Optimist(Base):
    def bound_input_tokens(self, request: Request) -> int:
        return 1


class Talkative(Base):
    def encode(self, request: Request, *, stream: bool) -> bytes:
        return super().encode(replace(request, prompt=request.prompt + " Think step by step."), stream=stream)


class Unpaced(Base):
    """Does not read the headers for rate limits."""

    async def complete(self, request: Request) -> Completion:
        return replace(await super().complete(request), pace=())


class Assured(Base):
    """Takes its own estimate of a stream's tokens for the provider's count."""

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        async for chunk in super().stream(request):
            if chunk.usage is not None:
                chunk.usage = replace(chunk.usage, estimated=False)
            yield chunk


class Coarse(Base):
    """Reports every error in a stream as a cut, which is not billed."""

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        try:
            async for chunk in super().stream(request):
                yield chunk
        except ExternalServiceError as error:
            cut = StreamTruncated(error.service, "the stream ended early", kind=Kind.TRUNCATED_STREAM)
            cut.billable = False
            raise cut from None


class Greedy(Base):
    """Reports every error in a stream as billed, even if the request was refused."""

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        try:
            async for chunk in super().stream(request):
                yield chunk
        except ExternalServiceError as error:
            error.billable = True
            raise


class Bare(Base):
    """Has an empty fault table."""

    vendor = Vendor(FaultTable("bare", ()), read_error)


class Headstrong(Base):
    """Sends every request in its first form, whatever the server has refused."""

    def encode(self, request: Request, *, stream: bool) -> bytes:
        self._forms = Forms("headstrong")
        return super().encode(request, stream=stream)


class Endless(Base):
    """Every stream ends well and reports no usage."""

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        try:
            async for chunk in super().stream(request):
                chunk.final, chunk.usage = False, Usage()
                yield chunk
        except ExternalServiceError:
            pass


class Holds(Base):
    """Reads the whole stream in the background, even if its reader stops."""

    async def stream(self, request: Request) -> AsyncGenerator[CompletionChunk, None]:
        self.streams = [super().stream(request)]
        async for chunk in self.streams[0]:
            yield chunk


class Persistent(Base):
    """Retries without being asked to."""

    async def complete(self, request: Request) -> Completion:
        for _ in range(2):
            try:
                return await super().complete(request)
            except ExternalServiceError as error:
                last = error
        raise last


class Vague(Base):
    """Reports every failure as a server error that may be retried immediately."""

    async def complete(self, request: Request) -> Completion:
        try:
            return await super().complete(request)
        except ExternalServiceError as error:
            raise ServiceFailed(error.service, "it failed", kind=Kind.SERVER_ERROR) from None


class Blames(Base):
    """Reports every failure as the caller's mistake."""

    async def complete(self, request: Request) -> Completion:
        try:
            return await super().complete(request)
        except ExternalServiceError as error:
            raise InvalidRequest(error.service, "you did it", kind=Kind.INVALID_REQUEST) from None


class Trusting(Base):
    """Accepts everything as an answer."""

    async def complete(self, request: Request) -> Completion:
        try:
            return await super().complete(request)
        except ExternalServiceError:
            return Completion(text="", model=request.model, usage=Usage(estimated=True))


class Chatty(Base):
    """Quotes the prompt in its errors."""

    async def complete(self, request: Request) -> Completion:
        try:
            return await super().complete(request)
        except ExternalServiceError as error:
            raise ServiceFailed(error.service, f"no answer to {request.prompt}", kind=error.kind) from error


class Stubborn(Base):
    """Cannot be cancelled."""

    async def complete(self, request: Request) -> Completion:
        try:
            return await super().complete(request)
        except asyncio.CancelledError:
            return Completion(text="", model=request.model, usage=Usage())


class Blind(Base):
    """Reports every server as healthy."""

    async def check(self) -> None:
        return None


class Costly(Base):
    """Sends a query to check whether the service is up."""

    async def check(self) -> None:
        await self.complete(Request(prompt="ping", model=CASES["openai_compatible"].model, max_tokens=16))


BROKEN: dict[type[Base], set[str]] = {
    Deaf: {
        "a_whole_answer_is_read", "the_counted_tokens_are_those_billed", "an_answer_without_usage_is_estimated",
        "the_stop_reason_is_returned",
    },
    Overcounts: {"the_counted_tokens_are_those_billed"},
    Certain: {"an_answer_without_usage_is_estimated"},
    Unbounded: {"max_tokens_is_always_sent"},
    Optimist: {"the_prompt_is_bounded_from_above"},
    Talkative: {"the_prompt_reaches_the_server"},
    Endless: {
        "a_stream_is_read_to_its_end", "a_stream_is_counted_as_it_is_billed", "a_stream_that_is_cut_is_an_error",
        "an_error_inside_a_stream_is_an_error", "a_stream_without_a_word_is_an_error",
        "a_stop_reason_of_a_failure_is_an_error",
    },
    Unpaced: {"the_rate_limit_headers_are_read"},
    Assured: {"a_stream_without_usage_is_estimated"},
    Coarse: {"an_error_inside_a_stream_is_an_error", "an_error_is_billed_once_the_provider_has_begun"},
    Greedy: {"an_error_is_billed_once_the_provider_has_begun"},
    Bare: {"a_forbidden_page_says_nothing_about_the_key"},
    Headstrong: {"a_refused_parameter_is_left_out", "a_stated_limit_of_tokens_is_kept"},
    Holds: {"an_abandoned_stream_is_closed"},
    Persistent: {"each_status_has_its_kind"},
    Vague: {"each_status_has_its_kind", "the_retry_after_time_is_read"},
    Blames: {"a_broken_connection_is_a_failure"},
    Trusting: {
        "a_web_page_or_a_broken_body_is_an_error", "a_stop_reason_of_a_failure_is_an_error",
        "an_error_with_status_200_is_an_error",
    },
    Chatty: {"no_error_shows_the_key_or_the_prompt"},
    Stubborn: {"a_cancelled_call_is_closed_at_the_server"},
    Blind: {"the_check_is_not_billed_and_needs_the_key", "the_check_finds_an_outage"},
    Costly: {"the_check_is_not_billed_and_needs_the_key"},
}  # fmt: skip
BREAKS = [(adapter, name) for adapter, names in BROKEN.items() for name in sorted(names)]


@pytest.mark.parametrize(("adapter", "name"), BREAKS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_an_adapter_that_breaks_a_rule_is_detected(
    adapter: type[Base], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "koo.testing.contract_base.PATIENCE_S", 1.0
    )  # one of them waits for something that never arrives
    rule = next(one for one in rules() if one.name == name)
    with pytest.raises(AssertionError) as caught:
        rule.check(AdapterCase(adapter, FakeCompatible, CASES["openai_compatible"].model))
    assert rule.why in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))


def test_each_rule_is_broken_by_a_bad_adapter() -> None:
    """A rule that no adapter breaks tests nothing."""
    assert set().union(*BROKEN.values()) == {rule.name for rule in rules()}
