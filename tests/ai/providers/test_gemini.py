"""Gemini's adapter against its fake: requests, responses, streams, errors and costs."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.models import DEFAULT_MODELS
from koo.ai.pricing import Prices
from koo.ai.providers import gemini_errors
from koo.ai.providers.base import Request
from koo.ai.providers.faults import BY_STATUS, SENTENCES, ParsedError
from koo.ai.providers.gemini import BASE_URL, GeminiProvider, encode, path_of
from koo.ai.providers.gemini_errors import FAULTS, PACIFIC_STANDARD, until_midnight_pacific
from koo.ai.providers.openai_errors import read_error
from koo.ai.types import Query, Usage
from koo.errors import AuthenticationFailed, ExternalServiceError, Kind, RateLimited
from koo.http.client import HttpClient
from koo.options import ServiceOptions
from koo.policies.treatment import TREATMENTS, fault_of
from koo.testing.providers import (
    Failure,
    FakeGemini,
    answer,
    blocked,
    error,
    html,
    quota,
    raw,
    stream,
)
from tests.ai.providers.talk import Talk, in_gateway, text_of

FLASH = DEFAULT_MODELS["gemini"]
TALK = Talk("gemini", FakeGemini, FLASH)
INVALID, EXHAUSTED = "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"
EVENTS = "text/event-stream"

PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
TOKENS_A_MINUTE = "GenerateContentInputTokensPerModelPerMinute-FreeTier"

# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_has_geminis_format() -> None:
    path, body, headers = TALK.sent(system="Be brief.", temperature=0.5)
    assert path == f"/v1/models/{FLASH}:generateContent"
    assert body == {
        "contents": [{"parts": [{"text": "Capital of France?"}], "role": "user"}],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {"maxOutputTokens": 100, "temperature": 0.5},
    }
    assert headers["content-type"] == "application/json"
    assert TALK.sent(temperature=0)[1]["generationConfig"]["temperature"] == 0
    assert TALK.sent(streamed=True)[0] == f"/v1/models/{FLASH}:streamGenerateContent?alt=sse"


def test_the_key_is_in_a_header_and_never_in_a_url() -> None:
    async def main() -> None:
        async with TALK.open() as (provider, server):
            await provider.check()
            await provider.complete(TALK.asking())
            async for _ in provider.stream(TALK.asking()):
                pass
            assert [request.headers["x-goog-api-key"] for request in server.requests] == ["test-key"] * 3
            assert not any("test-key" in request.path for request in server.requests)
            assert "test-key" not in repr(provider)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-3.8-flash", "/models/gemini-3.8-flash:m"),
        ("models/gemini-3.8-flash", "/models/gemini-3.8-flash:m"),
        ("tunedModels/mine", "/tunedModels/mine:m"),
        ("../../v1/files?key=x#y", "/models/..%2F..%2Fv1%2Ffiles%3Fkey%3Dx%23y:m"),
        ("models/../x", "/models/..%2Fx:m"),
        ("a b\r\nc", "/models/a%20b%0D%0Ac:m"),
        ("\ud800", "/models/%3F:m"),
    ],
)
def test_a_models_name_stays_a_single_part_of_the_path(model: str, path: str) -> None:
    assert path_of(model, "m") == path


def test_an_unknown_model_is_not_found() -> None:
    async def main() -> None:
        async with TALK.open(strict=False) as (provider, server):
            with pytest.raises(ExternalServiceError) as caught:
                await provider.complete(TALK.asking(model="../x?alt=sse#y"))
            assert caught.value.kind is Kind.NOT_FOUND
            path = server.queries[0].path
            assert path.startswith("/v1/models/..%2Fx%3Falt") and path.endswith("%23y:generateContent")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "root"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1", "http://h:1/v1"),
        ("http://h:1/v1beta/", "http://h:1/v1beta"),
        ("http://h:1/proxy", "http://h:1/proxy/v1"),
        (BASE_URL, "https://generativelanguage.googleapis.com/v1"),
    ],
)
def test_a_url_without_a_version_gets_the_stable_one(address: str, root: str) -> None:
    assert repr(GeminiProvider("svc", HttpClient(), base_url=address)) == f"<GeminiProvider 'svc' at {root}>"


def test_a_self_hosted_server_needs_no_key() -> None:
    async def main() -> None:
        http = HttpClient()
        async with FakeGemini(key=None) as server:
            provider = GeminiProvider("svc", http, base_url=server.base_url)
            assert (await provider.complete(TALK.asking())).text == "Paris."
            assert "x-goog-api-key" not in server.queries[0].headers
        await http.close()

    asyncio.run(main())


# ── valid responses ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_answer_is_read() -> None:
    completion = TALK.complete(answer("Paris – ça va? 😀", input_tokens=14, output_tokens=5))
    assert completion.text == "Paris – ça va? 😀" and completion.model == FLASH
    assert completion.usage == Usage(input_tokens=14, output_tokens=5)
    assert completion.stop_reason == "STOP" and completion.request_id and completion.cost_usd is None


def test_thoughts_are_billed_as_output_and_cached_tokens_are_not_counted_twice() -> None:
    """Google counts thoughts separately from the answer, and cached tokens as part of the prompt."""
    step = answer(input_tokens=60, cache_read_tokens=40, output_tokens=9, reasoning_tokens=4)
    assert TALK.complete(step).usage == Usage(
        input_tokens=60, cache_read_tokens=40, output_tokens=9, reasoning_tokens=4
    )


def with_usage(**counts: Any) -> bytes:
    return msgspec.json.encode(
        {
            "candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}],
            "usageMetadata": counts,
        }
    )


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        # Tokens of tools count as input. Tokens in the total but in none of its parts are reasoning, and are billed.
        (
            {"promptTokenCount": 10, "toolUsePromptTokenCount": 5, "candidatesTokenCount": 1},
            Usage(input_tokens=15, output_tokens=1),
        ),
        (
            {"promptTokenCount": 10, "candidatesTokenCount": 2, "totalTokenCount": 42},
            Usage(input_tokens=10, output_tokens=32),
        ),
        (
            {"promptTokenCount": 10, "candidatesTokenCount": 2, "totalTokenCount": 5},
            Usage(input_tokens=10, output_tokens=2),
        ),
        (
            {"promptTokenCount": 3, "cachedContentTokenCount": 9, "candidatesTokenCount": 1},
            Usage(cache_read_tokens=3, output_tokens=1),
        ),
        # Only half is reported: the other half is estimated from the one byte of text, and the whole is marked.
        (
            {"promptTokenCount": 3, "candidatesTokenCount": -4},
            Usage(input_tokens=3, output_tokens=1, estimated=True),
        ),
    ],
)
def test_inconsistent_counts_are_read_as_the_larger_bill(counts: dict[str, Any], usage: Usage) -> None:
    assert TALK.complete(raw(with_usage(**counts))).usage == usage


def test_missing_usage_is_estimated_and_marked() -> None:
    usage = TALK.complete(answer("x" * 300, usage=False)).usage
    assert usage.estimated and usage.input_tokens >= 4 and usage.output_tokens >= 75
    pieces, fault = TALK.pieces(stream(["x" * 300], usage=False))
    assert fault is None and pieces[-1].usage is not None
    assert pieces[-1].usage.estimated and pieces[-1].usage.output_tokens >= 75


@pytest.mark.parametrize(
    "reason", ["SAFETY", "RECITATION", "MAX_TOKENS", "PROHIBITED_CONTENT", "OF_TOMORROW"]
)
def test_a_stop_reason_is_an_outcome_and_not_an_error(reason: str) -> None:
    completion = TALK.complete(answer("As", stop_reason=reason))
    assert (completion.text, completion.stop_reason) == ("As", reason)
    pieces, fault = TALK.pieces(stream(["A", "s"], stop_reason=reason))
    assert fault is None and pieces[-1].final and pieces[-1].stop_reason == reason


@pytest.mark.parametrize("reason", ["SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "OTHER"])
def test_a_blocked_prompt_is_an_outcome_and_its_input_is_counted(reason: str) -> None:
    completion = TALK.complete(blocked(reason, prompt_tokens=7))
    assert (completion.text, completion.stop_reason) == ("", reason)
    assert completion.usage == Usage(input_tokens=7)
    pieces, fault = TALK.pieces(blocked(reason, prompt_tokens=7, streamed=True))
    assert fault is None and pieces[-1].final and pieces[-1].stop_reason == reason
    assert [piece.usage for piece in pieces if piece.usage] == [Usage(input_tokens=7)]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"candidates":[{"content":{"parts":[{"text":"a"},{"text":"b"}]}}]}', "ab"),
        (b'{"candidates":[{"content":{"parts":[{"text":"?","thought":true},{"text":"b"}]}}]}', "b"),
        (b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f"}},{"text":"b"}]}}]}', "b"),
        (b'{"candidates":[{"content":{"role":"model"},"finishReason":"MAX_TOKENS"}]}', ""),
        (b'{"candidates":[{"content":null,"finishReason":"SAFETY"}],"of_tomorrow":[{}]}', ""),
        (
            b'{"candidates":[{"content":{"parts":null},"finishReason":"STOP"}],"promptFeedback":{},"error":null}',
            "",
        ),
        (b'{"candidates":[{"content":{"parts":[{"text":7}]}}]}', "7"),
    ],
)
def test_valid_responses_of_many_shapes_are_read(body: bytes, text: str) -> None:
    completion = TALK.complete(raw(body))
    assert completion.text == text and completion.usage.estimated and completion.model == FLASH


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────

BOTH = quota(TOKENS_A_MINUTE, PER_DAY, PER_MINUTE, retry_delay="12s")
TOO_LONG = "The input token count (1048999) exceeds the maximum number of tokens allowed (1048576)."
DEPLETED = "Your prepayment credits are depleted. Please go to AI Studio to manage your project and billing."
CHECK_QUOTA = "Resource has been exhausted (e.g. check quota)."
LEAKED = "Your API key was reported as leaked. Please use another API key."
NO_KEY = "Method doesn't allow unregistered callers (callers without established identity)."
NO_REGION = "User location is not supported for the API use."
NO_BILLING = "Gemini API free tier is not available in your country. Please enable billing on your project."

ROWS: list[tuple[Any, Kind]] = [
    (error(400, INVALID, "API key not valid.", code="API_KEY_INVALID"), Kind.AUTH),
    (error(400, INVALID, "API key expired. Please renew the API key."), Kind.AUTH),
    (error(403, "PERMISSION_DENIED", LEAKED), Kind.AUTH),
    (error(403, "PERMISSION_DENIED", NO_KEY), Kind.AUTH),
    (error(401, "UNAUTHENTICATED"), Kind.AUTH),
    (error(400, INVALID, TOO_LONG), Kind.CONTEXT_LENGTH),
    (error(400, "FAILED_PRECONDITION", NO_BILLING), Kind.BILLING),
    (error(400, "FAILED_PRECONDITION", NO_REGION), Kind.PERMISSION),
    (error(400, INVALID, "Invalid JSON payload received."), Kind.INVALID_REQUEST),
    (error(400, "OUT_OF_RANGE"), Kind.INVALID_REQUEST),
    (error(402, EXHAUSTED), Kind.BILLING),
    (error(402, EXHAUSTED, DEPLETED), Kind.BILLING),
    (error(429, EXHAUSTED, DEPLETED), Kind.BILLING),
    (error(403, "PERMISSION_DENIED", code="BILLING_DISABLED"), Kind.BILLING),
    (error(403, "PERMISSION_DENIED", code="SERVICE_DISABLED"), Kind.PERMISSION),
    (error(404, "NOT_FOUND"), Kind.NOT_FOUND),
    (error(429, EXHAUSTED, extra=quota(PER_MINUTE, retry_delay="39s")), Kind.THROTTLED),
    (error(429, EXHAUSTED, extra=quota(PER_DAY, retry_delay="39s")), Kind.QUOTA),
    (error(429, EXHAUSTED, extra=BOTH), Kind.QUOTA),
    (error(429, EXHAUSTED, CHECK_QUOTA), Kind.THROTTLED),
    (error(499, "CANCELLED"), Kind.CONFLICT),
    (error(409, "ABORTED"), Kind.CONFLICT),
    (error(500, "INTERNAL"), Kind.SERVER_ERROR),
    (error(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), Kind.OVERLOADED),
    (error(504, "DEADLINE_EXCEEDED"), Kind.TIMEOUT),
    (error(400, "STATUS_OF_TOMORROW"), Kind.INVALID_REQUEST),
    (error(500, "STATUS_OF_TOMORROW"), Kind.SERVER_ERROR),
    # Google or a proxy may send an error without a structured body.
    (html(502), Kind.SERVER_ERROR),
    (html(503), Kind.OVERLOADED),
    (html(403), Kind.INVALID_REQUEST),
    (html(413), Kind.TOO_LARGE),
    (html(429), Kind.THROTTLED),
    (raw(b"", 307), Kind.INVALID_REQUEST),
    (raw(b"", 500), Kind.SERVER_ERROR),
    (raw(b"[" * 100_000, 500), Kind.SERVER_ERROR),
    (raw(b'{"error": 7}', 500), Kind.SERVER_ERROR),
    (raw(b'{"error": {"details": 7, "message": [], "status": {}, "code": "x"}}', 503), Kind.OVERLOADED),
    (raw(b'[{"error": {"code": 503, "status": "UNAVAILABLE"}}]', 503), Kind.OVERLOADED),
    (
        raw(b'{"error":{"status":"RESOURCE_EXHAUSTED","details":[7,{"violations":[7,{"quotaId":7}]}]}}', 429),
        Kind.THROTTLED,
    ),
    # Messages never contradict the status, and stop the service only if they begin with known words.
    (error(500, "INTERNAL", f"while reading: {TOO_LONG}"), Kind.SERVER_ERROR),
    (error(503, "UNAVAILABLE", DEPLETED), Kind.OVERLOADED),
    (error(429, EXHAUSTED, f"cannot do: {DEPLETED}"), Kind.THROTTLED),
    (error(429, EXHAUSTED, "Your project has exceeded its monthly spending cap."), Kind.QUOTA),
    (error(400, INVALID, f"cannot parse: {LEAKED}"), Kind.INVALID_REQUEST),
    (error(403, "PERMISSION_DENIED", f"cannot parse: {LEAKED}"), Kind.PERMISSION),
]


@pytest.mark.parametrize(("step", "kind"), ROWS)
def test_each_row_is_classified_over_a_real_socket(step: Any, kind: Kind) -> None:
    fault = TALK.failure(step)
    assert fault.kind is kind and type(fault) is TREATMENTS[kind].error
    # A refusal is never billed, so nothing is booked for it.
    assert fault_of(fault).billed is False
    assert len(fault.reason) <= 300 and fault.service == "svc"


@pytest.mark.parametrize(("step", "kind"), ROWS)
def test_a_refused_stream_is_classified_like_a_refused_call(step: Any, kind: Kind) -> None:
    pieces, fault = TALK.pieces(step)
    assert pieces == [] and fault is not None and fault.kind is kind


@pytest.mark.parametrize(
    ("step", "kind"), [row for row in ROWS if isinstance(row[0], Failure) and row[0].type != "ABORTED"]
)
def test_an_error_inside_a_stream_is_classified_like_a_refusal(step: Any, kind: Kind) -> None:
    """If the error is the first chunk, no work was done; after content, work was done and may be billed."""
    pieces, fault = TALK.pieces(stream(["Par", "is"], error_after=0, error=step))
    assert pieces == [] and fault is not None and fault.kind is kind and fault_of(fault).billed is False
    pieces, fault = TALK.pieces(stream(["Par", "is"], error_after=1, error=step))
    assert text_of(pieces) == "Par"
    assert fault is not None and fault.kind is kind and fault_of(fault).billed is True


def parsed(step: Any) -> ParsedError:
    """The result of the adapter's error reader for the fake's response, without a socket."""
    body = msgspec.json.encode(FakeGemini().error_body(step)) if isinstance(step, Failure) else step.body
    return read_error(step.status, {}, body)


def test_every_row_of_the_table_is_tested_in_this_file() -> None:
    """A row that no response above reaches first has no effect."""
    reached = {id(FAULTS.find(parsed(step))) for step, _ in ROWS}
    assert [row for row in FAULTS.rows if id(row) not in reached] == []


def test_every_kind_in_the_table_has_a_sentence_and_a_treatment() -> None:
    kinds = {row.kind for row in FAULTS.rows} | set(BY_STATUS.values())
    assert kinds <= set(TREATMENTS) and kinds <= set(SENTENCES)


def test_an_error_has_status_code_type_and_request_id() -> None:
    refused = TALK.failure(error(400, INVALID, "API key not valid.", code="API_KEY_INVALID"))
    assert refused.detail == {
        "status": 400, "type": INVALID, "code": "API_KEY_INVALID", "request_id": None,
    }  # fmt: skip
    assert str(refused) == (
        "svc: it rejects the API key: set a valid one (status 400, API_KEY_INVALID, INVALID_ARGUMENT)"
    )


# ── waits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

UNTIL_MIDNIGHT_S = 20 * 3600.0
"""From noon in Greenwich on a day in November, which is 4 o'clock in California."""


@pytest.mark.parametrize(
    ("step", "wait_s"),
    [
        (error(429, EXHAUSTED, extra=quota(PER_MINUTE, retry_delay="39s")), 39),
        (error(429, EXHAUSTED, extra=quota(PER_MINUTE, retry_delay="45.837906927s")), 45.837906927),
        (error(429, EXHAUSTED, extra=quota(PER_MINUTE, retry_delay="0s")), None),
        (error(429, EXHAUSTED, extra=quota(PER_MINUTE, retry_delay="soon")), None),
        (error(429, EXHAUSTED, extra=quota(PER_MINUTE)), None),
        (error(429, EXHAUSTED, "You exceeded your quota.\nPlease retry in 20.04466179s."), 20.04466179),
        (error(429, EXHAUSTED, headers={"Retry-After": "7"}), 7),
        # A daily quota's wait of seconds is ignored, because the quota is still exceeded after it.
        (error(429, EXHAUSTED, extra=quota(PER_DAY, retry_delay="39s")), UNTIL_MIDNIGHT_S),
        (error(429, EXHAUSTED, extra=BOTH), UNTIL_MIDNIGHT_S),
        (error(429, EXHAUSTED, CHECK_QUOTA), None),
        (error(503, "UNAVAILABLE"), None),
    ],
)
def test_the_wait_is_read_from_the_response(step: Any, wait_s: float | None) -> None:
    assert TALK.failure(step).retry_after_s == (None if wait_s is None else pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        ("2026-11-23T04:00", 20),
        ("2026-11-23T23:59", 1 / 60),
        ("2026-11-23T00:00", 24),
        ("2026-07-01T04:00", 20),
        # The days on which the clocks change have 23 or 25 hours.
        ("2026-03-08T00:00", 23),
        ("2026-03-08T01:30", 21.5),
        ("2026-11-01T00:00", 25),
        ("2026-11-01T03:00", 21),
        ("2026-12-31T12:00", 12),
        ("2028-02-29T00:00", 24),
    ],
)
def test_a_daily_quota_ends_at_midnight_in_california(now: str, hours: float) -> None:
    wall_s = datetime.fromisoformat(now).replace(tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
    wait_s = until_midnight_pacific(ParsedError(status=429), wall_s)
    assert wait_s == pytest.approx(hours * 3600)


def test_without_time_zone_data_the_wait_is_off_by_at_most_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slim images have no time zone data, and the standard library raises."""

    def missing(_: str) -> ZoneInfo:
        raise ZoneInfoNotFoundError("no time zone found")

    monkeypatch.setattr(gemini_errors, "ZoneInfo", missing)
    winter = datetime(2026, 11, 23, 4, tzinfo=PACIFIC_STANDARD).timestamp()
    assert until_midnight_pacific(ParsedError(status=429), winter) == 20 * 3600


# ── responses without an answer ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error":{"code":503,"status":"UNAVAILABLE","message":"x"}}', Kind.OVERLOADED),
        (b'[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"x"}}]', Kind.THROTTLED),
        (b'{"error":{"code":500}}', Kind.SERVER_ERROR),
    ],
)
def test_an_error_inside_a_success_is_raised(body: bytes, kind: Kind) -> None:
    assert TALK.failure(raw(body)).kind is kind
    pieces, fault = TALK.pieces(raw(body))
    assert pieces == [] and fault is not None and fault.kind is kind


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_yields_content_usage_and_an_end() -> None:
    pieces, fault = TALK.pieces(stream(["Par", "is ", "€😀"], input_tokens=7))
    assert fault is None and [piece.text for piece in pieces if piece.text] == ["Par", "is ", "€😀"]
    assert [piece.final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [piece.usage for piece in pieces if piece.usage][-1] == Usage(input_tokens=7, output_tokens=4)
    assert pieces[0].model == FLASH and pieces[0].request_id and pieces[-1].stop_reason == "STOP"


def test_the_input_tokens_are_known_before_the_first_content() -> None:
    """A stream whose reader stops early is therefore settled by Google's count, not by the bound."""
    pieces, _ = TALK.pieces(stream(["Par", "is"], input_tokens=7, cut_after=1))
    assert pieces[0].usage == Usage(input_tokens=7)


def test_thoughts_are_separate_from_content() -> None:
    pieces, fault = TALK.pieces(stream(["Paris"], reasoning=["hm", "well"]))
    assert fault is None and text_of(pieces) == "Paris"
    assert [piece.text for piece in pieces if piece.reasoning] == ["hm", "well"]


def chunks(*documents: str) -> Any:
    body = "".join(f"data: {document}\r\n\r\n" for document in documents)
    return raw(body.encode(), content_type=EVENTS)


def test_a_stop_reason_in_each_chunk_does_not_end_the_stream_early() -> None:
    """Some models send STOP with every chunk from the first one on."""
    pieces, fault = TALK.pieces(
        chunks(
            '{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}',
            '{"candidates":[{"content":{"parts":[{"text":"b"}]},"finishReason":"STOP"}]}',
            '{"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"totalTokenCount":5}}',
        )
    )
    assert fault is None and text_of(pieces) == "ab"
    assert [piece.usage for piece in pieces if piece.usage] == [Usage(input_tokens=3, output_tokens=2)]
    assert [piece.final for piece in pieces] == [False, False, False, True]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"data: not json\n\n", Kind.BAD_ANSWER),
        (b"data: [\n\n", Kind.BAD_ANSWER),
        (b'data: {"candidates":7}\n\n', Kind.TRUNCATED_STREAM),
        (b"data: " + b"[" * 50_000 + b"\n\n", Kind.BAD_ANSWER),
        (b'data: {"candidates":' + b"[" * 50_000 + b"\n\n", Kind.BAD_ANSWER),
        (b"data: \xff\n\n", Kind.BAD_ANSWER),
        (b'data: {"error":{"code":503,"status":"UNAVAILABLE"}}\n\n', Kind.OVERLOADED),
        (b'data: {"error":"something"}\n\n', Kind.SERVER_ERROR),
        (b"data: {}\n\n", Kind.TRUNCATED_STREAM),
        (b"", Kind.TRUNCATED_STREAM),
        (b": nothing but pings\n\n", Kind.TRUNCATED_STREAM),
    ],
)
def test_broken_streams_raise(body: bytes, kind: Kind) -> None:
    pieces, fault = TALK.pieces(raw(body, content_type=EVENTS))
    assert text_of(pieces) == "" and fault is not None and fault.kind is kind


# ── money ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def price() -> Any:
    return Prices().find(ServiceOptions(name="g", kind="gemini", api_key="k"), FLASH)


def test_the_cost_is_googles_counts_at_the_prices_of_the_price_table() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakeGemini) -> None:
        per_token = price().tiers[0]
        server.script(answer(input_tokens=600, cache_read_tokens=400, output_tokens=90, reasoning_tokens=40))
        got = await here.query(Query(service="svc", prompt="Capital of France?", max_tokens=100))
        cost = 600 * per_token.input_usd + 400 * per_token.cache_read_usd + 90 * per_token.output_usd
        assert got.cost_usd == cost > 0 and got.cost_source == "table" and got.attempts == 1
        assert budgets.view("svc").spent_usd == cost and budgets.view("svc").held_usd == 0

    in_gateway("gemini", FLASH, FakeGemini(), test)


def test_a_streamed_answer_costs_the_same() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakeGemini) -> None:
        server.script(stream(["Par", "is"], input_tokens=600), answer("Paris", input_tokens=600))
        answers = here.stream(Query(service="svc", prompt="Capital?", max_tokens=100))
        assert "".join([chunk.text async for chunk in answers]) == "Paris"
        plain = await here.query(Query(service="svc", prompt="Capital?", max_tokens=100))
        assert answers.answer is not None
        assert answers.answer.cost_usd == plain.cost_usd == budgets.view("svc").spent_usd / 2

    in_gateway("gemini", FLASH, FakeGemini(), test)


def test_a_blocked_prompt_costs_what_was_read() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakeGemini) -> None:
        server.script(blocked("PROHIBITED_CONTENT", prompt_tokens=1000))
        got = await here.query(Query(service="svc", prompt="Capital?"))
        assert got.text == "" and got.stop_reason == "PROHIBITED_CONTENT"
        assert budgets.view("svc").spent_usd == 1000 * price().tiers[0].input_usd

    in_gateway("gemini", FLASH, FakeGemini(), test)


def test_an_exceeded_daily_quota_is_not_retried() -> None:
    """A retry cannot help before midnight, so the next query is refused by koo with the time to wait."""

    async def test(here: Gateway, budgets: Budgets, server: FakeGemini) -> None:
        server.script(error(429, EXHAUSTED, extra=quota(PER_DAY, retry_delay="1s")))
        for _ in range(2):
            with pytest.raises(RateLimited) as caught:
                await here.query(Query(service="svc", prompt="Capital?"))
            assert caught.value.retry_after_s is not None and caught.value.retry_after_s > 1
        assert len(server.queries) == 1 and budgets.view("svc").spent_usd == 0

    in_gateway("gemini", FLASH, FakeGemini(), test)


def test_a_rejected_key_is_not_retried() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakeGemini) -> None:
        for _ in range(2):
            with pytest.raises(AuthenticationFailed):
                await here.query(Query(service="svc", prompt="Capital?"))
        assert len(server.queries) == 1 and budgets.view("svc").spent_usd == 0

    in_gateway("gemini", FLASH, FakeGemini(key="another"), test, strict=False)


def test_an_overloaded_model_is_retried() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakeGemini) -> None:
        server.script(error(503, "UNAVAILABLE"), error(500, "INTERNAL"))
        got = await here.query(Query(service="svc", prompt="Capital?"))
        assert got.attempts == 3 == len(server.queries)

    in_gateway("gemini", FLASH, FakeGemini(), test)


@settings(deadline=None, max_examples=100 if os.environ.get("CI") else 50)
@given(prompt=st.text(min_size=1), cached=st.floats(0, 1), out=st.integers(0, 500), thought=st.floats(0, 1))
def test_no_bill_exceeds_its_bound(prompt: str, cached: float, out: int, thought: float) -> None:
    """No tokenizer makes more tokens of a prompt than it has bytes, whatever is cached or reasoned."""
    provider, found = GeminiProvider("svc", HttpClient()), price()
    request = Request(prompt=prompt, model=FLASH, max_tokens=500)
    read = len(prompt.encode("utf-8", "replace"))
    usage = Usage(
        input_tokens=read - int(read * cached), cache_read_tokens=int(read * cached), output_tokens=out,
        reasoning_tokens=int(out * thought),
    )  # fmt: skip
    assert found.cost_usd(usage) <= found.bound_usd(provider.bound_input_tokens(request), request.max_tokens)
    assert msgspec.json.decode(encode(request))["generationConfig"]["maxOutputTokens"] == 500
