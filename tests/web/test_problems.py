"""An error over HTTP: its status, its body, its `Retry-After`, and what it never repeats."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.errors import (
    AllServicesFailed,
    AuthenticationFailed,
    BudgetExceeded,
    CircuitOpen,
    CommitOutcomeUnknown,
    DatabaseTimeout,
    DatabaseUnavailable,
    Kind,
    KooError,
    PoolSaturated,
    RateLimited,
    ServiceFailed,
    ServiceTimeout,
    UnknownService,
)
from koo.options import LimitOptions
from koo.testing.providers import FakeAnthropic, cut, error, hang, html, nothing, raw
from koo.web import create_app
from koo.web.bounds import BODY_BYTES_MAX
from koo.web.problems import STATUS, Problem, problem_answer, problem_of, respond
from tests.web.serving import Client, Reply, claude, platform, served

SECRET = "the quick brown prompt 4711"
QUERY = "/api/v1/ai/query"


def problem(reply: Reply) -> dict[str, Any]:
    """Return the body of an error, after checking that it has the shape of all errors."""
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.headers["X-Request-ID"]
    assert SECRET not in reply.text
    body: dict[str, Any] = reply.body
    Problem.model_validate(body, strict=True)
    assert body["status"] == reply.status
    assert body["type"] == f"urn:koo:problem:{body['kind']}"
    assert body["title"] and body["detail"] and body["instance"].startswith("/")
    if "retry_after_s" in body:
        assert (
            int(reply.headers["Retry-After"]) - 1 < body["retry_after_s"] <= int(reply.headers["Retry-After"])
        )
    else:
        assert "Retry-After" not in reply.headers
    return body


def with_claude(folder: Path, work: Callable[[Client, FakeAnthropic], Awaitable[None]], **more: Any) -> None:
    async def main() -> None:
        async with (
            FakeAnthropic() as fake,
            served(create_app(platform(folder, claude(fake, **more)))) as client,
        ):
            await work(client, fake)

    asyncio.run(main())


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_has_a_status() -> None:
    assert set(STATUS) == set(Kind)


def test_no_failure_of_a_provider_or_a_database_looks_like_a_denied_caller() -> None:
    assert not set(STATUS.values()) & {400, 401, 402, 403, 407}


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (RateLimited("claude", "koo's limit is reached", 3.2), 429),
        (BudgetExceeded("claude", "the day's budget is used up", 60.0), 429),
        (CircuitOpen("claude", "5 failures in a row", 42.0), 503),
        (AuthenticationFailed("claude", "the provider refused the key"), 503),
        (ServiceFailed("claude", "overloaded", kind=Kind.OVERLOADED), 503),
        (ServiceFailed("claude", "no JSON", kind=Kind.BAD_ANSWER), 502),
        (ServiceTimeout("claude", "no answer in time"), 504),
        (ServiceTimeout("claude", "the deadline passed", kind=Kind.DEADLINE), 504),
        (UnknownService("nobody", "no such service"), 404),
        (DatabaseUnavailable("database", "the breaker is open", 12.0), 503),
        (DatabaseTimeout("database", "the deadline passed"), 504),
        (PoolSaturated("database", "all connections are in use", 0.5), 503),
        (CommitOutcomeUnknown("database", "the connection was lost during COMMIT"), 500),
    ],
)
def test_each_error_has_its_status(failure: KooError, status: int) -> None:
    assert problem_of(failure).status == status


def test_services_with_the_same_status_keep_it_and_others_result_in_503() -> None:
    limited, later = RateLimited("a", "limit", 9.0), RateLimited("b", "limit", 4.0)
    both = problem_of(AllServicesFailed("no service could answer", [limited, later]))
    assert (both.status, both.retry_after_s) == (429, 4.0)
    assert [one.service for one in both.services or []] == ["a", "b"]
    mixed = problem_of(AllServicesFailed("no service could answer", [limited, ServiceTimeout("b", "late")]))
    assert mixed.status == 503


@given(st.floats(min_value=0, max_value=1e7))
def test_a_client_that_waits_for_retry_after_has_waited_long_enough(seconds: float) -> None:
    answer = respond(problem_of(CircuitOpen("claude", "open", seconds)))
    assert seconds <= int(answer.headers["Retry-After"]) < seconds + 1.001


def test_an_infinite_time_is_left_out() -> None:
    """A limit of zero never ends, and JSON has no infinity."""
    answer = respond(problem_of(RateLimited("claude", "koo's limit is 0", float("inf"))))
    assert "retry-after" not in answer.headers
    json.loads(bytes(answer.body))


# ── failures of a provider ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("step", "status", "kind"),
    [
        (error(500, "api_error", message=SECRET), 502, "server_error"),
        (error(529, "overloaded_error"), 503, "overloaded"),
        (error(401, "authentication_error", message=SECRET), 503, "auth"),
        (error(403, "permission_error"), 503, "permission"),
        (error(404, "not_found_error"), 404, "not_found"),
        (error(400, "invalid_request_error", message=SECRET), 422, "invalid_request"),
        (error(429, "rate_limit_error", headers={"retry-after": "7"}), 429, "throttled"),
        (html(200), 502, "bad_answer"),
        (raw(b'{"half'), 502, "bad_answer"),
        (cut(200), 503, "connection"),
        (nothing(), 503, "connection"),
    ],
)
def test_each_failure_of_a_provider_has_a_status(tmp_path: Path, step: Any, status: int, kind: str) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        fake.script(step)
        body = problem(await client.post(QUERY, json={"service": "claude", "prompt": SECRET}))
        assert (body["status"], body["kind"]) == (status, kind), body
        assert (body["service"], body["attempts"]) == ("claude", 1)

    with_claude(tmp_path, work)


def test_a_price_too_large_for_the_ledger_is_refused_and_nothing_is_sent(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        body = problem(await client.post(QUERY, json={"service": "claude", "prompt": SECRET}))
        assert (body["status"], body["kind"]) == (429, "budget_exceeded")
        assert "price" in body["detail"] and not fake.queries

    with_claude(tmp_path, work, output_price=Decimal("1e20"))


def test_a_provider_that_does_not_respond_is_a_504(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        fake.script(hang())
        asked = {"service": "claude", "prompt": SECRET, "timeout_s": 0.2}
        body = problem(await client.post(QUERY, json=asked))
        assert (body["status"], body["kind"]) == (504, "deadline")

    with_claude(tmp_path, work)


def test_the_retry_time_of_a_providers_limit_is_passed_on(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        fake.script(error(429, "rate_limit_error", headers={"retry-after": "7"}))
        asked = {"service": "claude", "prompt": SECRET}
        first = await client.post(QUERY, json=asked)
        assert 0 < problem(first)["retry_after_s"] <= 8.5  # as the provider requested, plus some jitter
        second = await client.post(QUERY, json={**asked, "on_limit": "refuse"})
        assert (second.status, problem(second)["kind"]) == (429, "throttled")
        assert second.body["attempts"] == 0
        assert len(fake.queries) == 1

    with_claude(tmp_path, work)


def test_a_refusal_by_koos_own_limit_or_budget_is_a_429_with_a_retry_time(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        asked = {"service": "claude", "prompt": SECRET}
        assert (await client.post(QUERY, json=asked)).status == 200
        limited = await client.post(QUERY, json=asked)
        assert (limited.status, problem(limited)["kind"]) == (429, "rate_limited")
        assert 0 < int(limited.headers["Retry-After"]) <= 62

    with_claude(tmp_path, work, limits=LimitOptions(per_minute=1))


def test_an_exhausted_budget_is_429_until_midnight(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        refused = await client.post(QUERY, json={"service": "claude", "prompt": SECRET})
        assert (refused.status, problem(refused)["kind"]) == (429, "budget_exceeded")
        assert 0 < int(refused.headers["Retry-After"]) <= 86_400
        assert fake.queries == []

    with_claude(tmp_path, work, daily_budget_usd=Decimal("0.000001"))


# ── mistakes of a caller ──────────────────────────────────────────────────────────────────────────────────────────

WRONG: list[tuple[Any, str]] = [
    ({}, "service: is missing"),
    ({"service": "claude"}, "prompt: is missing"),
    ({"service": "claude", "prompt": 4711}, "prompt:"),
    ({"service": "claude", "prompt": None}, "prompt:"),
    ({"service": "claude", "prompt": [SECRET]}, "prompt:"),
    ({"service": "claude", "prompt": ""}, "the prompt is empty"),
    ({"service": "claude", "prompt": " \n "}, "the prompt is empty"),
    ({"service": "claude", "prompt": "\ud800"}, ""),
    ({"service": "claude", "prompt": SECRET, "tempratur": 1}, "is unknown; did you mean temperature?"),
    ({"service": "claude", "prompt": SECRET, "max_tokens": 0}, "max_tokens:"),
    ({"service": "claude", "prompt": SECRET, "max_tokens": True}, "max_tokens:"),
    ({"service": "claude", "prompt": SECRET, "max_tokens": "many"}, "max_tokens:"),
    ({"service": "claude", "prompt": SECRET, "temperature": float("nan")}, "temperature:"),
    ({"service": "claude", "prompt": SECRET, "temperature": 3}, "temperature:"),
    ({"service": "claude", "prompt": SECRET, "timeout_s": -1}, "timeout_s:"),
    ({"service": "claude", "prompt": SECRET, "on_limit": "pray"}, "on_limit:"),
    ({"service": "claude", "prompt": SECRET, "fallback": "local"}, "fallback:"),
    ({"service": "claude", "prompt": SECRET, SECRET: 1}, "…: is unknown"),
    ([SECRET], ""),
    (SECRET, ""),
    (None, ""),
]


def test_an_invalid_request_is_a_422_that_names_the_field(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        for asked, detail in WRONG:
            reply = await client.post(QUERY, json=asked)
            assert reply.status == 422, (asked, reply.text)
            assert detail in problem(reply)["detail"], (asked, reply.text)
        assert fake.queries == []

    with_claude(tmp_path, work)


BROKEN: list[tuple[bytes, str]] = [
    (b"", "body: is missing"),
    (b"{", "the body: is not JSON"),
    (b'{"prompt": "' + SECRET.encode(), "the body: is not JSON"),
    (b'["claude"]', "the body: must be a JSON object"),
    (b'{"service": "claude", "prompt": "x", "metadata": []}', "metadata: must be a JSON object"),
    (b"\xff\xfe\x00", "cannot be read"),
    (b"[" * 100_000, "cannot be read"),
    (b'{"service":' * 50_000, "cannot be read"),
    (b'{"service": "claude", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "cannot be read"),
]


@pytest.mark.parametrize(
    ("body", "detail"),
    BROKEN,
    ids=["none", "half", "string", "no object", "field", "bytes", "list", "dict", "number"],
)
def test_a_body_that_cannot_be_read_is_a_422(tmp_path: Path, body: bytes, detail: str) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        reply = await client.post(QUERY, data=body, headers={"Content-Type": "application/json"})
        assert reply.status == 422
        assert detail in problem(reply)["detail"]

    with_claude(tmp_path, work)


def test_the_problem_for_json_without_its_content_type_says_how_to_send_it(tmp_path: Path) -> None:
    """`curl -d` without a header declares it as a form."""

    async def work(client: Client, fake: FakeAnthropic) -> None:
        body = json.dumps({"service": "claude", "prompt": SECRET}).encode()
        for media_type in ("application/x-www-form-urlencoded", "text/plain"):
            reply = await client.post(QUERY, data=body, headers={"Content-Type": media_type})
            assert reply.status == 422
            assert "Content-Type: application/json" in problem(reply)["detail"]

    with_claude(tmp_path, work)


def test_a_compressed_body_is_refused_as_such(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        body = gzip.compress(json.dumps({"service": "claude", "prompt": SECRET}).encode())
        reply = await client.post(QUERY, data=body, headers=headers)
        assert reply.status == 422 and "compressed" in problem(reply)["detail"]
        assert (await client.post("/api/v1/ai/services/reset-all-errors", headers=headers)).status == 200

    with_claude(tmp_path, work)


def test_ten_megabytes_are_a_clear_mistake_and_seventeen_are_not_even_read(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        headers = {"Content-Type": "application/json"}
        long = json.dumps({"service": "claude", "prompt": "a" * (10 * 2**20)}).encode()
        reply = await client.post(QUERY, data=io.BytesIO(long), headers=headers)
        assert (reply.status, problem(reply)["kind"]) == (422, "invalid_request")
        assert "longer than" in reply.body["detail"]
        reply = await client.post(QUERY, data=io.BytesIO(b"x" * (BODY_BYTES_MAX + 1)), headers=headers)
        assert (reply.status, problem(reply)["kind"]) == (413, "too_large")
        assert fake.queries == []

    with_claude(tmp_path, work)


def test_a_body_without_a_length_is_measured_as_it_arrives(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        async def endless() -> Any:
            for _ in range(20):
                yield b"x" * 2**20

        reply = await client.post(QUERY, data=endless(), headers={"Content-Type": "application/json"})
        assert (reply.status, problem(reply)["kind"]) == (413, "too_large")

    with_claude(tmp_path, work)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/v1/ai/services/nobody/health", 404, "unknown_service"),
        ("GET", "/api/v1/monitoring/ai-services/nobody/metrics", 404, "unknown_service"),
        ("POST", "/api/v1/ai/services/nobody/reset-errors", 404, "unknown_service"),
        ("POST", "/api/v1/ai/services/health-check?service=nobody", 404, "unknown_service"),
        ("GET", QUERY, 405, "method_not_allowed"),
        ("DELETE", "/api/v1/monitoring/health", 405, "method_not_allowed"),
    ],
)
def test_an_unknown_path_is_a_problem_too(
    tmp_path: Path, method: str, path: str, status: int, kind: str
) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        reply = await client.ask(method, path)
        assert (reply.status, problem(reply)["kind"]) == (status, kind)
        if kind == "unknown_service":
            assert "claude" in reply.body["detail"]  # the known ones
        if status == 405:
            assert reply.headers["Allow"]

    with_claude(tmp_path, work)


def test_an_unknown_service_is_a_404_for_a_query(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        reply = await client.post(QUERY, json={"service": "nobody", "prompt": SECRET})
        assert (reply.status, problem(reply)["kind"]) == (404, "unknown_service")

    with_claude(tmp_path, work)


def test_an_internal_error_is_a_500_without_details(tmp_path: Path, caplog: Any) -> None:
    async def main() -> None:
        app = create_app(platform(tmp_path))

        @app.get("/broken")
        async def broken() -> None:
            raise RuntimeError(f"password=hunter2 {SECRET}")

        async with served(app) as client:
            reply = await client.get("/broken")
            assert (reply.status, problem(reply)["kind"]) == (500, "internal_error")
            assert "hunter2" not in reply.text and "Traceback" not in reply.text
            assert (await client.get("/livez")).status == 200
        assert "GET /broken failed" in caplog.text

    asyncio.run(main())


def test_an_error_of_koo_in_any_route_becomes_its_problem(tmp_path: Path) -> None:
    async def main() -> None:
        app = create_app(platform(tmp_path))

        @app.get("/orders")
        async def orders() -> None:
            raise PoolSaturated("database", "all connections are in use", 0.4)

        async with served(app) as client:
            reply = await client.get("/orders")
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            assert problem(reply)["kind"] == "saturated"

    asyncio.run(main())


# ── bodies with many errors ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (QUERY, {f"{SECRET}{n}": 1 for n in range(20_000)}),
        (QUERY, {"service": "claude", "prompt": SECRET, "metadata": {str(n): 1 for n in range(20_000)}}),
        ("/api/v1/ai/batch-query", {"queries": [{str(n): 1 for n in range(1000)}] * 100}),
        ("/api/v1/ai/batch-query", {"queries": [{"service": 1, "prompt": 1, "tag": 1}] * 100}),
        ("/api/v1/monitoring/database/reset-circuit-breaker", {str(n): 1 for n in range(20_000)}),
    ],
)
def test_a_body_with_a_thousand_errors_gets_one_short_response(tmp_path: Path, path: str, body: Any) -> None:
    """Finding the closest name for each of half a million would block the server for a minute."""

    async def work(client: Client, fake: FakeAnthropic) -> None:
        reply = await client.post(path, json=body)
        assert problem(reply)["kind"] == "invalid_request"
        assert 1 <= len(reply.body["errors"]) <= 20 and len(reply.content) < 10_000
        assert not fake.queries

    with_claude(tmp_path, work)


@pytest.mark.parametrize("media_type", ["text/json", "application/jsonp", "text/plain", "x", ""])
def test_the_problem_for_a_body_of_another_type_names_the_expected_type(
    tmp_path: Path, media_type: str
) -> None:
    async def work(client: Client, fake: FakeAnthropic) -> None:
        asked = json.dumps({"service": "claude", "prompt": SECRET})
        reply = await client.post(QUERY, data=asked, headers={"Content-Type": media_type})
        assert "Content-Type: application/json" in problem(reply)["detail"]

    with_claude(tmp_path, work)


# ── in any framework ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", Kind)
def test_each_error_of_koo_is_a_response_for_any_framework(kind: Kind) -> None:
    """Body, status and headers, in the order of Flask; the same as koo's own routes send."""
    failure = KooError("claude", "it did not work", 2.2, kind=kind)
    body, status, headers = problem_answer(failure, "/ask", "abc")
    own = respond(problem_of(failure, "/ask", "abc"))
    assert (body, status) == (own.body, own.status_code)
    assert headers == {"Content-Type": "application/problem+json", "Retry-After": "3"}
    assert own.headers["Content-Type"] == headers["Content-Type"]
    assert json.loads(body)["instance"] == "/ask" and json.loads(body)["request_id"] == "abc"


def test_an_unknown_time_is_not_a_header() -> None:
    answer = problem_answer(
        AllServicesFailed("all failed", [CircuitOpen("a", "open"), CircuitOpen("b", "open")])
    )
    assert (answer.status, answer.headers) == (503, {"Content-Type": "application/problem+json"})
    assert [one["service"] for one in json.loads(answer.body)["services"]] == ["a", "b"]
