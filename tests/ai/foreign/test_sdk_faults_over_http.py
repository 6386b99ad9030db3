"""The exceptions of google-genai and of Perplexity's SDK, raised by talking to the fakes, and what they mean."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import httpx2
import perplexity
import pytest
from google import genai
from google.genai import types

from koo.ai.foreign.vendors import classify_sdk
from koo.ai.sdk_retries import own_retries
from koo.errors import ExternalServiceError, Kind
from koo.policies.treatment import classify_error
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED
from koo.testing.providers import (
    FakeGemini,
    FakePerplexity,
    cut,
    error,
    hang,
    html,
    nothing,
    quota,
    raw,
    stream,
)
from tests.ai.foreign.test_sdk_faults import by_anthropic, by_openai, fault_of, raised

FLASH, SONAR = "gemini-3.8-flash", "perplexity/sonar"
INVALID, EXHAUSTED = "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"
PER_DAY, PER_MINUTE = (
    f"GenerateRequests{period}PerProjectPerModel-FreeTier" for period in ("PerDay", "PerMinute")
)

# google-genai subclasses one of aiohttp's classes if aiohttp is installed, and aiohttp warns about that.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")


async def google(client: Any, *, streamed: bool) -> None:
    try:
        if streamed:
            async for _ in await client.models.generate_content_stream(model=FLASH, contents="Capital?"):
                pass
        else:
            await client.models.generate_content(model=FLASH, contents="Capital?")
    finally:
        await client.aclose()


def by_google_over_httpx2(step: Any, *, streamed: bool = False, **options: Any) -> Exception:
    async def call() -> None:
        async with FakeGemini() as server, httpx2.AsyncClient() as transport:
            server.script(step)
            http = types.HttpOptions(
                httpx_async_client=transport, **{"base_url": server.base_url, "timeout": 10_000, **options}
            )
            await google(genai.Client(api_key="test-key", http_options=http).aio, streamed=streamed)

    return raised(call)


def by_google_over_aiohttp(step: Any, *, streamed: bool = False, **options: Any) -> Exception:
    async def call() -> None:
        async with FakeGemini() as server:
            server.script(step)
            http = types.HttpOptions(
                retry_options=types.HttpRetryOptions(attempts=1),
                **{"base_url": server.base_url, "timeout": 10_000, **options},
            )
            await google(genai.Client(api_key="test-key", http_options=http).aio, streamed=streamed)

    return raised(call)


def by_perplexity(step: Any, *, streamed: bool = False, **options: Any) -> Exception:
    async def call() -> None:
        async with FakePerplexity() as server:
            server.script(step)
            settings = {"base_url": server.url, "api_key": "test-key", "max_retries": 0, **options}
            async with perplexity.AsyncPerplexity(**settings) as client:
                if streamed:
                    async for _ in await client.responses.create(model=SONAR, input="Capital?", stream=True):
                        pass
                else:
                    await client.responses.create(model=SONAR, input="Capital?")

    return raised(call)


BY_GOOGLE = [by_google_over_httpx2, by_google_over_aiohttp]
EVERYONE = [*BY_GOOGLE, by_perplexity]


GOOGLE_ROWS = [
    (error(400, INVALID, code="API_KEY_INVALID"), Kind.AUTH),
    (error(400, INVALID, "The input token count exceeds the maximum number of tokens allowed"), Kind.CONTEXT_LENGTH),
    (error(400, INVALID), Kind.INVALID_REQUEST),
    (error(400, "FAILED_PRECONDITION", "Please enable billing"), Kind.BILLING),
    (error(402, EXHAUSTED), Kind.BILLING),
    (error(403, "PERMISSION_DENIED"), Kind.PERMISSION),
    (error(404, "NOT_FOUND"), Kind.NOT_FOUND),
    (error(429, EXHAUSTED, extra=quota(PER_MINUTE, retry_delay="39s")), Kind.THROTTLED),
    (error(429, EXHAUSTED, extra=quota(PER_DAY, retry_delay="39s")), Kind.QUOTA),
    (error(429, EXHAUSTED, "Your prepayment credits are depleted."), Kind.BILLING),
    (error(500, "INTERNAL"), Kind.SERVER_ERROR),
    (error(503, "UNAVAILABLE"), Kind.OVERLOADED),
    (error(504, "DEADLINE_EXCEEDED"), Kind.TIMEOUT),
    (html(502), Kind.SERVER_ERROR),
    (html(403), Kind.INVALID_REQUEST),
]  # fmt: skip
PERPLEXITY_ROWS = [
    (error(400, "invalid_request"), Kind.INVALID_REQUEST),
    (
        error(400, "invalid_request", "This model's maximum context length is 128000 tokens."),
        Kind.CONTEXT_LENGTH,
    ),
    (error(400, "invalid_model"), Kind.NOT_FOUND),
    (error(401, "invalid_api_key"), Kind.AUTH),
    (error(401, "insufficient_quota"), Kind.BILLING),
    (html(401), Kind.AUTH),
    (error(403, "forbidden"), Kind.PERMISSION),
    (html(403), Kind.INVALID_REQUEST),
    (error(422, "validation_error"), Kind.INVALID_REQUEST),
    (error(429, "request_rate_limit_exceeded"), Kind.THROTTLED),
    (error(500, "internal_error"), Kind.SERVER_ERROR),
    (html(524), Kind.SERVER_ERROR),
]


@pytest.mark.parametrize("by", BY_GOOGLE)
@pytest.mark.parametrize(("step", "kind"), GOOGLE_ROWS)
def test_each_error_of_google_genai_has_its_kind(by: Any, step: Any, kind: Kind) -> None:
    fault = fault_of(by(step))
    assert fault.kind is kind and fault.billed is False


@pytest.mark.parametrize(("step", "kind"), PERPLEXITY_ROWS)
def test_each_error_of_perplexitys_sdk_has_its_kind(step: Any, kind: Kind) -> None:
    fault = fault_of(by_perplexity(step))
    assert fault.kind is kind and fault.billed is False


@pytest.mark.parametrize("by", BY_GOOGLE)
def test_the_waits_that_google_writes_into_the_body_are_kept(by: Any) -> None:
    fault = fault_of(by(error(429, EXHAUSTED, extra=quota(PER_MINUTE, retry_delay="45.5s"))))
    assert fault.verdict is THROTTLED and fault.retry_after_s == 45.5 and fault.repeatable
    fault = fault_of(by(error(429, EXHAUSTED, extra=quota(PER_DAY, PER_MINUTE, retry_delay="45.5s"))))
    assert fault.kind is Kind.QUOTA and not fault.repeatable
    assert fault.retry_after_s is not None and 0 < fault.retry_after_s <= 25 * 3600
    assert fault.retry_after_s != 45.5


@pytest.mark.parametrize("by", BY_GOOGLE)
def test_an_error_inside_googles_stream_may_have_been_billed(by: Any) -> None:
    for after in (0, 1):
        step = stream(["Par", "is"], error_after=after, error=error(503, "UNAVAILABLE"))
        fault = fault_of(by(step, streamed=True))
        assert fault.kind is Kind.OVERLOADED and fault.verdict is FAILURE and fault.billed


def test_perplexitys_error_event_is_recognised_although_the_status_is_200() -> None:
    body = b'event: error\ndata: {"error":{"message":"x","type":"internal_error"}}\n\n'
    fault = fault_of(by_perplexity(raw(body, content_type="text/event-stream"), streamed=True))
    assert fault.kind is Kind.SERVER_ERROR and fault.billed


@pytest.mark.parametrize(
    ("by", "timeout"), [(by_google_over_httpx2, 1500), (by_perplexity, perplexity.Timeout(20.0, read=0.1))]
)
def test_an_sdks_own_timeout_may_have_been_billed(by: Any, timeout: object) -> None:
    """Google's timeout is in milliseconds and also applies to connecting."""
    fault = fault_of(by(hang(), timeout=timeout))
    assert fault.kind is Kind.TIMEOUT and fault.billed


def test_googles_timeout_over_aiohttp_has_no_separate_class_but_the_same_kind() -> None:
    exception = by_google_over_aiohttp(hang(), timeout=100)
    assert type(exception) is TimeoutError and classify_sdk(exception) is None
    fault = classify_error(exception)
    assert fault.kind is Kind.TIMEOUT and fault.billed


@pytest.mark.parametrize("by", [by_anthropic, by_openai, *EVERYONE])
def test_a_refused_connection_was_not_billed(by: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        fault = fault_of(by(nothing(), base_url=f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert fault.kind is Kind.CONNECTION and not fault.billed and fault.reach == "service"


@pytest.mark.parametrize("by", EVERYONE)
def test_a_connection_that_breaks_may_have_been_billed(by: Any) -> None:
    fault = fault_of(by(nothing()))
    assert fault.kind is Kind.CONNECTION and fault.billed


@pytest.mark.parametrize("by", EVERYONE)
def test_an_answer_that_breaks_off_may_have_been_billed(by: Any) -> None:
    fault = fault_of(by(cut(300)))
    assert fault.kind in {Kind.CONNECTION, Kind.BAD_ANSWER} and fault.billed


@pytest.mark.parametrize("by", BY_GOOGLE)
def test_a_stream_of_nonsense_is_a_bad_answer(by: Any) -> None:
    fault = fault_of(by(raw(b"data: not json\n\n", content_type="text/event-stream"), streamed=True))
    assert fault.kind is Kind.BAD_ANSWER and fault.billed


def test_a_client_without_a_key_is_the_callers_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERPLEXITY_API_KEY", raising=False)
    with pytest.raises(perplexity.PerplexityError) as caught:
        perplexity.AsyncPerplexity()
    fault = fault_of(caught.value)
    assert fault.verdict is NEUTRAL and fault.kind is Kind.INVALID_REQUEST and not fault.billed


@pytest.mark.parametrize(("by", "vendor"), [(by_google_over_httpx2, "gemini"), (by_perplexity, "perplexity")])
def test_without_a_service_the_vendor_names_itself(by: Any, vendor: str) -> None:
    fault = classify_sdk(by(error(500, "INTERNAL")))
    assert fault is not None and isinstance(fault.error, ExternalServiceError)
    assert fault.error.service == vendor


def test_no_prompt_and_no_key_get_into_the_error() -> None:
    mark = "mark4711secret"
    for by in EVERYONE:
        for step in (
            error(400, f"{mark} {mark}", mark, code=f"{mark} {mark}"),
            error(401, "UNAUTHENTICATED", f"key {mark}"),
        ):
            found = fault_of(by(step)).error
            assert mark not in f"{found}{found!r}{vars(found)}"


def test_perplexitys_own_retries_are_found() -> None:
    client = perplexity.AsyncPerplexity(api_key="k")
    assert own_retries(client.responses.create) == 2
    assert own_retries(perplexity.Perplexity(api_key="k", max_retries=0).responses.create) == 0


def test_googles_sdk_repeats_a_broken_connection_unless_its_options_say_how_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server counts two requests although the caller made one."""
    monkeypatch.setattr(
        "google.genai._api_client.random.randint", lambda *_: -1
    )  # The SDK pauses for 1 to 10 s before it repeats.

    async def asked(attempts: int | None) -> int:
        retry = None if attempts is None else types.HttpRetryOptions(attempts=attempts)
        async with FakeGemini() as server:
            server.default = nothing()
            http = types.HttpOptions(base_url=server.base_url, timeout=10_000, retry_options=retry)
            client = genai.Client(api_key="test-key", http_options=http).aio
            operation = client.models.generate_content
            expected = own_retries(operation) + 1
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await google(client, streamed=False)
            assert len(server.queries) == expected
            return expected

    assert asyncio.run(asked(None)) == 2
    assert asyncio.run(asked(1)) == 1
