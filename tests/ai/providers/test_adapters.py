"""The adapters against the fakes: their requests, valid responses, broken responses and streams."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.ai.providers.anthropic import AnthropicProvider
from koo.ai.providers.base import Completion, CompletionChunk, Pace, Request
from koo.ai.providers.openai import OpenAIProvider
from koo.ai.providers.openai_compatible import OpenAICompatibleProvider
from koo.ai.providers.transport import FRAMING_TOKENS, bound_tokens
from koo.ai.types import Usage
from koo.errors import AuthenticationFailed, ExternalServiceError, Kind, StreamTruncated
from koo.http.client import HttpClient, HttpResponse
from koo.policies.treatment import fault_of
from koo.testing.polling import until
from koo.testing.providers import (
    FakeCompatible,
    FakeOpenAI,
    FakeProvider,
    answer,
    cut,
    error,
    hang,
    html,
    nothing,
    quota,
    raw,
    stream,
)
from tests.ai.providers.talk import Talk
from tests.ai.providers.test_contract import CASES

VENDORS = ("anthropic", "openai", "openai_compatible")
"""Those whose formats are tested here. Every other vendor has a file of its own."""


class Recording(HttpClient):
    """Responds for hosts that no test may contact, and records the (URL, body) of each request."""

    __slots__ = ("body", "seen")

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body
        self.seen: list[tuple[str, bytes]] = []

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpResponse:
        self.seen.append((url, body or b""))
        return HttpResponse(200, {}, self.body)


each_vendor = pytest.mark.parametrize("vendor", VENDORS)
every_vendor = pytest.mark.parametrize("vendor", CASES)


def model_of(vendor: str) -> str:
    # Newer models of Anthropic accept no `temperature`.
    return "claude-sonnet-4-6" if vendor == "anthropic" else CASES[vendor].model


def asking(vendor: str, prompt: str = "Capital of France?", **options: Any) -> Request:
    return Request(prompt=prompt, model=model_of(vendor), **{"max_tokens": 100, **options})


@asynccontextmanager
async def talking(vendor: str, **options: Any) -> AsyncIterator[tuple[Any, FakeProvider]]:
    """An adapter and the fake that it talks to."""
    server = CASES[vendor].fake(**{"key": "test-key", **options})
    http = HttpClient()
    async with server:
        try:
            yield CASES[vendor].adapter("svc", http, base_url=server.base_url, api_key="test-key"), server
        finally:
            await http.close()


def complete(vendor: str, step: Any, **options: Any) -> Completion:
    async def main() -> Completion:
        async with talking(vendor) as (provider, server):
            server.script(step)
            completion: Completion = await provider.complete(asking(vendor, **options))
            return completion

    return asyncio.run(main())


def pieces_of(
    vendor: str, step: Any, **options: Any
) -> tuple[list[CompletionChunk], ExternalServiceError | None]:
    """The pieces of a stream, and the error with which it ended."""

    async def main() -> tuple[list[CompletionChunk], ExternalServiceError | None]:
        async with talking(vendor) as (provider, server):
            server.script(step)
            pieces: list[CompletionChunk] = []
            try:
                async for piece in provider.stream(asking(vendor, **options)):
                    pieces.append(piece)  # noqa: PERF401
            except ExternalServiceError as fault:
                return pieces, fault
            return pieces, None

    return asyncio.run(main())


def failure(vendor: str, step: Any) -> ExternalServiceError:
    with pytest.raises(ExternalServiceError) as caught:
        complete(vendor, step)
    return caught.value


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def sent(vendor: str, *, streamed: bool = False, **options: Any) -> tuple[str, Any, Any]:
    """(path, body, headers) of a request as the server received it."""

    async def main() -> tuple[str, Any, Any]:
        async with talking(vendor) as (provider, server):
            if streamed:
                async for _ in provider.stream(asking(vendor, **options)):
                    pass
            else:
                await provider.complete(asking(vendor, **options))
            request = server.queries[0]
            return request.path, request.body, request.headers

    return asyncio.run(main())


def test_a_request_has_anthropics_format() -> None:
    path, body, headers = sent("anthropic", system="Be brief.", temperature=0.5)
    assert path == "/v1/messages"
    assert body == {
        "model": "claude-sonnet-4-6", "max_tokens": 100, "system": "Be brief.", "temperature": 0.5,
        "messages": [{"role": "user", "content": "Capital of France?"}],
    }  # fmt: skip
    assert headers["x-api-key"] == "test-key" and headers["anthropic-version"] == "2023-06-01"
    assert headers["content-type"] == "application/json"
    assert sent("anthropic", streamed=True)[1]["stream"] is True


def test_a_request_has_openais_format() -> None:
    """Without `store: false`, OpenAI keeps each response for 30 days."""
    path, body, headers = sent("openai", system="Be brief.", temperature=0.5)
    assert path == "/v1/responses"
    assert body == {
        "model": "gpt-6.1-terra", "max_output_tokens": 100, "instructions": "Be brief.", "temperature": 0.5,
        "input": "Capital of France?", "store": False,
    }  # fmt: skip
    assert headers["authorization"] == "Bearer test-key"
    assert sent("openai", streamed=True)[1]["stream"] is True


def test_a_request_to_a_compatible_server_has_the_chat_format() -> None:
    path, body, _ = sent("openai_compatible", system="Be brief.", temperature=0)
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "qwen3:8b", "max_tokens": 100, "temperature": 0,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of France?"}],
    }  # fmt: skip
    assert sent("openai_compatible", streamed=True)[1]["stream_options"] == {"include_usage": True}


def test_openai_itself_receives_max_completion_tokens() -> None:
    http = Recording(b'{"choices":[{"message":{"content":"ok"}}]}')
    provider = OpenAICompatibleProvider("svc", http, base_url="https://api.openai.com/v1", api_key="k")
    asyncio.run(provider.complete(asking("openai_compatible")))
    [(_, body)] = http.seen
    assert b"max_completion_tokens" in body and b'"max_tokens"' not in body


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("http://h:1", "/v1"),
        ("http://h:1/", "/v1"),
        ("http://h:1/v1/", "/v1"),
        ("http://h:1/api/v1", "/api/v1"),
    ],
)
def test_a_url_without_a_path_gets_the_usual_one(address: str, path: str) -> None:
    assert repr(OpenAICompatibleProvider("svc", HttpClient(), base_url=address)).endswith(
        f"http://h:1{path}>"
    )


def test_anthropics_url_works_with_and_without_its_version() -> None:
    for address in ("https://api.anthropic.com", "https://api.anthropic.com/v1/"):
        assert repr(AnthropicProvider("svc", HttpClient(), base_url=address)) == (
            "<AnthropicProvider 'svc' at https://api.anthropic.com>"
        )


def test_a_self_hosted_server_needs_no_key() -> None:
    async def main() -> None:
        http = HttpClient()
        async with FakeCompatible() as server:
            provider = OpenAICompatibleProvider("svc", http, base_url=server.base_url)
            assert (await provider.complete(asking("openai_compatible"))).text == "Paris."
            assert "authorization" not in server.queries[0].headers
        await http.close()

    asyncio.run(main())


# ── valid responses ───────────────────────────────────────────────────────────────────────────────────────────────────


@each_vendor
def test_a_plain_answer_is_read(vendor: str) -> None:
    completion = complete(vendor, answer("Paris – ça va? 😀", input_tokens=14, output_tokens=5))
    assert completion.text == "Paris – ça va? 😀"
    assert completion.model == model_of(vendor)
    assert completion.usage == Usage(input_tokens=14, output_tokens=5)
    assert (
        completion.stop_reason
        == {"anthropic": "end_turn", "openai": "completed", "openai_compatible": "stop"}[vendor]
    )
    assert completion.request_id and completion.cost_usd is None


@each_vendor
def test_token_classes_are_disjoint_for_every_vendor(vendor: str) -> None:
    step = answer(
        input_tokens=60, cache_read_tokens=30, cache_write_tokens=10, output_tokens=9, reasoning_tokens=4
    )
    assert complete(vendor, step).usage == Usage(
        input_tokens=60, cache_read_tokens=30, cache_write_tokens=10, output_tokens=9, reasoning_tokens=4
    )


@each_vendor
def test_missing_usage_is_estimated_and_marked(vendor: str) -> None:
    usage = complete(vendor, answer("x" * 300, usage=False)).usage
    assert usage.estimated and usage.input_tokens >= 4 and usage.output_tokens >= 75


def test_the_remaining_limits_are_read_from_a_response() -> None:
    assert complete("openai", answer()).pace == (
        Pace("requests", 5000, 4999, 0.012),
        Pace("tokens", 400_000, 399_000, 360.0),
    )
    pace = complete("anthropic", answer()).pace
    assert [(one.resource, one.limit, one.remaining) for one in pace] == [
        ("requests", 4000, 3999), ("input-tokens", 400_000, 399_000), ("output-tokens", 80_000, 79_000),
    ]  # fmt: skip
    assert complete("openai_compatible", answer()).pace == ()


@pytest.mark.parametrize(
    ("vendor", "stop_reason"),
    [
        ("anthropic", "refusal"), ("anthropic", "model_context_window_exceeded"), ("anthropic", "max_tokens"),
        ("openai", "max_output_tokens"), ("openai", "content_filter"), ("openai_compatible", "length"),
    ],
)  # fmt: skip
def test_a_stop_reason_is_an_outcome_and_not_an_error(vendor: str, stop_reason: str) -> None:
    assert complete(vendor, answer("As", stop_reason=stop_reason)).stop_reason == stop_reason
    pieces, fault = pieces_of(vendor, stream(["A", "s"], stop_reason=stop_reason))
    assert fault is None and pieces[-1].stop_reason == stop_reason


def test_openrouters_reported_cost_is_used() -> None:
    assert complete("openai_compatible", answer(cost_usd=0.00123)).cost_usd == Decimal("0.00123")
    assert complete("openai_compatible", answer(cost_usd=-1)).cost_usd is None


def test_a_reported_cost_is_used_in_a_stream_of_one_chunk_too() -> None:
    chunk = (
        b'data: {"id":"1","choices":[{"delta":{"content":"As"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":1,"cost":0.5}}\n\n'
    )
    pieces, fault = pieces_of("openai_compatible", raw(chunk, content_type="text/event-stream"))
    assert fault is None and [piece.cost_usd for piece in pieces] == [Decimal("0.5"), None]


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (b'{"error": "`inputs` is empty", "error_type": "validation"}', Kind.INVALID_REQUEST),
        (b'{"code": "rate_limit_exceeded", "error": "too fast"}', Kind.THROTTLED),
        (b'{"error": "failed", "status_code": 503, "id": "1", "choices": []}', Kind.OVERLOADED),
    ],
    ids=["tgi", "xai", "fastapi"],
)
def test_the_names_next_to_a_streams_error_decide_its_kind(told: bytes, kind: Kind) -> None:
    pieces, fault = pieces_of(
        "openai_compatible", raw(b"data: %b\n\n" % told, content_type="text/event-stream")
    )
    assert not pieces and fault is not None and fault.kind is kind


@pytest.mark.parametrize(
    "end",
    [
        b'"x_groq":{"id":"r","usage":{"prompt_tokens":3,"completion_tokens":1}},"choices":[{"delta":{},"finish_reason":"stop"}]',
        b'"choices":[{"delta":{},"finish_reason":"stop","usage":{"prompt_tokens":3,"completion_tokens":1}}]',
    ],
    ids=["groq", "moonshot"],
)
def test_a_streams_usage_is_found_where_some_vendors_put_it(end: bytes) -> None:
    chunks = (
        b'data: {"id":"1","choices":[{"delta":{"content":"As"}}]}\n\ndata: {"id":"1",%b}\n\ndata: [DONE]\n\n'
        % end
    )
    pieces, fault = pieces_of("openai_compatible", raw(chunks, content_type="text/event-stream"))
    used = [piece.usage for piece in pieces if piece.usage is not None]
    assert fault is None and used == [Usage(input_tokens=3, output_tokens=1)]


TWO_TEXTS = b'{"type":"text","text":"a"},{"type":"text","text":"b"}'
OPENAI_BODY = b'{"model":"m","status":"completed","output":[%b],"usage":null}'
CHAT_BODY = b'{"choices":[{"message":{"content":%b},"finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    ("vendor", "body", "text"),
    [
        ("anthropic", b'{"model":"m","content":[{"type":"thinking","thinking":"?"},%b]}' % TWO_TEXTS, "ab"),
        ("anthropic", b'{"model":"m","content":[],"stop_reason":"refusal"}', ""),
        ("anthropic", b'{"model":"m","content":[{"type":"of_tomorrow","x":1}],"new":{"y":[]}}', ""),
        ("openai", OPENAI_BODY % b'{"type":"reasoning"},{"type":"message","content":[{"text":"a"}]}', "a"),
        ("openai", OPENAI_BODY % b'{"type":"message","content":[{"type":"refusal","refusal":"no"}]}', "no"),
        ("openai", OPENAI_BODY % b'{"type":"function_call_output","content":"x"}', ""),
        ("openai_compatible", CHAT_BODY % b'"a"', "a"),
        ("openai_compatible", CHAT_BODY % b"null", ""),
        ("openai_compatible", CHAT_BODY % (b"[%b]" % TWO_TEXTS), "ab"),
        ("openai_compatible", b'{"choices":[{"message":{"content":null,"refusal":"no"}}]}', "no"),
        ("openai_compatible", b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":null}}', "a"),
        ("openai_compatible", b'{"choices":[{"message":{"content":"a"}}],"error":null}', "a"),
        ("anthropic", b'{"model":7,"content":"a","stop_reason":[]}', "a"),
        ("anthropic", b'{"model":"m","content":[{"type":"text","text":7}]}', "7"),
        ("openai", b'{"model":7,"status":[],"output":[{"type":"message","content":"a"}],"usage":"x"}', "a"),
    ],
)  # fmt: skip
def test_valid_responses_of_many_shapes_are_read(vendor: str, body: bytes, text: str) -> None:
    completion = complete(vendor, raw(body))
    assert completion.text == text and completion.usage.estimated


# ── responses without an answer ───────────────────────────────────────────────────────────────────────────────────────

BAD_BODIES = [
    b"", b"   ", b"not json", b"{", b"null", b"7", b"[]", b"{}", b'"text"', b"[" * 100_000, b'{"a":' * 100_000,
    b"\xff\xfe\x00", b'{"model":7,"content":{},"status":[],"output":{},"choices":3,"candidates":7}', b'{"choices":[]}',
    b'{"model":"m","status":"completed","output":7}', b'{"candidates":[]}', b'{"candidates":null}',
    b'{"promptFeedback":{}}', b'{"candidates":[{"content":{"parts":[{"text":null}]}}],"error":null}',
    b'{"usageMetadata":{"promptTokenCount":"7"}}',
]  # fmt: skip


@every_vendor
@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_an_unreadable_success_is_a_bad_answer(vendor: str, body: bytes) -> None:
    """Such a response may have been billed, so its hold is booked."""
    fault = failure(vendor, raw(body))
    assert fault.kind is Kind.BAD_ANSWER and fault_of(fault).billed is True
    pieces, fault_too = pieces_of(vendor, raw(body))
    assert text_of(pieces) == "" and fault_too is not None and fault_too.kind is Kind.BAD_ANSWER


@every_vendor
def test_a_web_page_with_status_200_is_a_bad_answer(vendor: str) -> None:
    fault = failure(vendor, html(200))
    assert fault.kind is Kind.BAD_ANSWER and "web page" in fault.reason
    pieces, fault_too = pieces_of(vendor, html(200))
    assert pieces == [] and fault_too is not None and fault_too.kind is Kind.BAD_ANSWER


FAILED = b'{"model":"m","status":"failed","output":[],"error":%b}'
INSIDE = [
    ("anthropic", b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', Kind.OVERLOADED),
    (
        "openai",
        b'{"error":{"message":"x","type":"server_error","code":"server_is_overloaded"}}',
        Kind.OVERLOADED,
    ),
    ("openai", FAILED % b'{"code":"rate_limit_exceeded","message":"x"}', Kind.THROTTLED),
    ("openai", FAILED % b'{"code":"invalid_prompt","message":"x"}', Kind.CONTENT_POLICY),
    ("openai", FAILED % b"null", Kind.SERVER_ERROR),
    ("openai", b'{"model":"m","status":"queued","output":[]}', Kind.SERVER_ERROR),
    ("openai_compatible", b'{"error":{"message":"x","code":429}}', Kind.THROTTLED),
    ("openai_compatible", b'{"error":{"message":"x","code":"503"},"choices":[]}', Kind.OVERLOADED),
    ("openai_compatible", b'{"error":"model failed"}', Kind.SERVER_ERROR),
    (
        "openai_compatible",
        b'{"object":"error","message":"x","type":"BadRequestError","code":400}',
        Kind.INVALID_REQUEST,
    ),
    (
        "openai_compatible",
        b'{"choices":[{"error":{"code":502,"message":"x"},"finish_reason":"error"}]}',
        Kind.SERVER_ERROR,
    ),
]


@pytest.mark.parametrize(("vendor", "body", "kind"), INSIDE)
def test_an_error_inside_a_success_is_raised(vendor: str, body: bytes, kind: Kind) -> None:
    assert failure(vendor, raw(body)).kind is kind


@pytest.mark.parametrize(
    ("vendor", "body", "kind"), [row for row in INSIDE if b"error" in row[1] and b"status" not in row[1]]
)
def test_an_error_document_in_place_of_a_stream_is_raised(vendor: str, body: bytes, kind: Kind) -> None:
    if b"choices" not in body:
        pieces, fault = pieces_of(vendor, raw(body))
        assert pieces == [] and fault is not None and fault.kind is kind


# ── connections ───────────────────────────────────────────────────────────────────────────────────────────────────────


@every_vendor
def test_a_connection_closed_without_a_response_may_be_billed(vendor: str) -> None:
    fault = failure(vendor, nothing())
    assert (
        fault.kind is Kind.CONNECTION
        and fault_of(fault).billed is True
        and fault_of(fault).reach == "service"
    )


@every_vendor
def test_an_unreachable_server_does_not_bill(vendor: str) -> None:
    async def main() -> ExternalServiceError:
        http = HttpClient()
        async with CASES[vendor].fake() as server:
            base_url = server.base_url
        try:
            with pytest.raises(ExternalServiceError) as caught:
                await CASES[vendor].adapter("svc", http, base_url=base_url).complete(asking(vendor))
            return caught.value
        finally:
            await http.close()

    fault = asyncio.run(main())
    assert fault.kind is Kind.CONNECTION and fault_of(fault).billed is False


@every_vendor
def test_a_response_that_is_cut_is_a_bad_answer_and_may_be_billed(vendor: str) -> None:
    fault = failure(vendor, cut(700 if vendor in ("anthropic", "openai") else 200))
    assert fault.kind is Kind.BAD_ANSWER and fault_of(fault).billed is True


@every_vendor
def test_cancelling_a_call_ends_its_request(vendor: str) -> None:
    async def main() -> None:
        async with talking(vendor) as (provider, server):
            server.script(hang())
            task = asyncio.ensure_future(provider.complete(asking(vendor)))
            assert await until(lambda: bool(server.queries))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await until(lambda: server.abandoned == 1)

    asyncio.run(main())


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def text_of(pieces: list[CompletionChunk]) -> str:
    return "".join(piece.text for piece in pieces if not piece.reasoning)


@each_vendor
def test_a_stream_yields_content_usage_and_an_end(vendor: str) -> None:
    pieces, fault = pieces_of(vendor, stream(["Par", "is ", "€😀"], input_tokens=7))
    assert fault is None and text_of(pieces) == "Paris €😀"
    assert [piece.text for piece in pieces if piece.text] == ["Par", "is ", "€😀"]
    assert [piece.final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    usage = [piece.usage for piece in pieces if piece.usage is not None][-1]
    assert usage == Usage(input_tokens=7, output_tokens=4)
    assert pieces[0].model == model_of(vendor) and pieces[0].request_id
    assert (
        pieces[-1].stop_reason
        == {"anthropic": "end_turn", "openai": "completed", "openai_compatible": "stop"}[vendor]
    )


@each_vendor
def test_reasoning_is_separate_from_content(vendor: str) -> None:
    pieces, fault = pieces_of(vendor, stream(["Paris"], reasoning=["hm", "well"]))
    assert fault is None and text_of(pieces) == "Paris"
    assert [piece.text for piece in pieces if piece.reasoning] == ["hm", "well"]


@pytest.mark.parametrize("vendor", ["anthropic", "openai"])
def test_the_input_tokens_are_known_before_the_first_content(vendor: str) -> None:
    """These tokens settle a stream whose reader stops early. Anthropic reports them; for the others the bound is
    used.
    """
    pieces, _ = pieces_of(vendor, stream(["Par", "is"], input_tokens=7, cut_after=1))
    first = next(piece.usage for piece in pieces) if pieces else None
    assert (first.input_tokens if first else None) == {"anthropic": 7, "openai": None}[vendor]


@every_vendor
def test_a_stream_that_is_cut_is_truncated(vendor: str) -> None:
    pieces, fault = pieces_of(vendor, stream(["Par", "is", "!"], cut_after=2, interval_s=0.02))
    assert text_of(pieces).startswith("Par") and not any(piece.final for piece in pieces)
    assert (
        isinstance(fault, StreamTruncated) and fault.kind is Kind.TRUNCATED_STREAM and fault_of(fault).billed
    )


@every_vendor
def test_a_stream_that_ends_cleanly_without_its_end_is_truncated(vendor: str) -> None:
    """This cut is the most dangerous one, because to HTTP the response looks complete."""
    pieces, fault = pieces_of(vendor, stream(["Par", "is"], end=False))
    assert text_of(pieces) == "Paris" and isinstance(fault, StreamTruncated)


def test_a_finish_reason_ends_a_stream_without_done() -> None:
    body = b'data: {"id":"c","choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    pieces, fault = pieces_of("openai_compatible", raw(body, content_type="text/event-stream"))
    assert fault is None and pieces[-1].final and pieces[-1].stop_reason == "stop"
    assert pieces[-1].usage is not None and pieces[-1].usage.estimated


@pytest.mark.parametrize(
    ("vendor", "step", "kind"),
    [
        ("anthropic", error(529, "overloaded_error"), Kind.OVERLOADED),
        ("anthropic", error(429, "rate_limit_error"), Kind.THROTTLED),
        ("anthropic", error(500, "api_error"), Kind.SERVER_ERROR),
        ("anthropic", error(500, "of_tomorrow"), Kind.SERVER_ERROR),
        ("openai", error(503, "server_error", code="server_is_overloaded"), Kind.OVERLOADED),
        ("openai", error(400, "invalid_request_error", code="context_length_exceeded"), Kind.CONTEXT_LENGTH),
        ("openai_compatible", error(400), Kind.INVALID_REQUEST),
        ("openai_compatible", error(500), Kind.SERVER_ERROR),
    ],
)
def test_an_error_inside_a_stream_is_classified_by_its_type(vendor: str, step: Any, kind: Kind) -> None:
    """If the error is the first event, no work was done; after content, work was done and may be billed."""
    pieces, fault = pieces_of(vendor, stream(["Par", "is"], error_after=0, error=step))
    assert pieces == [] and fault is not None and fault.kind is kind and fault_of(fault).billed is False
    pieces, fault = pieces_of(vendor, stream(["Par", "is"], error_after=1, error=step))
    assert (
        text_of(pieces) == "Par"
        and fault is not None
        and fault.kind is kind
        and fault_of(fault).billed is True
    )


def test_openais_own_error_event_is_read() -> None:
    flat = (
        b'event: error\ndata: {"type":"error","code":"server_is_overloaded","message":"x","param":null}\n\n'
    )
    failed = b'data: {"type":"response.failed","response":%b}\n\n' % (FAILED % b'{"code":"server_error"}')
    for body, kind in ((flat, Kind.OVERLOADED), (failed, Kind.SERVER_ERROR)):
        pieces, fault = pieces_of("openai", raw(body, content_type="text/event-stream"))
        assert pieces == [] and fault is not None and fault.kind is kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'error: {"code":500,"message":"x","type":"server_error"}\n\n', Kind.SERVER_ERROR),
        (b'error: {"nothing":"known"}\n\n', Kind.BAD_ANSWER),
        (b'error: {"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}\n\n', Kind.OVERLOADED),
        (b'data: {"error":{"code":429},"choices":[{"delta":{},"finish_reason":"error"}]}\n\n', Kind.THROTTLED),
        (b'data: {"choices":[{"delta":{},"finish_reason":"error","error":{"code":503}}]}\n\n', Kind.OVERLOADED),
        (b'data: {"error":"model runner has stopped"}\n\n', Kind.SERVER_ERROR),
        (b"data: not json\n\n", Kind.BAD_ANSWER),
        (b"data: {}\n\n", Kind.TRUNCATED_STREAM),
        (b"data: [\n\n", Kind.BAD_ANSWER),
        (b'data: {"choices":7}\n\n', Kind.TRUNCATED_STREAM),
        (b"data: " + b"[" * 50_000 + b"\n\n", Kind.BAD_ANSWER),
        (b"", Kind.TRUNCATED_STREAM),
        (b": nothing but pings\n\n", Kind.TRUNCATED_STREAM),
    ],
)  # fmt: skip
def test_broken_streams_of_compatible_servers_raise(body: bytes, kind: Kind) -> None:
    pieces, fault = pieces_of("openai_compatible", raw(body, content_type="text/event-stream"))
    assert pieces == [] and fault is not None and fault.kind is kind


def test_anthropics_events_without_names_are_recognised_by_their_type() -> None:
    body = (
        b'data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
        b'data: {"type":"ping"}\n\n'
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}\n\n'
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n'
        b'data: {"type":"message_stop"}\n\n'
    )
    pieces, fault = pieces_of("anthropic", raw(body, content_type="text/event-stream"))
    assert fault is None and text_of(pieces) == "a" and pieces[-1].final
    assert [piece.usage.output_tokens for piece in pieces if piece.usage] == [1, 2]
    assert [piece.usage.input_tokens for piece in pieces if piece.usage] == [3, 3]


@every_vendor
def test_pings_are_not_content_and_closing_early_closes_the_connection(vendor: str) -> None:
    async def main() -> None:
        async with talking(vendor) as (provider, server):
            server.script(stream(["Par", "is"], stall_after=1, ping_only=True))
            pieces = provider.stream(asking(vendor))
            seen = ""
            while seen != "Par":
                seen = (await anext(pieces)).text
            # Ten pings yield no piece, so they reset no timer.
            waiting = asyncio.ensure_future(anext(pieces))
            done, _ = await asyncio.wait((waiting,), timeout=0.1)
            assert not done
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await pieces.aclose()
            assert await until(lambda: server.abandoned == 1)

    asyncio.run(main())


@every_vendor
def test_connections_are_reused_after_complete_responses_and_streams(vendor: str) -> None:
    async def main() -> None:
        async with talking(vendor) as (provider, server):
            for _ in range(3):
                await provider.complete(asking(vendor))
                async for _ in provider.stream(asking(vendor)):
                    pass
            assert len(server.queries) == 6 and server.connections == 1

    asyncio.run(main())


# ── the unbilled check ────────────────────────────────────────────────────────────────────────────────────────────────


@every_vendor
def test_a_check_is_never_billed(vendor: str) -> None:
    async def main() -> None:
        async with talking(vendor) as (provider, server):
            await provider.check()
            await provider.close()
            (request,) = server.requests
            assert request.method == "GET" and request.path.endswith(provider.vendor.models)
            assert server.bills == []

    asyncio.run(main())


@every_vendor
def test_a_check_detects_a_wrong_key(vendor: str) -> None:
    async def main() -> None:
        async with talking(vendor, key="another", strict=False) as (provider, _):
            with pytest.raises(AuthenticationFailed) as caught:
                await provider.check()
            assert caught.value.kind is Kind.AUTH and fault_of(caught.value).block == "service"

    asyncio.run(main())


def test_openrouters_check_verifies_the_key() -> None:
    """OpenRouter's list of models is public, so reading it does not verify the key."""
    http = Recording(b"{}")
    provider = OpenAICompatibleProvider("svc", http, base_url="https://openrouter.ai/api/v1", api_key="k")
    asyncio.run(provider.check())
    assert http.seen == [("https://openrouter.ai/api/v1/key", b"")]


@every_vendor
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<!doctype html><title>Sign in</title>", Kind.BAD_ANSWER),
        (b'{"error": {"type": "authentication_error", "message": "invalid API key"}}', Kind.AUTH),
        (b'{"object": "list", "data": []}', None),
        (b'{"code": 20000, "message": "Ok", "status": true, "data": [{"id": "m"}]}', None),
        (b'[{"id": "m", "object": "model"}]', None),
        (b"", None),
    ],
    ids=["a web page", "an error", "a list", "a wrapped list", "a bare list", "nothing"],
)
def test_a_check_fails_for_a_web_page_or_an_error_with_status_200(
    vendor: str, body: bytes, kind: Kind | None
) -> None:
    provider = CASES[vendor].adapter("svc", Recording(body), base_url="http://h/v1", api_key="k")
    found: list[Kind] = []
    try:
        asyncio.run(provider.check())
    except ExternalServiceError as fault:
        found.append(fault.kind)
    assert found == ([] if kind is None else [kind])


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(max_size=200), st.text(max_size=50))
def test_the_bound_is_not_below_any_tokenizers_count(prompt: str, system: str) -> None:
    """A tokenizer makes at most one token per byte of the text or of its NFKC form. The bound adds an allowance for
    the vendor's framing.
    """
    bound = bound_tokens(Request(prompt=prompt, system=system, model="m", max_tokens=1))
    text = prompt + system
    assert bound >= len(text.encode("utf-8", "surrogatepass")) + FRAMING_TOKENS
    assert bound >= len(unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass"))


def test_the_bound_covers_every_characters_nfkc_form() -> None:
    """All of Unicode, each character once and a thousand times, so that the allowance does not hide an error."""
    for code in range(0x80, 0x110000):
        folded = len(unicodedata.normalize("NFKC", chr(code)).encode("utf-8", "surrogatepass"))
        if folded > len(chr(code).encode("utf-8", "surrogatepass")):
            request = Request(prompt=chr(code) * 1000, model="m", max_tokens=1)
            assert bound_tokens(request) >= 1000 * folded, hex(code)


@each_vendor
def test_all_adapters_use_the_same_bound(vendor: str) -> None:
    provider = CASES[vendor].adapter("svc", HttpClient(), base_url="http://h/v1")
    assert provider.bound_input_tokens(asking(vendor, "ab", system="€")) == 2 + 3 + FRAMING_TOKENS
    assert provider.bound_input_tokens(asking(vendor, "\ufdfa")) == 3 + 33 + FRAMING_TOKENS


# ── secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────────

MARK = "mark4711secret"


def every_bad_step(echo: str) -> list[Any]:
    """Everything that can go wrong, each time with `echo` in every place where a server might put it."""
    page = f"<html>{echo}</html>".encode()
    return [
        error(400, "invalid_request_error", f"cannot read {echo}", param=echo),
        error(400, f"{echo} is no type", f"{echo}: wrong", code=f"a code with {echo}"),
        error(401, "authentication_error", f"Incorrect key: {echo}", headers={"x-request-id": f"a {echo}"}),
        error(429, "rate_limit_error", echo, headers={"retry-after": echo}),
        error(500, "api_error", echo, headers={"request-id": f"/{echo}?"}),
        raw(echo.encode(), 500), raw(echo.encode(), 200), raw(page, 502, "text/html"), raw(f'{{"{echo}":'.encode()),
        raw(f'{{"error":"{echo}"}}'.encode(), 404), raw(f'{{"error":"{echo}"}}'.encode()),
        raw(f"data: {echo}\n\n".encode(), 200, "text/event-stream"), nothing(), cut(150), cut(300),
        error(200, f"{echo} {echo}", echo, code=f"{echo} {echo}"),
        error(429, "RESOURCE_EXHAUSTED", echo, extra=quota(f"PerDay{echo}", retry_delay=echo)),
        error(400, "INVALID_ARGUMENT", echo, extra={"details": [{"reason": f"a {echo}", "violations": [echo]}]}),
    ]  # fmt: skip


@every_vendor
def test_no_error_contains_the_prompt_or_the_key(vendor: str) -> None:
    async def main() -> list[ExternalServiceError]:
        server = CASES[vendor].fake(key=None)
        http = HttpClient()
        found: list[ExternalServiceError] = []
        async with server:
            provider = CASES[vendor].adapter("svc", http, base_url=server.base_url, api_key=f"sk-{MARK}")
            for step in every_bad_step(MARK):
                server.default = step
                for call in (provider.complete, _drain(provider)):
                    try:
                        await call(asking(vendor, f"my {MARK} prompt", system=MARK))
                    except ExternalServiceError as fault:
                        found.append(fault)
            assert MARK not in repr(provider)
        await http.close()
        return found

    found = asyncio.run(main())
    assert len(found) >= 20
    for fault in found:
        chain: BaseException | None = fault
        while chain is not None:
            shown = [str(chain), repr(chain), repr(chain.args), repr(vars(chain))]
            assert not any(MARK in one for one in shown), shown
            chain = chain.__cause__ or chain.__context__


def _drain(provider: Any) -> Any:
    async def call(request: Request) -> None:
        async for _ in provider.stream(request):
            pass

    return call


def test_openai_refuses_a_shorter_answer_than_its_adapters_minimum() -> None:
    """A clamped query stays at the minimum: see `test_holds.py`."""
    talk = Talk("openai", FakeOpenAI, model_of("openai"))
    least = OpenAIProvider.output_tokens_min
    assert talk.complete(answer("Paris."), max_tokens=least).text == "Paris."
    assert "integer_below_min_value" in str(talk.failure(answer("Paris."), max_tokens=least - 1))
