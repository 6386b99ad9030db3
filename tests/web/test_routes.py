"""Each promised path: its method, its status, its keys and their types, and its errors."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from koo.ai.types import Query
from koo.database.probe import ProbeDatabase
from koo.errors import DatabaseUnavailable, ExternalServiceError
from koo.monitoring import (
    alert_shapes,
    fleet_shapes,
    history_shapes,
    incident_shapes,
    live_shapes,
    notice_shapes,
    shapes,
    spend_shapes,
)
from koo.monitoring.vitals import Look
from koo.options import DatabaseOptions, LimitOptions, ServiceOptions
from koo.platform import LOOK_AGE_MAX_S, Platform
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, answer, error
from koo.testing.skipping import SkippingClock
from koo.web import answers, bodies, create_app, examples
from tests.web.exact import check_exactly
from tests.web.serving import Client, claude, options, platform, served

NO_KEY = ServiceOptions(name="openai", kind="openai", model="gpt-6.1-terra")

Work = Callable[[Client, FakeAnthropic, Platform], Awaitable[None]]


def with_server(folder: Path, work: Work, **more: Any) -> None:
    """Run `work` against a server with `claude` (a fake provider) and `openai` (without a key)."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            koo = platform(folder, claude(fake), NO_KEY, **more)
            async with served(create_app(koo)) as client:
                await work(client, fake, koo)

    asyncio.run(main())


GETS: dict[str, tuple[Any, set[str]]] = {
    "/api/v1/monitoring/health": (
        shapes.SystemHealth,
        {"overall_health", "database", "ai_services", "timestamp"},
    ),
    "/api/v1/monitoring/dashboard": (
        shapes.Dashboard,
        {"summary", "database", "ai_services", "alerts", "timestamp"},
    ),
    "/api/v1/monitoring/alerts": (shapes.SystemAlerts, {"alerts", "alert_count", "timestamp"}),
    "/api/v1/monitoring/alerts/deliveries": (
        notice_shapes.AlertDeliveries,
        {"configured", "note", "store", "channels", "deliveries", "untold", "timestamp"},
    ),
    "/api/v1/monitoring/alerts/history": (
        alert_shapes.AlertHistory,
        {"episodes", "next_cursor", "timestamp"},
    ),
    "/api/v1/monitoring/alerts/silences": (alert_shapes.Silences, {"silences", "timestamp"}),
    "/api/v1/monitoring/history": (
        history_shapes.History,
        {"since", "until", "step_s", "scope", "series", "marks", "trouble", "timestamp"},
    ),
    "/api/v1/monitoring/saved": (
        live_shapes.Saved,
        {"since", "scope", "refused", "repeated", "fallen_back", "over_budget", "not_spent", "components"},
    ),
    "/api/v1/monitoring/incidents": (incident_shapes.Incidents, {"incidents", "trouble", "timestamp"}),
    "/api/v1/monitoring/breakers": (answers.Breakers, {"breakers", "timestamp"}),
    "/api/v1/monitoring/audit": (shapes.AuditLog, {"entries", "timestamp"}),
    "/api/v1/monitoring/database": (answers.DatabaseMonitoring, {"database_monitoring", "timestamp"}),
    "/api/v1/monitoring/database/pool-metrics": (answers.PoolMetrics, {"pool_metrics", "timestamp"}),
    "/api/v1/monitoring/ai-services": (answers.ServicesMonitoring, {"ai_services_monitoring", "timestamp"}),
    "/api/v1/monitoring/ai-services/claude/metrics": (
        answers.ServiceMonitoring,
        {"service_metrics", "timestamp"},
    ),
    "/api/v1/ai/services/health": (
        shapes.ServicesHealth,
        {"overall_health", "healthy_services", "total_services", "services", "timestamp"},
    ),
    "/api/v1/ai/services/claude/health": (
        shapes.ServiceHealth,
        {"service_name", "state", "configured", "reason", "health", "metrics", "rate_limits", "configuration"}
        | {"last_updated"},
    ),
    "/api/v1/ai/requests": (spend_shapes.BookedCalls, {"requests", "amount", "next_cursor", "timestamp"}),
    "/api/v1/ai/spend": (
        spend_shapes.Spend,
        {"first_day", "last_day", "by", "rows", "amount", "unsettled", "budgets"},
    ),
    "/api/v1/monitoring/fleet": (
        fleet_shapes.FleetStatus,
        {"processes", "guards", "purses", "leases", "leader", "differences", "state_store", "timestamp"},
    ),
    "/api/v1/session": (answers.SessionView, {"role", "who", "expires_at", "login", "timestamp"}),
    "/livez": (answers.Alive, {"status"}),
    "/readyz": (answers.Ready, {"status"}),
}
POSTS: dict[str, tuple[Any, set[str]]] = {
    "/api/v1/monitoring/database/health-check": (
        answers.DatabaseCheck,
        {"health_check_result", "detailed_status", "timestamp"},
    ),
    "/api/v1/monitoring/database/reset-circuit-breaker": (
        answers.DatabaseReset,
        {"message", "new_state", "timestamp"},
    ),
    "/api/v1/monitoring/database/pause": (answers.DatabaseAct, {"message", "database", "timestamp"}),
    "/api/v1/monitoring/database/drain": (answers.DatabaseAct, {"message", "database", "timestamp"}),
    "/api/v1/monitoring/database/resume": (answers.DatabaseAct, {"message", "database", "timestamp"}),
    "/api/v1/ai/services/health-check": (answers.ServiceChecks, {"claude"}),
    "/api/v1/ai/services/claude/reset-errors": (answers.ServiceReset, {"message", "service", "timestamp"}),
    "/api/v1/ai/services/reset-all-errors": (answers.ServicesReset, {"message", "results", "timestamp"}),
}


def test_every_path_responds_with_its_promised_shape(tmp_path: Path) -> None:
    """Each response has the promised keys and matches the API description."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        for method, paths in (("GET", GETS), ("POST", POSTS)):
            for path, (shape, keys) in paths.items():
                reply = await client.ask(method, path)
                assert reply.status == 200, (path, reply.text)
                assert keys <= reply.body.keys(), path
                check_exactly(reply.body, shape)
                assert reply.headers["Content-Type"] == "application/json"
                assert reply.headers["Cache-Control"] == "no-store"

    with_server(tmp_path, work)


def test_the_api_description_names_exactly_the_existing_paths(tmp_path: Path) -> None:
    described = create_app(platform(tmp_path)).openapi()["paths"]
    promised = {path.replace("claude", "{service}") for path in (*GETS, *POSTS)}
    assert set(described) == promised | {
        "/api/v1/ai/query",
        "/api/v1/ai/batch-query",
        "/api/v1/ai/spend/write-off",
        "/api/v1/monitoring/alerts/test",
        "/api/v1/monitoring/database/rotate",
        "/api/v1/monitoring/live",
        "/api/v1/monitoring/alerts/{alert}/acknowledge",
        "/api/v1/monitoring/alerts/{alert}/unacknowledge",
        "/api/v1/monitoring/alerts/silences/{silence}",
        "/api/v1/monitoring/breakers/{name}/trip",
        "/api/v1/monitoring/breakers/{name}/shadow",
        "/api/v1/monitoring/breakers/{name}/reset",
        "/api/v1/monitoring/incidents/{incident}",
        "/api/v1/monitoring/incidents/{incident}.md",
        "/metrics",
    }


def test_a_service_has_its_promised_keys(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        await client.post("/api/v1/ai/query", json={"service": "claude", "prompt": "Say hello."})
        view = (await client.get("/api/v1/ai/services/claude/health")).body
        assert {"circuit_breaker_state", "failure_count", "success_count", "last_failure"} <= view[
            "health"
        ].keys()
        assert {"last_success", "next_attempt"} <= view["health"].keys()
        assert (view["health"]["success_count"], view["metrics"]["total_requests"]) == (1, 1)
        for window in ("requests_per_minute", "requests_per_hour", "requests_per_day"):
            limit = view["rate_limits"][window]
            assert {"used", "limit", "remaining", "resets_at"} <= limit.keys()
            assert limit["used"] == 1
        budget = view["rate_limits"]["daily_budget"]
        assert {"spent", "reserved", "limit", "remaining", "resets_at", "currency"} <= budget.keys()
        overview = (await client.get("/api/v1/ai/services/health")).body
        assert (overview["healthy_services"], overview["total_services"]) == (1, 1)
        assert overview["services"]["openai"]["configured"] is False
        assert overview["services"]["claude"].keys() == view.keys()

    with_server(tmp_path, work)


def test_the_money_in_a_view_is_the_bill(tmp_path: Path) -> None:
    """The bill is recorded a moment after the response."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        await client.post("/api/v1/ai/query", json={"service": "claude", "prompt": "Say hello."})
        async with asyncio.timeout(10):
            while True:
                view = (await client.get("/api/v1/ai/services/claude/health")).body
                budget = view["rate_limits"]["daily_budget"]
                if Decimal(budget["spent"]) == fake.billed_usd and budget["reserved"] == "0":
                    break
                await asyncio.sleep(0.01)
        assert Decimal(budget["remaining"]) == Decimal(budget["limit"]) - fake.billed_usd

    with_server(tmp_path, work)


def test_open_pages_do_not_each_probe_the_database(tmp_path: Path) -> None:
    async def main() -> None:
        clock = SkippingClock()
        quiet = replace(options(tmp_path).database, probe_interval_s=1e6)
        koo = Platform(options(tmp_path, database=quiet), clock=clock)
        async with served(create_app(koo)) as client:
            await until(lambda: koo.database.last_look)
            clock.advance(hours=1)
            began_s = clock.monotonic()
            for path in ("health", "dashboard", "database"):
                for _ in range(3):
                    assert (await client.get(f"/api/v1/monitoring/{path}")).status == 200
            may_look = 2 + int((clock.monotonic() - began_s) / LOOK_AGE_MAX_S)
            assert 2 <= len(looks) <= may_look, "the first one is from startup"
            before = len(looks)
            forced = await client.post("/api/v1/monitoring/database/health-check")
            assert forced.status == 200 and len(looks) == before + 1

    looks: list[ProbeDatabase] = []
    look = ProbeDatabase.look

    async def count(self: ProbeDatabase) -> Look:
        looks.append(self)
        return await look(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProbeDatabase, "look", count)
        asyncio.run(main())


# ── queries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_query_is_answered_with_its_cost(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        fake.script(answer("Paris.", input_tokens=20, output_tokens=4))
        asked = {"service": "claude", "prompt": "Capital of France?", "system": "One word.", "max_tokens": 9}
        reply = await client.post("/api/v1/ai/query", json=asked)
        assert reply.status == 200
        check_exactly(reply.body, answers.QueryAnswer)
        body = reply.body
        assert (body["response"], body["service"], body["attempts"]) == ("Paris.", "claude", 1)
        assert body["usage"]["total_tokens"] == 24
        assert Decimal(body["cost"]) == Decimal("0.00008")
        sent = fake.queries[0].body
        assert (sent["max_tokens"], sent["system"]) == (9, "One word.")

    with_server(tmp_path, work)


def test_a_clamped_query_reports_it(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        asked = {"service": "claude", "prompt": "Say hello.", "max_tokens": 4000, "max_cost_usd": 0.002}
        refused = await client.post("/api/v1/ai/query", json=asked)
        assert refused.status == 429 and "max_cost_usd" in refused.body["detail"]
        reply = await client.post("/api/v1/ai/query", json={**asked, "clamp": True})
        assert reply.status == 200 and reply.body["clamped"] is True
        assert 1 <= reply.body["max_tokens"] < 4000
        assert fake.queries[-1].body["max_tokens"] == reply.body["max_tokens"]
        batch = await client.post("/api/v1/ai/batch-query", json={"queries": [{**asked, "clamp": True}]})
        assert batch.body["results"][0]["clamped"] is True

    with_server(tmp_path, work)


def test_each_of_several_queries_has_a_result_in_order(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        queries = [
            {"service": "claude", "prompt": "One?"},
            {"service": "nobody", "prompt": "Two?"},
            {"service": "openai", "prompt": "Three?"},
        ]
        reply = await client.post("/api/v1/ai/batch-query", json={"queries": queries})
        assert reply.status == 200
        check_exactly(reply.body, answers.BatchAnswer)
        body = reply.body
        assert [result["success"] for result in body["results"]] == [True, False, False]
        assert [result.get("kind") for result in body["results"]] == [
            None,
            "unknown_service",
            "not_configured",
        ]
        assert (body["total_queries"], body["successful_queries"], body["failed_queries"]) == (3, 1, 2)
        assert Decimal(body["total_cost"]) == fake.billed_usd > 0

    with_server(tmp_path, work)


def test_a_list_longer_than_bulkhead_and_queue_is_answered_completely(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake:
            few = {"concurrency_max": 5, "queue_max": 2, "limits": LimitOptions()}
            async with served(create_app(platform(tmp_path, claude(fake, **few)))) as client:
                queries = [{"service": "claude", "prompt": f"{n}?", "max_tokens": 9} for n in range(150)]
                reply = await client.post("/api/v1/ai/batch-query", json={"queries": queries})
                failed = [one["error"] for one in reply.body["results"] if not one["success"]]
                assert reply.body["successful_queries"] == 150, failed[:1]
                assert len(fake.queries) == 150

    asyncio.run(main())


def test_a_client_that_disconnects_ends_its_query(tmp_path: Path) -> None:
    """A response that no client reads must not be paid for, so the provider's connection is closed too."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        from koo.testing.providers import hang

        fake.script(hang())
        asking = asyncio.create_task(
            client.post("/api/v1/ai/query", json={"service": "claude", "prompt": "Capital of France?"})
        )
        await until(lambda: fake.queries)
        asking.cancel()
        await until(lambda: fake.abandoned)
        await until(lambda: not koo.services["claude"].gates.bulkhead.used)
        assert koo.services["claude"].default_guard.breaker.consecutive == 0

    with_server(tmp_path, work)


# ── resets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reset_closes_an_open_breaker(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        fake.script(*[error(500, "api_error")] * 3)
        question = {"service": "claude", "prompt": "Capital of France?"}
        for _ in range(3):
            assert (await client.post("/api/v1/ai/query", json=question)).status == 502
        refused = await client.post("/api/v1/ai/query", json=question)
        assert (refused.status, refused.body["kind"]) == (503, "circuit_open")
        assert int(refused.headers["Retry-After"]) >= refused.body["retry_after_s"] > 0
        assert (await client.get("/api/v1/ai/services/claude/health")).body["state"] == "circuit_open"
        assert (await client.post("/api/v1/ai/services/claude/reset-errors")).status == 200
        assert (await client.get("/api/v1/ai/services/claude/health")).body["state"] == "healthy"
        assert (await client.post("/api/v1/ai/query", json=question)).status == 200

    with_server(tmp_path, work)


def test_an_act_that_other_processes_cannot_receive_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        monkeypatch.setattr(type(koo.parts.store), "trouble", "the disk is full")
        said = {"json": {"by": "ada", "reason": "a drill"}}
        for path in (
            "monitoring/breakers/claude/trip",
            "monitoring/breakers/claude/reset",
            "monitoring/database/reset-circuit-breaker",
            "ai/services/claude/reset-errors",
            "ai/services/reset-all-errors",
        ):
            message = (await client.post(f"/api/v1/{path}", **said)).body["message"]
            assert message.endswith(", in this process only: the state store is unreachable"), message

    with_server(tmp_path, work)


def test_the_body_of_the_databases_reset_is_optional(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        path = "/api/v1/monitoring/database/reset-circuit-breaker"
        bodies: list[dict[str, Any]] = [{}, {"json": {"reason": "host replaced"}}, {"json": {}}]
        for more in bodies:
            reply = await client.post(path, **more)
            assert (reply.status, reply.body["new_state"]) == (200, "healthy")
        assert (await client.post(path, json={"target": "half_open"})).status == 422

    with_server(tmp_path, work)


# ── probes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_readyz_is_503_while_the_database_does_not_respond(tmp_path: Path) -> None:
    """`/livez` stays 200, because a restart would not help."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        reply = await client.get("/readyz")
        assert (reply.status, reply.body["kind"]) == (503, "connection")
        assert (await client.get("/livez")).status == 200
        health = await client.get("/api/v1/monitoring/health")
        assert (health.status, health.body["overall_health"]) == (200, "degraded")

    with_server(tmp_path, work, database=DatabaseOptions(url="postgresql://u:secret@127.0.0.1:1/none"))


def test_readyz_is_503_while_the_databases_breaker_is_open(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        from koo.policies.breaker import Override

        koo.database.guard.set_override(Override.FORCED_OPEN)
        reply = await client.get("/readyz")
        assert (reply.status, reply.body["kind"]) == (503, "circuit_open")
        koo.database.reset_circuit_breaker()
        koo.database.guard.set_override(Override.NONE)
        assert (await client.get("/readyz")).status == 200

    with_server(tmp_path, work)


def test_readyz_is_200_again_once_a_call_succeeds_after_a_failed_check(tmp_path: Path) -> None:
    """A full server refuses the probe but continues to serve the process that has its connections."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        koo.database.guard.note_check(DatabaseUnavailable("database", "the server has no connection left"))
        assert (await client.get("/readyz")).status == 503
        async with koo.database.session_scope() as session:
            await session.execute(text("SELECT 1"))
        assert (await client.get("/readyz")).status == 200

    with_server(tmp_path, work)


def test_a_services_open_breaker_does_not_affect_readyz(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        fake.script(*[error(500, "api_error")] * 3)
        for _ in range(3):
            with pytest.raises(ExternalServiceError):
                await koo.query(Query(service="claude", prompt="Hello?"))
        assert (await client.get("/readyz")).status == 200
        health = (await client.get("/api/v1/monitoring/health")).body
        assert health["overall_health"] == "unhealthy"  # every configured service refuses
        summary = (await client.get("/api/v1/monitoring/dashboard")).body["summary"]
        assert (summary["ai_services_healthy"], summary["circuit_breakers_open"]) == ("0/1", 1)

    with_server(tmp_path, work)


PAGES = ("/metrics", "/openapi.json", "/docs", "/docs/page.js", "/dashboard/", "/dashboard/main.js")


def test_every_get_route_answers_head(tmp_path: Path) -> None:
    """`curl -I` shows the headers, and no body follows."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        for path in (*GETS, *PAGES):
            reply = await client.ask("HEAD", path)
            assert (reply.status, reply.content) == (200, b""), path
            assert reply.headers["Content-Type"] == (await client.get(path)).headers["Content-Type"]
        assert (await client.ask("HEAD", "/api/v1/ai/services/nobody/health")).status == 404

    with_server(tmp_path, work)


def test_each_path_reports_its_allowed_methods(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        asked = ("/api/v1/ai/query", "/api/v1/ai/batch-query")
        for paths, allow in (((*GETS, *PAGES), "GET, HEAD, OPTIONS"), ((*POSTS, *asked), "OPTIONS, POST")):
            for path in paths:
                if path == "/openapi.json":
                    continue  # FastAPI's own
                told = await client.ask("OPTIONS", path)
                assert (told.status, told.headers["Allow"], told.content) == (204, allow, b""), path
                wrong = await client.ask("DELETE", path)
                assert (wrong.status, wrong.headers["Allow"]) == (405, allow), path
                assert wrong.headers["Content-Type"] == "application/problem+json"
                assert wrong.body["kind"] == "method_not_allowed"

    with_server(tmp_path, work)

    with_server(tmp_path, work)


def test_metrics_have_every_series_from_the_start(tmp_path: Path) -> None:
    """`rate()` does not see the first step of a series that appears with it."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        text = (await client.get("/metrics")).text
        assert 'koo_service_requests_total{outcome="failure",service="claude"} 0.0' in text
        assert 'koo_service_refusals_total{reason="circuit_open",service="claude"} 0.0' in text
        assert 'koo_service_errors_total{kind="timeout",service="claude"} 0.0' in text
        assert 'koo_circuit_breaker_state{breaker="database",state="closed"} 1.0' in text
        assert 'koo_circuit_breaker_state{breaker="claude",state="open"} 0.0' in text
        assert "koo_database_up 1.0" in text
        assert "openai" not in text
        await client.post("/api/v1/ai/query", json={"service": "claude", "prompt": "Say hello."})
        text = (await client.get("/metrics")).text
        assert 'koo_service_requests_total{outcome="success",service="claude"} 1.0' in text
        assert 'koo_service_request_duration_seconds_count{service="claude"} 1.0' in text

    with_server(tmp_path, work)


# ── the whole server ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_long_response_is_compressed_for_clients_that_accept_it(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        path = "/api/v1/monitoring/health"
        packed = await client.get(path, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert int(packed.headers["Content-Length"]) < len(packed.content) / 3
        assert "overall_health" in packed.body
        plain = await client.get(path, headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers

    with_server(tmp_path, work)


def test_a_request_keeps_its_own_id_if_it_is_valid(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        given = await client.get("/livez", headers={"X-Request-ID": "trace-4711"})
        assert given.headers["X-Request-ID"] == "trace-4711"
        for nonsense in ("", "a b", "x" * 200, "<script>"):
            made = (await client.get("/nowhere", headers={"X-Request-ID": nonsense})).headers["X-Request-ID"]
            assert made != nonsense and len(made) == 32

    with_server(tmp_path, work)


def test_the_docs_load_nothing_from_other_hosts(tmp_path: Path) -> None:
    """No other host is named in the page, its script or its policy."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        for path in ("/docs", "/docs/page.js", "/docs/page.css"):
            reply = await client.get(path)
            assert reply.status == 200
            assert "http://" not in reply.text and "https://" not in reply.text
            assert "script-src 'self';" in reply.headers["Content-Security-Policy"]
            assert "innerHTML" not in reply.text
        assert (await client.get("/openapi.json")).body["info"]["title"] == "koo"

    with_server(tmp_path, work)


SHAPES: dict[str, Any] = {}
for module in (
    shapes,
    alert_shapes,
    fleet_shapes,
    history_shapes,
    incident_shapes,
    live_shapes,
    notice_shapes,
    spend_shapes,
    answers,
):
    SHAPES |= vars(module)


@pytest.mark.parametrize("name", examples.RECORDED)
def test_each_example_has_exactly_its_shape(name: str) -> None:
    check_exactly(examples.RECORDED[name], SHAPES[name])


def test_an_example_with_an_unknown_key_is_found() -> None:
    changed = {**examples.SERVICE, "health": {**examples.SERVICE["health"], "opened": 4}}
    with pytest.raises(ValidationError, match="opened"):
        check_exactly(changed, shapes.ServiceHealth)


def test_each_example_of_a_body_is_accepted() -> None:
    for body in (
        bodies.QueryBody,
        bodies.BatchBody,
        bodies.ActBody,
        bodies.WaitBody,
        bodies.TripBody,
        bodies.ShadowBody,
    ):
        extra = body.model_config["json_schema_extra"]
        assert isinstance(extra, dict)
        body.model_validate(extra["example"], strict=True)


def test_each_response_has_an_example(tmp_path: Path) -> None:
    schema = create_app(platform(tmp_path)).openapi()
    found = [one["responses"]["200"]["content"] for ways in schema["paths"].values() for one in ways.values()]
    assert all(content.get("example") for media in found for content in media.values())
    shown = {json.dumps(media["example"]) for content in found for media in content.values()}
    assert len(shown) == len(examples.RECORDED) + 3, (
        "and those that are not JSON: `/metrics`, the stream, Markdown"
    )


def test_every_error_is_described_as_a_problem(tmp_path: Path) -> None:
    schema = create_app(platform(tmp_path)).openapi()
    for path, ways in schema["paths"].items():
        for one in ways.values():
            for status, response in one["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
    assert "HTTPValidationError" not in json.dumps(schema)


def test_a_reset_of_all_services_reports_how_many_in_english(tmp_path: Path) -> None:
    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        koo.parts.operations.clear()
        for name in [name for name in koo.parts.ai_services if name != "claude"]:
            del koo.parts.ai_services[name]
        reply = await client.post("/api/v1/ai/services/reset-all-errors")
        assert reply.body["message"] == "1 service was reset"
        koo.register_service("search")
        reply = await client.post("/api/v1/ai/services/reset-all-errors")
        assert reply.body["message"] == "2 services were reset"

    with_server(tmp_path, work)


def test_a_database_is_paused_drained_and_resumed_over_http(tmp_path: Path) -> None:
    """A drain reports what remains open, a drained process is not ready for traffic, and rotate needs a server."""

    async def work(client: Client, fake: FakeAnthropic, koo: Platform) -> None:
        base = "/api/v1/monitoring/database"
        async with koo.database.session_scope() as session:
            await session.execute(text("SELECT 1"))
            line = sys._getframe().f_lineno - 2
            paused = await client.post(f"{base}/pause", json={"by": "ada", "reason": "failover"})
            assert paused.body["database"]["gate"] == "paused"
            marks = (await client.get("/api/v1/monitoring/history?range=15m")).body["marks"]
            assert "paused (ada: failover)" in {one["text"] for one in marks}
            assert (await client.get("/readyz")).status == 200
            drained = (await client.post(f"{base}/drain", json={"within_s": 0})).body
            assert drained["message"] == "the database is drained: 1 scope is still open"
            (left,) = drained["database"]["held_by"]
            assert left.startswith(f"{__name__}:{line} for ") and left.endswith(" (SELECT)")
            refused = await client.get("/readyz")
            assert (refused.status, refused.body["kind"]) == (503, "draining")
        assert (await client.post(f"{base}/drain")).body["database"]["running"] == 0
        health = (await client.get("/api/v1/monitoring/health")).body
        assert health["database"]["conditions"] == ["draining"]
        assert (await client.post(f"{base}/resume")).body["database"]["gate"] == "open"
        assert (await client.get("/readyz")).status == 200
        for body in ({"within_s": -1}, {"within_s": 601}, {"url": "sqlite://"}):
            assert (await client.post(f"{base}/drain", json=body)).status == 422
        refused = await client.post(f"{base}/rotate")
        assert refused.status == 404 and "rotate is for servers" in refused.body["detail"]

    with_server(tmp_path, work)
