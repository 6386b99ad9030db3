"""The exceptions of the vendors' SDKs, raised by the SDKs themselves talking to the fakes, and what they mean."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import anthropic
import httpx2
import openai
import pytest
from google.genai import errors as google_errors
from google.genai import types as google_types

from koo.ai.foreign.vendors import classify_sdk
from koo.ai.sdk_retries import own_retries
from koo.errors import ExternalServiceError, Kind
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED, Fault
from koo.testing.providers import (
    FakeAnthropic,
    FakeOpenAI,
    FakeProvider,
    cut,
    error,
    hang,
    html,
    nothing,
    stream,
)

CLAUDE = "claude-sonnet-5-5"
GPT = "gpt-6.1-terra"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
INVALID = "invalid_request_error"


def raised(call: Callable[[], Awaitable[Any]]) -> Exception:
    async def main() -> Exception:
        try:
            await call()
        except Exception as fault:
            return fault
        raise AssertionError("nothing was raised")

    return asyncio.run(main())


def by_anthropic(step: Any, *, streamed: bool = False, **options: Any) -> Exception:
    async def call() -> None:
        async with FakeAnthropic() as server:
            server.script(step)
            settings = {"base_url": server.base_url, "api_key": "test-key", "max_retries": 0, **options}
            async with anthropic.AsyncAnthropic(**settings) as client:
                if streamed:
                    async with client.messages.stream(
                        model=CLAUDE, max_tokens=10, messages=QUESTION
                    ) as events:
                        await events.get_final_message()
                else:
                    await client.messages.create(model=CLAUDE, max_tokens=10, messages=QUESTION)

    return raised(call)


def by_openai(step: Any, *, streamed: bool = False, **options: Any) -> Exception:
    async def call() -> None:
        async with FakeOpenAI() as server:
            server.script(step)
            settings = {"base_url": server.base_url, "api_key": "test-key", "max_retries": 0, **options}
            async with openai.AsyncOpenAI(**settings) as client:
                if streamed:
                    async for _ in await client.responses.create(model=GPT, input="Capital?", stream=True):
                        pass
                else:
                    await client.responses.create(model=GPT, input="Capital?")

    return raised(call)


def fault_of(exception: Exception, service: str = "svc") -> Fault:
    fault = classify_sdk(exception, service)
    assert fault is not None and isinstance(fault.error, ExternalServiceError)
    assert fault.error.service == service and fault.error.kind is fault.kind
    return fault


ANTHROPIC_ROWS = [
    (error(400, INVALID), Kind.INVALID_REQUEST),
    (error(400, INVALID, "prompt is too long: 9 > 8"), Kind.CONTEXT_LENGTH),
    (error(400, INVALID, "Your credit balance is too low to access the Anthropic API"), Kind.BILLING),
    (error(401, "authentication_error"), Kind.AUTH),
    (error(403, "permission_error"), Kind.PERMISSION),
    (error(404, "not_found_error"), Kind.NOT_FOUND),
    (error(413, "request_too_large"), Kind.TOO_LARGE),
    (error(429, "rate_limit_error"), Kind.THROTTLED),
    (error(429, "rate_limit_error", code="enforced_spend_limit_reached"), Kind.QUOTA),
    (error(500, "api_error"), Kind.SERVER_ERROR),
    (error(504, "timeout_error"), Kind.TIMEOUT),
    (error(529, "overloaded_error"), Kind.OVERLOADED),
    (html(502), Kind.SERVER_ERROR),
    (html(403), Kind.INVALID_REQUEST),
    (nothing(), Kind.CONNECTION),
]
OPENAI_ROWS = [
    (error(400, INVALID, code="context_length_exceeded"), Kind.CONTEXT_LENGTH),
    (error(400, INVALID, code="content_filter"), Kind.CONTENT_POLICY),
    (error(401, INVALID, code="invalid_api_key"), Kind.AUTH),
    (error(404, INVALID, code="model_not_found"), Kind.NOT_FOUND),
    (error(429, "requests", code="rate_limit_exceeded"), Kind.THROTTLED),
    (error(429, "insufficient_quota", code="insufficient_quota"), Kind.QUOTA),
    (error(429, "insufficient_quota", code="credit_balance_exhausted"), Kind.BILLING),
    (error(500, "server_error"), Kind.SERVER_ERROR),
    (error(503, "service_unavailable_error", code="server_is_overloaded"), Kind.OVERLOADED),
    (html(502), Kind.SERVER_ERROR),
    (nothing(), Kind.CONNECTION),
]


@pytest.mark.parametrize(("step", "kind"), ANTHROPIC_ROWS)
def test_each_error_of_anthropics_sdk_has_its_kind(step: Any, kind: Kind) -> None:
    fault = fault_of(by_anthropic(step))
    assert fault.kind is kind
    assert fault.billed is (kind is Kind.CONNECTION)


@pytest.mark.parametrize(("step", "kind"), OPENAI_ROWS)
def test_each_error_of_openais_sdk_has_its_kind(step: Any, kind: Kind) -> None:
    assert fault_of(by_openai(step)).kind is kind


def test_an_error_inside_a_stream_is_recognised_although_its_status_is_200_or_missing() -> None:
    fault = fault_of(by_anthropic(stream(["Par", "is"], error_after=1), streamed=True))
    assert fault.kind is Kind.OVERLOADED and fault.verdict is FAILURE and fault.billed
    overloaded = error(503, "server_error", code="server_is_overloaded")
    fault = fault_of(by_openai(stream(["Par"], error_after=0, error=overloaded), streamed=True))
    assert fault.kind is Kind.OVERLOADED


def test_the_wait_the_request_id_and_the_servers_retry_instruction_are_kept() -> None:
    headers = {"retry-after": "3", "x-should-retry": "false"}
    fault = fault_of(by_anthropic(error(529, "overloaded_error", headers=headers)))
    assert fault.retry_after_s == 3 and fault.repeatable is False
    assert isinstance(fault.error, ExternalServiceError) and fault.error.detail is not None
    assert str(fault.error.detail["request_id"]).startswith("req_")
    assert (
        fault_of(by_anthropic(error(409, "conflict_error", headers={"x-should-retry": "true"}))).repeatable
        is True
    )
    # A refused key stays refused, whatever the server says about repeating.
    assert (
        fault_of(
            by_anthropic(error(401, "authentication_error", headers={"x-should-retry": "true"}))
        ).repeatable
        is False
    )


@pytest.mark.parametrize("by", [by_anthropic, by_openai])
def test_an_sdks_own_timeout_may_have_been_billed(by: Any) -> None:
    fault = fault_of(by(hang(), timeout=0.5))
    assert fault.kind is Kind.TIMEOUT and fault.billed


def test_a_cut_stream_raises_the_http_librarys_error() -> None:
    fault = fault_of(by_anthropic(stream(["Par", "is"], cut_after=1), streamed=True))
    assert fault.kind is Kind.CONNECTION and fault.billed


def test_a_client_without_a_key_is_the_callers_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(openai.OpenAIError) as caught:
        openai.AsyncOpenAI()
    fault = fault_of(caught.value)
    assert fault.verdict is NEUTRAL and fault.kind is Kind.INVALID_REQUEST and not fault.billed


def test_without_a_service_the_vendor_names_itself() -> None:
    fault = classify_sdk(by_anthropic(error(529, "overloaded_error")))
    assert (
        fault is not None
        and isinstance(fault.error, ExternalServiceError)
        and fault.error.service == "anthropic"
    )


def test_a_users_own_subclass_is_recognised() -> None:
    class Mine(openai.RateLimitError):
        pass

    answered = httpx2.Response(429, request=httpx2.Request("POST", "http://h/"), headers={"retry-after": "2"})
    fault = fault_of(
        Mine("slow down", response=answered, body={"code": "rate_limit_exceeded", "type": "requests"})
    )
    assert fault.kind is Kind.THROTTLED and fault.verdict is THROTTLED and fault.retry_after_s == 2


def test_no_prompt_and_no_key_get_into_the_error() -> None:
    mark = "mark4711secret"
    for step in (
        error(400, INVALID, f"cannot read {mark}", param=mark),
        error(401, INVALID, f"Incorrect key {mark}"),
    ):
        for by in (by_anthropic, by_openai):
            found = fault_of(by(step)).error
            assert mark not in f"{found}{found!r}{vars(found)}"


# ── Google ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def google(code: int, status: str, *details: Any, message: str = "no") -> Exception:
    body = {"error": {"code": code, "message": message, "status": status, "details": list(details)}}
    kind = google_errors.ClientError if code < 500 else google_errors.ServerError
    return kind(code, body)


def violation(period: str) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": f"GenerateRequests{period}PerProjectPerModel-FreeTier"}],
    }


TOO_LONG = "The input token count exceeds the maximum number of tokens allowed"
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45.5s"}
KEY_INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


@pytest.mark.parametrize(
    ("exception", "kind", "wait_s"),
    [
        (google(400, "INVALID_ARGUMENT", KEY_INVALID), Kind.AUTH, None),
        (google(400, "INVALID_ARGUMENT", message=TOO_LONG), Kind.CONTEXT_LENGTH, None),
        (google(400, "INVALID_ARGUMENT"), Kind.INVALID_REQUEST, None),
        (google(400, "FAILED_PRECONDITION", message="Please enable billing"), Kind.BILLING, None),
        (google(400, "FAILED_PRECONDITION", message="User location is not supported"), Kind.PERMISSION, None),
        (google(402, "RESOURCE_EXHAUSTED"), Kind.BILLING, None),
        (google(403, "PERMISSION_DENIED"), Kind.PERMISSION, None),
        (google(404, "NOT_FOUND"), Kind.NOT_FOUND, None),
        (google(429, "RESOURCE_EXHAUSTED", violation("PerMinute"), RETRY_INFO), Kind.THROTTLED, 45.5),
        (google(429, "RESOURCE_EXHAUSTED"), Kind.THROTTLED, None),
        (google(500, "INTERNAL"), Kind.SERVER_ERROR, None),
        (google(503, "UNAVAILABLE"), Kind.OVERLOADED, None),
        (google(504, "DEADLINE_EXCEEDED"), Kind.TIMEOUT, None),
    ],
)  # fmt: skip
def test_each_error_of_google_genai_has_its_kind(
    exception: Exception, kind: Kind, wait_s: float | None
) -> None:
    fault = fault_of(exception)
    assert fault.kind is kind and fault.retry_after_s == wait_s


def test_a_daily_quota_lasts_longer_than_the_wait_of_seconds_that_google_reports() -> None:
    fault = fault_of(google(429, "RESOURCE_EXHAUSTED", violation("PerDay"), RETRY_INFO))
    assert fault.kind is Kind.QUOTA and fault.retry_after_s != 45.5


# ── plain HTTP libraries ──────────────────────────────────────────────────────────────────────────────────────────────


async def with_httpx2(server: FakeProvider, **options: Any) -> None:
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(0.2)) as client:
        url = options.get("url", server.base_url + "/v1/messages")
        (await client.post(url, json=ASKED, headers=HEADERS)).raise_for_status()


async def with_aiohttp(server: FakeProvider, **options: Any) -> None:
    timeout = aiohttp.ClientTimeout(sock_read=0.2)
    async with aiohttp.ClientSession(raise_for_status=True, timeout=timeout) as session:
        url = options.get("url", server.base_url + "/v1/messages")
        async with session.post(url, json=ASKED, headers=HEADERS) as response:
            await response.read()


ASKED = {"model": CLAUDE, "max_tokens": 10, "messages": QUESTION}
HEADERS = {"x-api-key": "test-key", "anthropic-version": "2023-06-01"}


@pytest.mark.parametrize("ask", [with_httpx2, with_aiohttp])
@pytest.mark.parametrize(
    ("step", "kind", "wait_s"),
    [
        (error(429, headers={"retry-after": "7"}), Kind.THROTTLED, 7),
        (error(500), Kind.SERVER_ERROR, None),
        (error(401), Kind.AUTH, None),
        (error(404), Kind.NOT_FOUND, None),
        (hang(), Kind.TIMEOUT, None),
        (nothing(), Kind.CONNECTION, None),
    ],
)
def test_each_error_of_an_http_library_has_its_kind(
    ask: Any, step: Any, kind: Kind, wait_s: float | None
) -> None:
    async def call() -> None:
        async with FakeAnthropic() as server:
            server.script(step)
            await ask(server)

    fault = fault_of(raised(call))
    assert fault.kind is kind and fault.retry_after_s == wait_s


@pytest.mark.parametrize(("ask", "kind"), [(with_httpx2, Kind.CONNECTION), (with_aiohttp, Kind.BAD_ANSWER)])
def test_an_answer_that_breaks_off_may_have_been_billed(ask: Any, kind: Kind) -> None:
    async def call() -> None:
        async with FakeAnthropic() as server:
            server.script(cut(700))
            await ask(server)

    fault = fault_of(raised(call))
    assert fault.kind is kind and fault.billed


@pytest.mark.parametrize("ask", [with_httpx2, with_aiohttp])
def test_an_http_librarys_refused_connection_was_not_billed(ask: Any) -> None:
    async def call() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            await ask(FakeAnthropic(), url=f"http://127.0.0.1:{taken.getsockname()[1]}/")

    fault = fault_of(raised(call))
    assert fault.kind is Kind.CONNECTION and not fault.billed


HEADER = "Illegal header value b'Bearer sk-secret\\n'"
HELD_BACK = [
    (httpx2.LocalProtocolError(HEADER), Kind.INVALID_REQUEST),
    (
        httpx2.UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol."),
        Kind.INVALID_REQUEST,
    ),
    (httpx2.PoolTimeout(""), Kind.SATURATED),
]


@pytest.mark.parametrize(("exception", "kind"), HELD_BACK)
def test_a_request_that_the_client_could_not_begin_says_nothing_about_the_service(
    exception: Exception, kind: Kind
) -> None:
    by_sdk = openai.APIConnectionError(request=httpx2.Request("POST", "http://h/"))
    by_sdk.__cause__ = exception
    for one in (exception, by_sdk):
        fault = fault_of(one)
        assert (fault.kind, fault.verdict, fault.billed) == (kind, NEUTRAL, False)
        assert "sk-secret" not in str(fault.error)


@pytest.mark.parametrize(
    "exception",
    [
        httpx2.InvalidURL("Invalid port"),
        httpx2.ResponseNotRead(),
        httpx2.CookieConflict("two"),
        aiohttp.NonHttpUrlClientError("ftp://h/"),
    ],
)
def test_an_http_librarys_error_about_its_caller_is_the_callers_mistake(exception: Exception) -> None:
    fault = classify_sdk(exception)
    assert fault is not None and (fault.verdict, fault.error) == (NEUTRAL, None)


@pytest.mark.parametrize(
    ("exception", "kind"),
    [
        (httpx2.LocalProtocolError("Invalid input in state CLOSED"), Kind.CONNECTION),
        (httpx2.TooManyRedirects("20"), Kind.BAD_ANSWER),
    ],
)
def test_a_race_of_connections_and_a_loop_of_redirects_are_failures(exception: Exception, kind: Kind) -> None:
    fault = fault_of(exception)
    assert (fault.kind, fault.verdict) == (kind, FAILURE)


@pytest.mark.parametrize(
    "exception", [ValueError("x"), TimeoutError(), OSError(), Exception("anthropic"), KeyError("openai")]
)
def test_other_exceptions_are_not_classified(exception: Exception) -> None:
    assert classify_sdk(exception) is None


# ── the SDKs' own retries ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_sdks_own_retries_are_found_inside_wrapped_errors() -> None:
    claude, gpt = anthropic.AsyncAnthropic(api_key="k"), openai.AsyncOpenAI(api_key="k", max_retries=5)
    assert own_retries(claude.messages.create) == 2
    assert own_retries(gpt.responses.create) == 5
    assert own_retries(gpt.chat.completions.create) == 5
    assert own_retries(gpt.with_options(max_retries=0).responses.create) == 0
    assert own_retries(claude.messages.with_raw_response.create) == 2
    assert own_retries(functools.partial(claude.messages.create, model=CLAUDE)) == 2

    @functools.wraps(gpt.responses.create)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        return await gpt.responses.create(*args, **kwargs)

    assert own_retries(wrapped) == 5


def test_googles_configured_retries_and_its_uninvited_one_are_counted() -> None:
    """Google's asynchronous client repeats a broken connection once over aiohttp, unless its options say otherwise."""
    from google import genai

    def client(attempts: int | None) -> genai.Client:
        retry = None if attempts is None else google_types.HttpRetryOptions(attempts=attempts)
        return genai.Client(api_key="k", http_options=google_types.HttpOptions(retry_options=retry))

    assert own_retries(client(None).models.generate_content) == 0
    assert own_retries(client(None).aio.models.generate_content) == 1
    assert own_retries(client(1).aio.models.generate_content) == 0
    assert own_retries(client(4).aio.models.generate_content) == 3


@pytest.mark.parametrize(
    "operation", [print, len, lambda: None, asyncio.sleep, object(), functools.partial(print)]
)
def test_no_hidden_retries_are_reported_for_an_operation_without_an_sdk(operation: Any) -> None:
    assert own_retries(operation) == 0


def of_module(module: str, name: str, *bases: type[Exception], **attributes: Any) -> Exception:
    """An exception like those of a generated SDK that the tests do not install."""
    cls = type(
        name, bases or (Exception,), {"__module__": f"{module}._exceptions", "__init__": lambda _: None}
    )
    error: Exception = cls()
    vars(error).update(attributes)
    return error


def test_other_sdks_of_the_same_generator_and_litellm_are_recognised() -> None:
    base = type("APIError", (Exception,), {"__module__": "groq._exceptions"})
    full = {"error": {"message": "Flex tier capacity exceeded", "type": None, "code": "capacity_exceeded"}}
    error = of_module("groq", "APIStatusError", base, status_code=498, body=full)
    assert fault_of(error).kind is Kind.THROTTLED and fault_of(error).billed is False
    wrapped = openai.RateLimitError.__new__(openai.RateLimitError)
    sentence = "litellm.RateLimitError: OpenAIException - You exceeded your current quota"
    vars(wrapped).update(status_code=429, body=None, message=sentence, response=None, request_id=None)
    assert fault_of(wrapped).kind is Kind.QUOTA
    assert fault_of(of_module("litellm", "BudgetExceededError")).kind is Kind.QUOTA
    assert classify_sdk(of_module("litellm", "SomethingElse")) is None
