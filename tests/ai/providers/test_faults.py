"""The kind of each error of each provider: all rows of the vendors' tables, over real sockets.

A row here is a response of the fake server and the kind that the adapter must report, in `complete` and in `stream`.
The consequences of a kind are defined by `koo.policies.treatment` and not tested here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from koo.ai.providers.anthropic import FAULTS as ANTHROPIC_FAULTS
from koo.ai.providers.anthropic import AnthropicProvider
from koo.ai.providers.base import Request
from koo.ai.providers.faults import (
    BY_STATUS,
    SENTENCES,
    ParsedError,
    kind_of_status,
    until_next_month,
    until_stated,
)
from koo.ai.providers.openai import FAULTS as OPENAI_FAULTS
from koo.ai.providers.openai import OpenAIProvider
from koo.ai.providers.openai_compatible import FAULTS as COMPATIBLE_FAULTS
from koo.ai.providers.openai_compatible import OpenAICompatibleProvider
from koo.errors import ExternalServiceError, Kind
from koo.http.client import HttpClient
from koo.policies.treatment import TREATMENTS, fault_of
from koo.testing.clock import StandingClock
from koo.testing.providers import FakeAnthropic, FakeCompatible, FakeOpenAI, FakeProvider, error, html, raw

WALL_S = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
INVALID = "invalid_request_error"
MODELS = {"anthropic": "claude-sonnet-5-5", "openai": "gpt-6.1-terra"}
QUESTION = "What is the capital of France?"


def request_to(vendor: str) -> Request:
    return Request(prompt=QUESTION, model=MODELS.get(vendor, "llama"), max_tokens=100)


@asynccontextmanager
async def talking(vendor: str) -> AsyncIterator[tuple[Any, FakeProvider]]:
    """An adapter and the fake that it talks to; `vendor` may be a dialect of the compatible servers."""
    server: FakeProvider
    adapter: Any
    if vendor == "anthropic":
        server, adapter = FakeAnthropic(), AnthropicProvider
    elif vendor == "openai":
        server, adapter = FakeOpenAI(), OpenAIProvider
    else:
        server, adapter = FakeCompatible(vendor, key="test-key"), OpenAICompatibleProvider  # type: ignore[arg-type]
    http = HttpClient()
    async with server:
        try:
            yield (
                adapter(
                    "svc", http, base_url=server.base_url, api_key="test-key", clock=StandingClock(WALL_S)
                ),
                server,
            )
        finally:
            await http.close()


async def drain(provider: Any, vendor: str) -> None:
    async for _ in provider.stream(request_to(vendor)):
        pass


def ask(vendor: str, step: Any, *, streamed: bool = False) -> ExternalServiceError:
    """The error for one response of the server."""

    async def main() -> ExternalServiceError:
        async with talking(vendor) as (provider, server):
            server.script(step)
            with pytest.raises(ExternalServiceError) as caught:
                await (drain(provider, vendor) if streamed else provider.complete(request_to(vendor)))
            assert len(server.queries) == 1
            return caught.value

    return asyncio.run(main())


LIMITS_REACHED = (
    "You have reached your specified API usage limits. You will regain access on 2026-11-24 at 06:00 UTC."
)
WORKSPACE_LIMITS = "You have reached your specified workspace API usage limits. Access resumes on 2026-12-01."
CREDITS = {"metadata": {"limit_source": "openrouter_credits"}}
IN_FLIGHT = {"metadata": {"reason": "in_flight_budget_exhausted"}}
IN_FLIGHT_TOO = {"metadata": {"limit_source": "openrouter_in_flight_budget"}}
TOO_HEAVY = {"metadata": {"reason": "weight_exceeds_budget", "limit_source": "openrouter_credits"}}
KEY_LIMIT = {"metadata": {"limit_source": "openrouter_key_limit", "resets_at": "2026-11-24T00:00:00Z"}}
FLAGGED = {"metadata": {"reasons": ["violence"], "flagged_input": QUESTION}}

ROWS: list[tuple[str, Any, Kind]] = [
    # 5a. All vendors.
    ("anthropic", html(502), Kind.SERVER_ERROR),
    ("anthropic", html(503), Kind.OVERLOADED),
    ("anthropic", html(520), Kind.SERVER_ERROR),
    ("anthropic", html(413), Kind.TOO_LARGE),
    ("anthropic", html(403), Kind.INVALID_REQUEST),
    ("anthropic", html(429), Kind.THROTTLED),
    ("anthropic", raw(b"", 307), Kind.INVALID_REQUEST),
    ("anthropic", raw(b"", 405), Kind.INVALID_REQUEST),
    ("anthropic", raw(b"", 415), Kind.INVALID_REQUEST),
    ("anthropic", raw(b"", 425), Kind.CONFLICT),
    ("anthropic", html(499), Kind.CONFLICT),
    ("anthropic", raw(b"", 422), Kind.INVALID_REQUEST),
    ("anthropic", raw(b"{", 500), Kind.SERVER_ERROR),
    ("anthropic", raw(b"[" * 100_000, 500), Kind.SERVER_ERROR),
    ("anthropic", raw(b'{"error": 7}', 500), Kind.SERVER_ERROR),
    ("openai", html(502), Kind.SERVER_ERROR),
    ("openai", html(524), Kind.SERVER_ERROR),
    ("openai", html(403), Kind.INVALID_REQUEST),
    ("openai", raw(b"[" * 100_000, 500), Kind.SERVER_ERROR),
    ("openai", raw(b'{"error": null}', 500), Kind.SERVER_ERROR),
    # 5b. Anthropic.
    ("anthropic", error(400, INVALID, "messages: at least one message is required"), Kind.INVALID_REQUEST),
    (
        "anthropic",
        error(400, INVALID, "prompt is too long: 210000 tokens > 200000 maximum"),
        Kind.CONTEXT_LENGTH,
    ),
    (
        "anthropic",
        error(400, INVALID, "input length and `max_tokens` exceed context limit: 9 > 2"),
        Kind.CONTEXT_LENGTH,
    ),
    (
        "anthropic",
        error(400, INVALID, "Your credit balance is too low to access the Anthropic API."),
        Kind.BILLING,
    ),
    ("anthropic", error(400, INVALID, LIMITS_REACHED), Kind.QUOTA),
    ("anthropic", error(400, INVALID, WORKSPACE_LIMITS), Kind.QUOTA),
    ("anthropic", error(400, INVALID, code="organization_on_hold"), Kind.BILLING),
    ("anthropic", error(400, INVALID, code="request_body_timeout"), Kind.TIMEOUT),
    ("anthropic", error(401, "authentication_error", "invalid x-api-key"), Kind.AUTH),
    ("anthropic", error(402, "billing_error"), Kind.BILLING),
    ("anthropic", error(402, "billing_error", code="linked_organization_spend_limit_reached"), Kind.BILLING),
    ("anthropic", error(402, "billing_error", code="linked_organization_billing_unavailable"), Kind.BILLING),
    ("anthropic", error(403, "permission_error"), Kind.PERMISSION),
    ("anthropic", error(404, "not_found_error", "model: claude-x"), Kind.NOT_FOUND),
    ("anthropic", error(409, "conflict_error"), Kind.CONFLICT),
    ("anthropic", error(413, "request_too_large"), Kind.TOO_LARGE),
    ("anthropic", error(429, "rate_limit_error", headers={"retry-after": "3"}), Kind.THROTTLED),
    ("anthropic", error(429, "rate_limit_error", code="ramp_limit_exceeded"), Kind.THROTTLED),
    ("anthropic", error(429, "rate_limit_error", code="enforced_spend_limit_reached"), Kind.QUOTA),
    ("anthropic", error(429, "rate_limit_error", code="contract_spend_limit_reached"), Kind.QUOTA),
    ("anthropic", error(500, "api_error"), Kind.SERVER_ERROR),
    ("anthropic", error(504, "timeout_error"), Kind.TIMEOUT),
    ("anthropic", error(529, "overloaded_error"), Kind.OVERLOADED),
    ("anthropic", error(400, "an_error_of_tomorrow"), Kind.INVALID_REQUEST),
    ("anthropic", error(599, "an_error_of_tomorrow"), Kind.SERVER_ERROR),
    # A sentence under `error` with status 200, and its names next to it.
    ("ollama", raw(b'{"error": "`inputs` is empty", "error_type": "validation"}'), Kind.INVALID_REQUEST),
    ("ollama", raw(b'{"code": "rate_limit_exceeded", "error": "too fast"}'), Kind.THROTTLED),
    ("ollama", raw(b'{"error": "failed", "status_code": 429}'), Kind.THROTTLED),
    # In another charset: a gateway in .NET.
    (
        "compatible",
        raw('{"error": {"code": "context_length_exceeded"}}'.encode("utf-16"), status=400),
        Kind.CONTEXT_LENGTH,
    ),
    # 5c. OpenAI.
    ("openai", error(400, INVALID, code="context_length_exceeded"), Kind.CONTEXT_LENGTH),
    (
        "openai",
        error(400, INVALID, "Your input exceeds the context window of this model."),
        Kind.CONTEXT_LENGTH,
    ),
    ("openai", error(400, INVALID, code="content_filter"), Kind.CONTENT_POLICY),
    ("openai", error(400, INVALID, code="cyber_policy"), Kind.CONTENT_POLICY),
    ("openai", error(400, INVALID, code="misalignment_policy_violation"), Kind.CONTENT_POLICY),
    ("openai", error(400, INVALID, code="unknown_parameter", param="temperature"), Kind.INVALID_REQUEST),
    ("openai", error(401, INVALID, code="invalid_api_key"), Kind.AUTH),
    ("openai", error(401, INVALID, "Your IP address is not authorized"), Kind.AUTH),
    ("openai", error(401, INVALID, "You must be a member of an organization to use the API"), Kind.AUTH),
    ("openai", error(403, "request_forbidden", code="unsupported_country_region_territory"), Kind.PERMISSION),
    ("openai", error(403, INVALID, "You have insufficient permissions"), Kind.PERMISSION),
    ("openai", error(404, INVALID, code="model_not_found"), Kind.NOT_FOUND),
    ("openai", error(404, INVALID, "Invalid URL"), Kind.NOT_FOUND),
    ("openai", error(408, "request_timeout"), Kind.TIMEOUT),
    ("openai", error(409, INVALID), Kind.CONFLICT),
    ("openai", error(429, "requests", code="rate_limit_exceeded"), Kind.THROTTLED),
    ("openai", error(429, "rate_limit_error", code="slow_down"), Kind.THROTTLED),
    ("openai", error(503, "service_unavailable_error", code="slow_down"), Kind.THROTTLED),
    ("openai", error(429, "insufficient_quota", code="insufficient_quota"), Kind.QUOTA),
    ("openai", error(429, "insufficient_quota", code="credit_balance_exhausted"), Kind.BILLING),
    ("openai", error(429, "insufficient_quota", code="organization_spend_limit_exceeded"), Kind.QUOTA),
    ("openai", error(429, "insufficient_quota", code="project_spend_limit_exceeded"), Kind.QUOTA),
    ("openai", error(429, "insufficient_quota", code="organization_usage_limit_exceeded"), Kind.QUOTA),
    ("openai", error(429, "billing_not_active", code="billing_not_active"), Kind.BILLING),
    ("openai", error(500, "server_error"), Kind.SERVER_ERROR),
    ("openai", error(503, "service_unavailable_error", code="server_is_overloaded"), Kind.OVERLOADED),
    ("openai", error(503, "service_unavailable_error", code="server_overloaded"), Kind.OVERLOADED),
    ("openai", error(429, "flex_unavailable"), Kind.THROTTLED),
    # 5f. Servers that imitate OpenAI.
    ("vllm", error(400, message="This model's maximum context length is 9 tokens."), Kind.CONTEXT_LENGTH),
    ("vllm", error(400, message="The prompt is longer than the model's context length"), Kind.CONTEXT_LENGTH),
    ("vllm", error(400, message="Unknown field"), Kind.INVALID_REQUEST),
    ("vllm", error(404, "NotFoundError", "The model `x` does not exist."), Kind.NOT_FOUND),
    ("vllm", error(500, "InternalServerError"), Kind.SERVER_ERROR),
    ("vllm_old", error(400, message="This model's maximum context length is 9."), Kind.CONTEXT_LENGTH),
    ("vllm_old", error(400, message="something else"), Kind.INVALID_REQUEST),
    ("llama.cpp", error(400, "exceed_context_size_error", extra={"n_ctx": 4}), Kind.CONTEXT_LENGTH),
    ("llama.cpp", error(503, "unavailable_error", "Loading model"), Kind.OVERLOADED),
    ("llama.cpp", error(500, "server_error"), Kind.SERVER_ERROR),
    ("ollama", error(404, message="model 'x' not found"), Kind.NOT_FOUND),
    ("ollama", error(401, message="unauthorized", extra={"signin_url": "https://x"}), Kind.AUTH),
    ("ollama", error(400, message="input tokens exceed the configured limit"), Kind.CONTEXT_LENGTH),
    ("openai", error(400, INVALID, code="content_filter"), Kind.CONTENT_POLICY),
    ("openrouter", error(402, extra=CREDITS), Kind.BILLING),
    ("openrouter", error(402, message="Insufficient credits"), Kind.BILLING),
    ("openrouter", error(402, extra=IN_FLIGHT, headers={"retry-after": "2"}), Kind.THROTTLED),
    ("openrouter", error(402, extra=IN_FLIGHT_TOO), Kind.THROTTLED),
    ("openrouter", error(402, extra=TOO_HEAVY), Kind.TOO_LARGE),
    ("openrouter", error(403, extra=KEY_LIMIT), Kind.QUOTA),
    ("openrouter", error(403, extra=FLAGGED), Kind.CONTENT_POLICY),
    ("openrouter", error(408), Kind.TIMEOUT),
    ("openrouter", error(429), Kind.THROTTLED),
    ("openrouter", error(502), Kind.SERVER_ERROR),
    ("openrouter", error(503), Kind.OVERLOADED),
    ("openai", error(429, message="INSUFFICIENT QUOTA: too many concurrent requests"), Kind.THROTTLED),
    # Messages never contradict the status: these quote prompts.
    ("anthropic", error(500, "api_error", "while reading: 'prompt is too long'"), Kind.SERVER_ERROR),
    (
        "anthropic",
        error(400, INVALID, "cannot parse: 'Your credit balance is too low'"),
        Kind.INVALID_REQUEST,
    ),
    (
        "anthropic",
        error(529, "overloaded_error", "You have reached your specified API usage limits"),
        Kind.OVERLOADED,
    ),
    ("vllm", error(500, "InternalServerError", "This model's maximum context length is"), Kind.SERVER_ERROR),
    ("openai", error(400, INVALID, "cannot read 'error 429, insufficient_quota'"), Kind.INVALID_REQUEST),
    # Words that are also used for something else.
    ("openai", error(400, INVALID, "Invalid 'input[3].id': string too long. Got 65."), Kind.INVALID_REQUEST),
    ("vllm", error(400, message="Invalid model input: top_k is negative"), Kind.INVALID_REQUEST),
    (
        "vllm",
        error(403, "permission_denied", "The API key does not have the required scope."),
        Kind.PERMISSION,
    ),
    ("vllm", error(400, message="Invalid model: x"), Kind.NOT_FOUND),
    ("openrouter", error(502, message="Upstream error: invalid model response"), Kind.SERVER_ERROR),
    ("vllm", error(400, message="The model stopped: the grammar is invalid"), Kind.INVALID_REQUEST),
    ("ollama", error(400, message="model runner has unexpectedly stopped"), Kind.SERVER_ERROR),
    ("vllm", error(400, message="Thinking budget of 9 must not be over 8"), Kind.INVALID_REQUEST),
]


@pytest.mark.parametrize(("vendor", "step", "kind"), ROWS)
def test_each_row_is_classified_over_a_real_socket(vendor: str, step: Any, kind: Kind) -> None:
    error = ask(vendor, step)
    assert error.kind is kind
    assert type(error) is TREATMENTS[kind].error
    # A refusal is never billed, so nothing is booked for it.
    assert fault_of(error).billed is False
    assert len(error.reason) <= 300 and error.service == "svc"


@pytest.mark.parametrize(("vendor", "step", "kind"), ROWS)
def test_a_refused_stream_is_classified_like_a_refused_call(vendor: str, step: Any, kind: Kind) -> None:
    assert ask(vendor, step, streamed=True).kind is kind


def test_an_error_has_status_code_type_and_request_id() -> None:
    """The facts are short identifiers, in `detail` and in the sentence."""
    refused = ask(
        "openai",
        error(
            400,
            INVALID,
            "no",
            code="unknown_parameter",
            param="temperature",
            headers={"x-request-id": "req_9"},
        ),
    )
    assert refused.detail == {
        "status": 400, "type": INVALID, "code": "unknown_parameter", "request_id": "req_9", "param": "temperature",
    }  # fmt: skip
    assert str(refused) == (
        "svc: it does not accept the request (status 400, unknown_parameter, invalid_request_error, "
        "parameter temperature, request req_9)"
    )
    refused = ask("anthropic", error(400, INVALID, "`temperature` is deprecated for this model."))
    assert refused.detail is not None and refused.detail["param"] == "temperature"


@pytest.mark.parametrize(
    ("status", "type_", "said", "repeatable"),
    [
        (500, "api_error", "false", False),
        (500, "api_error", "perhaps", True),
        (422, "something_new", "true", True),
        (401, "authentication_error", "true", False),
        (400, "billing_error", "true", False),
    ],
)
def test_x_should_retry_wins_unless_a_retry_cannot_help(
    status: int, type_: str, said: str, repeatable: bool
) -> None:
    refused = ask("anthropic", error(status, type_, headers={"x-should-retry": said}))
    assert fault_of(refused).repeatable is repeatable


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 405])
def test_a_redirect_or_a_refused_method_points_to_the_address(status: int) -> None:
    assert "check BASE_URL" in ask("openai", html(status)).reason


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Developer instruction is not enabled for models/gemma-3-27b-it",
        "Conversation roles must alternate user/assistant/user/assistant/...",
    ],
)
def test_a_model_without_a_system_role_is_named_as_the_cause(message: str) -> None:
    assert "put them into the prompt" in ask("ollama", error(400, message=message)).reason


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Quota exceeded for requests per minute", Kind.THROTTLED),
        ("Your token quota for this minute has been exceeded", Kind.THROTTLED),
        ("Quota of 60 RPM exceeded", Kind.THROTTLED),
        ("You have exceeded the quota of 60 RPM and 100 RPD", Kind.QUOTA),
        ("Quota exceeded for requests_per_minute and requests_per_day", Kind.QUOTA),
        ("You have reached your daily limit of 5 requests per minute", Kind.QUOTA),
    ],
)
def test_a_quota_that_resets_within_a_minute_is_a_rate_limit(message: str, kind: Kind) -> None:
    assert ask("ollama", error(429, message=message)).kind is kind


@pytest.mark.parametrize(
    ("vendor", "step", "wait_s"),
    [
        ("anthropic", error(429, "rate_limit_error", headers={"retry-after": "3"}), 3),
        ("anthropic", error(529, "overloaded_error", headers={"retry-after-ms": "250"}), 0.25),
        ("anthropic", error(429, "rate_limit_error", code="enforced_spend_limit_reached"), 7.5 * 86_400),
        ("anthropic", error(400, INVALID, LIMITS_REACHED), 18 * 3600),
        ("openai", error(429, "tokens", "Please try again in 94ms.", code="rate_limit_exceeded"), 0.094),
        ("openrouter", error(403, extra=KEY_LIMIT), 12 * 3600),
        ("openrouter", error(402, extra=IN_FLIGHT_TOO, headers={"retry-after": "2"}), 2),
        # Limits that were not exceeded say nothing about the wait.
        ("openai", error(429, "insufficient_quota", code="insufficient_quota"), None),
        ("openai", error(400, INVALID), None),
        ("openai", error(429, "tokens", code="rate_limit_exceeded"), 0.012),
        ("ollama", error(500), None),
    ],
)
def test_the_wait_is_read_from_the_response(vendor: str, step: Any, wait_s: float | None) -> None:
    assert ask(vendor, step).retry_after_s == (None if wait_s is None else pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("now", "days"),
    [
        ("2026-11-23T12:00", 7.5),
        ("2026-12-31T23:00", 1 / 24),
        ("2028-02-01T00:00", 29),
        ("2026-12-01T00:00", 31),
    ],
)
def test_a_monthly_limit_ends_at_the_end_of_the_month(now: str, days: float) -> None:
    wall_s = datetime.fromisoformat(now + "+00:00").timestamp()
    assert until_next_month(ParsedError(status=429), wall_s) == pytest.approx(days * 86_400)


@pytest.mark.parametrize("text", ["", "on 2026-99-99 at 00:00", "on 2020-01-01", "tomorrow"])
def test_an_impossible_date_is_ignored(text: str) -> None:
    assert until_stated(ParsedError(status=400, message=text), WALL_S) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, "server_error"),
        (302, "invalid_request"),
        (418, "invalid_request"),
        (501, "server_error"),
        (999, "unknown"),
    ],
)
def test_every_status_has_a_kind(status: int, kind: str) -> None:
    assert kind_of_status(status) == kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error_code": 18, "error_msg": "Open api qps request limit reached"}', Kind.THROTTLED),
        (b'{"errcode": 40001, "errmsg": "invalid credential, access_token is invalid"}', Kind.AUTH),
        (b'{"code": "quota_exceeded", "msg": "no calls left"}', Kind.QUOTA),
        (b'{"code": 0, "message": "success", "data": null}', Kind.BAD_ANSWER),
        (b'{"code": "200", "msg": "OK"}', Kind.BAD_ANSWER),
        (b'{"code": 7}', Kind.BAD_ANSWER),
    ],
)
def test_an_error_with_status_200_has_a_message_and_a_code_that_is_not_a_good_one(
    body: bytes, kind: Kind
) -> None:
    assert ask("ollama", raw(body)).kind is kind


def test_every_kind_in_a_table_has_a_sentence_and_a_treatment() -> None:
    tables = (ANTHROPIC_FAULTS, OPENAI_FAULTS, COMPATIBLE_FAULTS)
    kinds = {row.kind for table in tables for row in table.rows} | set(BY_STATUS.values())
    assert kinds <= set(TREATMENTS) and kinds <= set(SENTENCES)


def test_every_row_of_the_tables_is_tested_in_this_file() -> None:
    """A row that no response above reaches first has no effect."""
    reached = set()
    for vendor, step, _ in ROWS:
        table = {"anthropic": ANTHROPIC_FAULTS, "openai": OPENAI_FAULTS}.get(vendor, COMPATIBLE_FAULTS)
        refused = parsed(vendor, step)
        row = table.find(refused)
        reached |= {(row.kind, row.name, row.begins, row.says, row.status, row.shaped)}
    missing = [
        row
        for table in (ANTHROPIC_FAULTS, OPENAI_FAULTS, COMPATIBLE_FAULTS)
        for row in table.rows
        if (row.kind, row.name, row.begins, row.says, row.status, row.shaped) not in reached
    ]
    assert missing == []


def parsed(vendor: str, step: Any) -> ParsedError:
    """The result of the adapter's error reader for the fake's response, without a socket."""
    import msgspec

    from koo.ai.providers.openai_errors import read_error
    from koo.testing.providers import Failure

    if not isinstance(step, Failure):
        body, status = step.body, step.status
    else:
        fakes: dict[str, FakeProvider] = {"anthropic": FakeAnthropic(), "openai": FakeOpenAI()}
        fake = fakes.get(vendor) or FakeCompatible(vendor)  # type: ignore[arg-type]
        body, status = msgspec.json.encode(fake.error_body(step)), step.status
    return read_error(status, {}, body)
