"""Perplexity's adapter against its fake: requests, responses, streams, errors and costs."""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from perplexity.generated.api import ResponsesRequestInput, WebSearchToolInput

from koo.ai.budgets import Budgets
from koo.ai.gateway import Gateway
from koo.ai.models import DEFAULT_MODELS
from koo.ai.pricing import SEARCH_USD, SEARCHES_MAX, Prices
from koo.ai.providers.base import Request
from koo.ai.providers.faults import BY_STATUS, SENTENCES, ParsedError
from koo.ai.providers.openai_errors import read_error
from koo.ai.providers.perplexity import (
    BASE_URL,
    FAULTS,
    SEARCH_TOKENS,
    SEARCH_TOKENS_BOUND,
    PerplexityProvider,
)
from koo.ai.types import Query, Usage
from koo.errors import Kind, RateLimited
from koo.http.client import HttpClient
from koo.options import ServiceOptions
from koo.policies.treatment import TREATMENTS, fault_of
from koo.testing.providers import (
    Failure,
    FakePerplexity,
    answer,
    error,
    html,
    raw,
    stream,
)
from tests.ai.providers.talk import Talk, in_gateway, text_of

SONAR = DEFAULT_MODELS["perplexity"]
TALK = Talk("perplexity", FakePerplexity, SONAR)
EVENTS = "text/event-stream"

# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_has_perplexitys_format() -> None:
    """One forced search of a limited size and one step of research; nothing is stored by Perplexity."""
    path, body, headers = TALK.sent(system="Be brief.", temperature=0.5)
    assert path == "/v1/responses"
    assert body == {
        "model": SONAR, "input": "Capital of France?", "instructions": "Be brief.", "temperature": 0.5,
        "max_output_tokens": 100, "store": False, "max_steps": 1, "tool_choice": {"type": "web_search"},
        "tools": [{"type": "web_search", "max_tokens": SEARCH_TOKENS, "max_tokens_per_page": SEARCH_TOKENS // 4}],
    }  # fmt: skip
    assert headers["authorization"] == "Bearer test-key"
    assert TALK.sent(streamed=True)[1]["stream"] is True
    assert "temperature" not in TALK.sent()[1] and TALK.sent(temperature=0)[1]["temperature"] == 0


def test_perplexitys_own_sdk_has_every_field_that_is_sent() -> None:
    """Perplexity rejects unknown fields, so a wrong one would fail every query."""
    asking = TALK.asking(system="x", temperature=1.0)
    body = msgspec.json.decode(PerplexityProvider("svc", HttpClient()).encode(asking, stream=True))
    assert set(body) <= set(ResponsesRequestInput.model_fields)
    assert set(body["tools"][0]) <= set(WebSearchToolInput.model_fields)
    ResponsesRequestInput.model_validate(body)


@pytest.mark.parametrize(
    ("address", "root"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("http://h:1/proxy", "http://h:1/proxy"),
        (BASE_URL, "https://api.perplexity.ai/v1"),
    ],
)
def test_a_url_without_a_path_gets_the_usual_one(address: str, root: str) -> None:
    shown = repr(PerplexityProvider("svc", HttpClient(), base_url=address, api_key="k3y"))
    assert shown == f"<PerplexityProvider 'svc' at {root}>"


# ── valid responses ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_answer_is_read() -> None:
    completion = TALK.complete(answer("Paris – ça va? 😀", input_tokens=14, output_tokens=5))
    assert completion.text == "Paris – ça va? 😀" and completion.model == SONAR
    assert completion.usage == Usage(input_tokens=14, output_tokens=5)
    assert completion.stop_reason == "completed" and completion.request_id
    # 14 input tokens, 5 output tokens, one search.
    assert completion.cost_usd == Decimal("0.0000035") + Decimal("0.0000125") + Decimal("0.0025")


def test_token_classes_are_disjoint() -> None:
    step = answer(
        input_tokens=60, cache_read_tokens=30, cache_write_tokens=10, output_tokens=9, reasoning_tokens=4
    )
    assert TALK.complete(step).usage == Usage(
        input_tokens=60, cache_read_tokens=30, cache_write_tokens=10, output_tokens=9, reasoning_tokens=4
    )


def test_missing_usage_is_estimated_and_has_no_reported_cost() -> None:
    completion = TALK.complete(answer("x" * 300, usage=False))
    assert completion.usage.estimated and completion.usage.output_tokens >= 75
    assert completion.cost_usd is None


@pytest.mark.parametrize("cost", [0.00123, 0.0, 1e-05])
def test_perplexitys_reported_cost_is_used(cost: float) -> None:
    assert TALK.complete(answer(cost_usd=cost)).cost_usd == Decimal(str(cost))


@pytest.mark.parametrize(
    "cost",
    [
        b'{"currency":"USD","total_cost":-1}', b'{"currency":"EUR","total_cost":1}', b'{"currency":"USD"}', b"null",
        b'{"currency":"USD","total_cost":null}', b'{"currency":"USD","total_cost":"NaN"}',
    ],
)  # fmt: skip
def test_an_impossible_cost_is_ignored(cost: bytes) -> None:
    body = b'{"model":"m","status":"completed","output":[],"usage":{"input_tokens":3,"cost":%b}}' % cost
    completion = TALK.complete(raw(body))
    assert completion.cost_usd is None and completion.usage == Usage(input_tokens=3)


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
def test_a_stop_reason_is_an_outcome_and_not_an_error(reason: str) -> None:
    assert TALK.complete(answer("As", stop_reason=reason)).stop_reason == reason
    pieces, fault = TALK.pieces(stream(["A", "s"], stop_reason=reason))
    assert fault is None and pieces[-1].final and pieces[-1].stop_reason == reason


BODY = b'{"model":"m","status":"completed","output":[%b],"usage":null,"incomplete_details":null,"error":null}'


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (b"", ""),
        (b'{"type":"search_results","results":[{"id":1,"url":"u"}],"queries":null}', ""),
        (b'{"type":"search_results"},{"type":"message","content":[{"text":"a"},{"text":"b"}]}', "ab"),
        (b'{"type":"message","content":[{"text":"a"}]},{"type":"message","content":[{"text":"b"}]}', "ab"),
        (b'{"type":"of_tomorrow","content":"x"},{"type":"message","content":[{"text":null}]}', ""),
    ],
)
def test_valid_responses_of_many_shapes_are_read(items: bytes, text: str) -> None:
    completion = TALK.complete(raw(BODY % items))
    assert completion.text == text and completion.usage.estimated


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────

INVALID = "invalid_request"
TOO_LONG = "This model's maximum context length is 128000 tokens."

ROWS: list[tuple[Any, Kind]] = [
    (error(400, INVALID, 'json: unknown field "x"'), Kind.INVALID_REQUEST),
    (error(400, "invalid_parameter"), Kind.INVALID_REQUEST),
    (error(422, "validation_error"), Kind.INVALID_REQUEST),
    (error(400, "invalid_model"), Kind.NOT_FOUND),
    (error(400, INVALID, TOO_LONG), Kind.CONTEXT_LENGTH),
    (error(401, "invalid_api_key"), Kind.AUTH),
    # Perplexity's 401 may mean that no credits are left, or be an HTML page of the web server in front.
    (error(401, "insufficient_quota", "You exceeded your current quota."), Kind.BILLING),
    (error(401, "unauthorized"), Kind.AUTH),
    (html(401), Kind.AUTH),
    (error(402, "payment_required"), Kind.BILLING),
    (error(403, "forbidden"), Kind.PERMISSION),
    (error(403, "chat_completions_not_available"), Kind.NOT_FOUND),
    (html(403), Kind.INVALID_REQUEST),
    (error(404, "not_found"), Kind.NOT_FOUND),
    (html(404), Kind.NOT_FOUND),
    (error(413, "payload_too_large"), Kind.TOO_LARGE),
    (error(429, "request_rate_limit_exceeded"), Kind.THROTTLED),
    (html(429), Kind.THROTTLED),
    (error(500, "internal_error"), Kind.SERVER_ERROR),
    (error(502, "bad_gateway"), Kind.SERVER_ERROR),
    (error(500, "upstream_structured_output_failed"), Kind.SERVER_ERROR),
    (error(504, "gateway_timeout"), Kind.TIMEOUT),
    (error(503, "unavailable"), Kind.OVERLOADED),
    (html(502), Kind.SERVER_ERROR),
    (html(524), Kind.SERVER_ERROR),
    (raw(b"", 500), Kind.SERVER_ERROR),
    (raw(b"", 307), Kind.INVALID_REQUEST),
    (raw(b"[" * 100_000, 500), Kind.SERVER_ERROR),
    (raw(b'{"error": 7}', 500), Kind.SERVER_ERROR),
    (raw(b'{"error": {"message": [], "type": {}, "code": null}}', 503), Kind.OVERLOADED),
    # Messages never contradict the status: these quote prompts.
    (error(500, "internal_error", TOO_LONG), Kind.SERVER_ERROR),
    (error(400, INVALID, "cannot read 'insufficient_quota'"), Kind.INVALID_REQUEST),
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


def test_a_401_without_a_reason_names_both_possible_reasons() -> None:
    for step in (html(401), error(401, "unauthorized")):
        reason = TALK.failure(step).reason
        assert "key" in reason and "credits" in reason
    assert "credits" not in TALK.failure(error(401, "invalid_api_key")).reason


def parsed(step: Any) -> ParsedError:
    """The result of the adapter's error reader for the fake's response, without a socket."""
    if isinstance(step, Failure):
        return read_error(step.status, {}, msgspec.json.encode(FakePerplexity().error_body(step)))
    return read_error(step.status, {}, step.body)


def test_every_row_of_perplexitys_own_table_is_tested_in_this_file() -> None:
    """A row that no response above reaches first has no effect. OpenAI's rows are tested in their own file."""
    from koo.ai.providers.openai import FAULTS as OPENAI_FAULTS

    reached = {id(FAULTS.find(parsed(step))) for step, _ in ROWS}
    shared = {id(row) for row in OPENAI_FAULTS.rows}
    assert [row for row in FAULTS.rows if id(row) not in reached | shared] == []


def test_every_kind_in_the_table_has_a_sentence_and_a_treatment() -> None:
    kinds = {row.kind for row in FAULTS.rows} | set(BY_STATUS.values())
    assert kinds <= set(TREATMENTS) and kinds <= set(SENTENCES)


def test_an_error_has_status_code_type_and_request_id() -> None:
    refused = TALK.failure(error(400, INVALID, "no", param="temperature", headers={"x-request-id": "req-9"}))
    assert refused.detail == {
        "status": 400, "type": INVALID, "code": None, "request_id": "req-9", "param": "temperature",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "3"}, 3),
        ({"x-ratelimit-reset": "12"}, 12),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, 90),
        ({}, None),
    ],
)
def test_the_wait_is_read_from_the_response(headers: dict[str, str], wait_s: float | None) -> None:
    assert TALK.failure(error(429, "request_rate_limit_exceeded", headers=headers)).retry_after_s == wait_s


# ── responses without an answer ───────────────────────────────────────────────────────────────────────────────────────


USED = b',"usage":{"input_tokens":3,"output_tokens":0}'
RUN = b'{"model":"m","output":[],"status":"%b","error":%b%b}'


@pytest.mark.parametrize(
    ("body", "kind", "billed"),
    [
        (RUN % (b"failed", b'{"message":"x","type":"internal_error"}', b""), Kind.SERVER_ERROR, False),
        (RUN % (b"failed", b'{"message":"x","type":"internal_error"}', USED), Kind.SERVER_ERROR, True),
        (
            RUN % (b"failed", b'{"message":"x","code":"request_rate_limit_exceeded"}', b""),
            Kind.THROTTLED,
            False,
        ),
        (RUN % (b"failed", b'{"message":"x","code":503}', b""), Kind.OVERLOADED, False),
        (RUN % (b"failed", b'{"message":"x","code":"rate_limit_exceeded"}', b""), Kind.THROTTLED, False),
        (
            RUN % (b"failed", b'{"message":"x","type":"invalid_request_error","code":"content_filter"}', b""),
            Kind.CONTENT_POLICY,
            False,
        ),
        (RUN % (b"failed", b"null", b""), Kind.SERVER_ERROR, False),
        (RUN % (b"cancelled", b"null", USED), Kind.SERVER_ERROR, True),
        (RUN % (b"queued", b"null", b""), Kind.SERVER_ERROR, False),
        (b'{"error":{"message":"x","type":"internal_error","code":500}}', Kind.SERVER_ERROR, False),
    ],
)
def test_a_failed_run_with_status_200_is_an_error(body: bytes, kind: Kind, billed: bool) -> None:
    fault = TALK.failure(raw(body))
    assert fault.kind is kind and fault_of(fault).billed is billed


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_yields_content_usage_cost_and_an_end() -> None:
    pieces, fault = TALK.pieces(stream(["Par", "is ", "€😀"], input_tokens=7))
    assert fault is None
    assert [piece.text for piece in pieces if piece.text and not piece.reasoning] == ["Par", "is ", "€😀"]
    assert [piece.final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    last = pieces[-1]
    assert last.usage == Usage(input_tokens=7, output_tokens=4) and last.stop_reason == "completed"
    assert last.cost_usd == Decimal("0.00000175") + Decimal("0.00001") + Decimal("0.0025")
    assert pieces[0].model == SONAR and pieces[0].request_id


def test_thoughts_and_searches_are_separate_from_content() -> None:
    pieces, fault = TALK.pieces(stream(["Paris"], reasoning=["hm", "well"]))
    assert fault is None and text_of(pieces) == "Paris"
    thoughts = [piece.text for piece in pieces if piece.reasoning and piece.text]
    assert thoughts == ["Let me look that up.", "hm", "well"]


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (error(500, "internal_error"), Kind.SERVER_ERROR),
        (error(429, "request_rate_limit_exceeded"), Kind.THROTTLED),
        (error(400, INVALID, TOO_LONG), Kind.CONTEXT_LENGTH),
        (error(500, "of_tomorrow"), Kind.SERVER_ERROR),
    ],
)
def test_an_error_inside_a_stream_is_classified_by_its_type(step: Any, kind: Kind) -> None:
    """If the error is the first event, no work was done; after a search, work was done and is billed."""
    pieces, fault = TALK.pieces(stream(["Par", "is"], error_after=0, error=step))
    assert pieces == [] and fault is not None and fault.kind is kind and fault_of(fault).billed is False
    pieces, fault = TALK.pieces(stream(["Par", "is"], error_after=1, error=step))
    assert text_of(pieces) == "Par"
    assert fault is not None and fault.kind is kind and fault_of(fault).billed is True


def events(*documents: bytes) -> Any:
    return raw(b"".join(b"data: " + document + b"\n\n" for document in documents), content_type=EVENTS)


SEARCHED = b'{"type":"response.reasoning.search_results","results":[]}'
WHOLE = (
    b'{"model":"m","status":"%b","output":[{"type":"message","content":[{"text":"Paris"}]}],"error":null,'
    b'"usage":{"input_tokens":3,"output_tokens":2}}'
)


@pytest.mark.parametrize(
    ("documents", "kind", "billed"),
    [
        ([b'{"type":"error","error":{"message":"x","type":"internal_error"}}'], Kind.SERVER_ERROR, False),
        ([b'{"type":"error","message":"x","code":"server_is_overloaded"}'], Kind.OVERLOADED, False),
        ([SEARCHED, b'{"type":"error","message":"x"}'], Kind.SERVER_ERROR, True),
        ([b'{"type":"response.failed","error":{"message":"x","code":"503"}}'], Kind.OVERLOADED, False),
        (
            [SEARCHED, b'{"type":"response.failed","response":%b}' % (WHOLE % b"failed")],
            Kind.SERVER_ERROR,
            True,
        ),
        (
            [SEARCHED, b'{"type":"response.cancelled","response":%b}' % (WHOLE % b"cancelled")],
            Kind.SERVER_ERROR,
            True,
        ),
        ([b'{"type":"response.completed","response":%b}' % (WHOLE % b"failed")], Kind.SERVER_ERROR, True),
        ([b'{"type":"response.failed"}'], Kind.SERVER_ERROR, False),
        ([b"not json"], Kind.BAD_ANSWER, True),
        ([b'{"type":"response.completed","response":7}'], Kind.TRUNCATED_STREAM, True),
        ([b'{"type":"response.output_text.delta","delta":{}}'], Kind.TRUNCATED_STREAM, True),
        ([b"[" * 50_000], Kind.BAD_ANSWER, True),
        ([b"{}"], Kind.TRUNCATED_STREAM, True),
        ([], Kind.TRUNCATED_STREAM, True),
    ],
)
def test_broken_streams_raise(documents: list[bytes], kind: Kind, billed: bool) -> None:
    pieces, fault = TALK.pieces(events(*documents))
    assert text_of(pieces) == "" and fault is not None
    assert fault.kind is kind and fault_of(fault).billed is billed


@pytest.mark.parametrize("told", [[], [b"Par"], [b"Par", b"is"], [b"Lon"]])
@pytest.mark.parametrize("status", [b"completed", b"incomplete"])
def test_text_missing_in_the_deltas_is_taken_from_the_end(told: list[bytes], status: bytes) -> None:
    """No text is yielded twice. If the end contradicts the deltas, the deltas count."""
    deltas = [b'{"type":"response.output_text.delta","delta":"%b"}' % text for text in told]
    end = b'{"type":"response.%b","response":%b}' % (status, WHOLE % status)
    pieces, fault = TALK.pieces(events(*deltas, end))
    assert fault is None and text_of(pieces) == ("Lon" if told == [b"Lon"] else "Paris")
    assert pieces[-1].final and pieces[-1].usage == Usage(input_tokens=3, output_tokens=2)


def test_text_that_arrives_with_the_end_reaches_the_reader() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakePerplexity) -> None:
        server.script(events(b'{"type":"response.completed","response":%b}' % (WHOLE % b"completed")))
        answers = here.stream(Query(service="svc", prompt="Capital?"))
        assert [chunk.text async for chunk in answers] == ["Paris"]
        assert answers.answer is not None and answers.answer.text == "Paris"
        assert answers.answer.usage == Usage(input_tokens=3, output_tokens=2)

    in_gateway("perplexity", SONAR, FakePerplexity(), test)


def test_an_end_without_a_text_ends_the_stream() -> None:
    delta = b'{"type":"response.output_text.delta","delta":"a"}'
    pieces, fault = TALK.pieces(events(delta, b'{"type":"response.completed"}'))
    assert fault is None and text_of(pieces) == "a" and pieces[-1].final and pieces[-1].usage is None


# ── money ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def price(model: str = SONAR, **options: Any) -> Any:
    return Prices().find(ServiceOptions(name="p", kind="perplexity", api_key="k", **options), model)


def test_the_cost_is_what_perplexity_reports_including_searches() -> None:
    """A price per token would miss the searches and their results."""

    async def test(here: Gateway, budgets: Budgets, server: FakePerplexity) -> None:
        got = await here.query(Query(service="svc", prompt="Capital of France?", max_tokens=100))
        assert got.cost_source == "reported" and got.cost_usd == server.billed_usd > Decimal("0.0025")
        answers = here.stream(Query(service="svc", prompt="Capital of France?", max_tokens=100))
        assert "".join([chunk.text async for chunk in answers]) == "Paris."
        assert answers.answer is not None and answers.answer.cost_source == "reported"
        assert budgets.view("svc").spent_usd == server.billed_usd and budgets.view("svc").held_usd == 0

    in_gateway("perplexity", SONAR, FakePerplexity(search_tokens=3000), test)


def test_without_a_reported_cost_it_is_computed_from_the_table_and_one_search() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakePerplexity) -> None:
        server.script(raw(BODY % b'{"type":"message","content":[{"text":"Paris."}]}'))
        got = await here.query(Query(service="svc", prompt="Capital of France?"))
        assert got.cost_source == "estimate" and got.cost_usd > Decimal("0.0025")

    in_gateway("perplexity", SONAR, FakePerplexity(), test)


@pytest.mark.parametrize("searches", range(SEARCHES_MAX + 1))
@pytest.mark.parametrize("prompt", ["x", "What is the capital of France?", "日本の首都は?" * 1000])
def test_no_bill_exceeds_its_hold(prompt: str, searches: int) -> None:
    """This holds for the largest number of searches, each with full results, and the longest answer."""

    async def test(here: Gateway, budgets: Budgets, server: FakePerplexity) -> None:
        server.script(answer("x" * 4 * 200))
        query = Query(service="svc", prompt=prompt, max_tokens=200, system="Be brief.")
        assert (await here.query(query)).cost_usd == server.billed_usd
        asked = TALK.asking(prompt, max_tokens=200, system="Be brief.")
        bound = price().bound_usd(here.services["svc"].provider.bound_input_tokens(asked), 200)
        assert server.billed_usd <= bound

    server = FakePerplexity(searches=searches, search_tokens=SEARCH_TOKENS_BOUND)
    in_gateway("perplexity", SONAR, server, test)


@settings(deadline=None, max_examples=100 if os.environ.get("CI") else 50)
@given(
    words=st.text(min_size=1), times=st.integers(1, 5000), out=st.integers(1, 500), cached=st.floats(0, 1),
    written=st.booleans(),
)  # fmt: skip
@example(words="日", times=5000, out=500, cached=0.0, written=False)
def test_no_bill_exceeds_its_bound(words: str, times: int, out: int, cached: float, written: bool) -> None:
    """The prompt is read in each pass, with full search results, from the cache or into it."""
    prompt = words * times
    provider, found = PerplexityProvider("svc", HttpClient()), price()
    request = Request(prompt=prompt, model=SONAR, max_tokens=500)
    read = 2 * len(prompt.encode("utf-8", "replace")) + SEARCHES_MAX * SEARCH_TOKENS_BOUND
    part = int(read * cached)
    usage = Usage(
        input_tokens=read - part, cache_read_tokens=0 if written else part,
        cache_write_tokens=part if written else 0, output_tokens=out,
    )  # fmt: skip
    bill = found.cost_usd(usage) + (SEARCHES_MAX - 1) * SEARCH_USD
    assert bill <= found.bound_usd(provider.bound_input_tokens(request), request.max_tokens)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (SONAR, {}),
        # For these the table has no price per search, and an operator's own price covers only tokens.
        ("perplexity/glm-5.3", {}),
        ("openai/gpt-6.1-terra", {"input_price": Decimal(1), "output_price": Decimal(5)}),
    ],
)
def test_every_cost_and_bound_includes_a_search(model: str, options: dict[str, Any]) -> None:
    found = price(model, **options)
    assert found.cost_usd(Usage()) == Decimal("0.0025")
    assert found.bound_usd(0, 0) == SEARCHES_MAX * Decimal("0.0025")


def test_an_account_without_credits_is_not_retried() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakePerplexity) -> None:
        server.script(error(401, "insufficient_quota", "You exceeded your current quota."))
        for _ in range(2):
            with pytest.raises(RateLimited):
                await here.query(Query(service="svc", prompt="Capital?"))
        assert len(server.queries) == 1 and budgets.view("svc").spent_usd == 0

    in_gateway("perplexity", SONAR, FakePerplexity(), test)


def test_a_failed_run_is_retried() -> None:
    async def test(here: Gateway, budgets: Budgets, server: FakePerplexity) -> None:
        server.script(error(200, "internal_error"))
        got = await here.query(Query(service="svc", prompt="Capital?"))
        assert got.attempts == 2 == len(server.queries)

    in_gateway("perplexity", SONAR, FakePerplexity(), test)
