"""`/runbook` for an operator who was just woken: it is open to all wherever koo is mounted, and each link leads to
advice.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from koo.alerts.kinds import KINDS
from koo.errors import (
    Cause,
    CircuitOpen,
    CommitOutcomeUnknown,
    DatabaseUnavailable,
    InvalidRequest,
    Kind,
    PoolSaturated,
    RateLimited,
    ServiceFailed,
    ServiceRefused,
    ServiceSaturated,
)
from koo.monitoring.runbook import runbook
from koo.options import LimitOptions
from koo.testing.providers import FakeAnthropic, error
from koo.web import create_app, mount
from koo.web.links import OF_CAUSES, OF_DATABASES, OF_SERVICES, runbook_of
from koo.web.problems import STATUS
from tests.web.serving import claude, platform, served
from tests.web.test_page import below

JSON = {"Accept": "application/json"}


def test_the_runbook_needs_no_token_as_a_page_or_as_data(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(create_app(platform(tmp_path, token="write-4711"))) as client:
            page = await client.get("/api/v1/runbook", headers={"Accept": "text/html,*/*"})
            assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
            assert all(f'<article id="{kind}">' in page.text for kind in KINDS)
            assert "'unsafe" not in page.headers["Content-Security-Policy"]
            one = (await client.get("/api/v1/runbook/circuit_open", headers={"Accept": "text/html"})).text
            assert "Circuit breaker open: what to do" in one and one.count("<article") == 1
            data = (await client.get("/api/v1/runbook", headers=JSON)).body
            known = runbook("circuit_open")
            assert known is not None and data["circuit_open"]["advice"] == known.advice
            assert data.keys() == KINDS.keys()
            assert (await client.get("/api/v1/runbook/nonsense", headers=JSON)).status == 404

    asyncio.run(main())


def test_an_unknown_kind_is_a_404(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(create_app(platform(tmp_path))) as client:
            reply = await client.get("/api/v1/runbook/nonsense")
            assert (reply.status, reply.body["kind"]) == (404, "not_found")

    asyncio.run(main())


def mounted(home: Path, app: Any, prefix: str, *services: Any) -> Any:
    mount(app, platform(home, *services), prefix=prefix)
    return app


@pytest.mark.parametrize(
    ("make", "prefix", "path", "wanted"),
    [
        (FastAPI, "/api/v1", "", "/api/v1/runbook/"),
        (FastAPI, "/internal/koo", "", "/internal/koo/runbook/"),
        (Starlette, "/koo", "", "/koo/runbook/"),
        (FastAPI, "", "/a/b", "/a/b/runbook/"),
    ],
)
def test_links_of_alerts_and_refusals_lead_to_the_runbook(
    tmp_path: Path, make: Any, prefix: str, path: str, wanted: str
) -> None:
    """Below any path and prefix. Each link is followed, and its page has advice."""

    async def main() -> None:
        async with FakeAnthropic() as fake:
            app = mounted(tmp_path, make(), prefix, claude(fake))
            async with served(below(app, path) if path else app) as client:
                base = f"{path}{prefix}"
                fake.script(*[error(529, "overloaded_error")] * 3)
                for _ in range(4):
                    body = {"service": "claude", "prompt": "Hello?"}
                    refused = await client.post(f"{base}/ai/query", json=body)
                assert refused.body["kind"] == "circuit_open"
                links = [refused.body["runbook"]]
                async with asyncio.timeout(20):
                    while len(links) == 1:
                        listed = (await client.get(f"{base}/monitoring/alerts")).body["alerts"]
                        links += [alert["runbook"] for alert in listed]
                        await asyncio.sleep(0.02)
                shown = (await client.get(f"{base}/monitoring/dashboard")).body["alerts"]
                links += [alert["runbook"] for alert in shown]
                for link in links:
                    assert link.startswith(wanted)
                    assert "what to do" in (await client.get(link, headers={"Accept": "text/html"})).text

    asyncio.run(main())


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (CircuitOpen("claude", "5 failures in a row"), "service_down"),
        (DatabaseUnavailable("database", "its breaker is open"), "database_unavailable"),
        (PoolSaturated("database", "30 connections are in use"), "database_saturated"),
        (ServiceSaturated("claude", "200 calls are running"), "service_saturated"),
        (RateLimited("claude", "it is spread", kind=Kind.COOLING_DOWN), "provider_limit_reached"),
        (ServiceRefused("claude", "store unreachable", kind=Kind.STORE_UNAVAILABLE), "store_unavailable"),
        (ServiceFailed("claude", "its server failed", kind=Kind.SERVER_ERROR), "degraded_performance"),
        (CommitOutcomeUnknown("database", "the connection was lost"), "database_commit_unknown"),
    ],
)
def test_a_refusal_names_the_alert_that_explains_it(refusal: Any, kind: str) -> None:
    assert runbook_of(refusal, "/api/v1") == f"/api/v1/runbook/{kind}"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"limits": LimitOptions(per_minute=0)}, "limit_reached_requests_per_minute"),
        ({"limits": LimitOptions(per_hour=0)}, "limit_reached_requests_per_hour"),
        ({"limits": LimitOptions(per_minute=60, per_day=0)}, "limit_reached_requests_per_day"),
        ({"limits": LimitOptions(tokens_per_minute=0)}, "limit_reached_tokens_per_minute"),
        ({"daily_budget_usd": Decimal("0.0001")}, "budget_too_small"),
        ({"daily_budget_usd": Decimal(0)}, "budget_used_up"),
    ],
)
def test_a_refusal_by_a_limit_or_budget_names_which_one(
    tmp_path: Path, given: dict[str, Any], kind: str
) -> None:
    async def main() -> None:
        async with (
            FakeAnthropic() as fake,
            served(create_app(platform(tmp_path, claude(fake, **given)))) as client,
        ):
            body = {"service": "claude", "prompt": "Hello?"}
            refused = await client.post("/api/v1/ai/query", json=body)
            assert refused.status == 429 and refused.body["runbook"] == f"/api/v1/runbook/{kind}"
            assert fake.requests == []

    asyncio.run(main())


def test_a_bound_that_the_caller_set_itself_has_no_runbook(tmp_path: Path) -> None:
    """No alert covers `max_cost_usd`: the operator's budget may be untouched."""

    async def main() -> None:
        async with FakeAnthropic() as fake, served(create_app(platform(tmp_path, claude(fake)))) as client:
            body = {"service": "claude", "prompt": "Hello?", "max_cost_usd": 0.0001}
            refused = await client.post("/api/v1/ai/query", json=body)
            assert refused.status == 429 and refused.body.get("runbook") is None

    asyncio.run(main())


def test_each_error_leads_to_an_existing_kind() -> None:
    assert {*OF_SERVICES.values(), *OF_DATABASES.values(), *OF_CAUSES.values()} <= KINDS.keys()
    assert OF_CAUSES.keys() == {*Cause}
    # These have no alert: the process is ending, or it is the caller's mistake.
    own = {*STATUS} - {*OF_SERVICES} - {*OF_DATABASES} - {Kind.RATE_LIMITED, Kind.BUDGET_EXCEEDED}
    assert own == {
        Kind.INVALID_REQUEST, Kind.CONTEXT_LENGTH, Kind.CONTENT_POLICY, Kind.NOT_FOUND, Kind.TOO_LARGE,
        Kind.NOT_CONFIGURED, Kind.UNKNOWN_SERVICE, Kind.PRICE_UNKNOWN, Kind.INTEGRITY, Kind.CANCELLED,
    }  # fmt: skip


def test_the_callers_own_mistake_has_no_runbook() -> None:
    assert runbook_of(InvalidRequest("claude", "the prompt is empty"), "/api/v1") is None
