"""Write `docs/openapi.json`, and record the examples in it: `python -m docs.generate_openapi`.

The description is the server's own `/openapi.json`. Its examples are responses of a real server with a fake provider,
one of each shape, in `src/koo/web/examples.json`. An example is replaced only if the response looks different: times
and measured numbers differ each time, and would change the file in every run. `tests/web/test_schema.py` fails if
either file is out of date.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import text

from koo.alert_options import AlertOptions
from koo.clock import iso
from koo.errors import Kind, ServiceFailed, ServiceRefused
from koo.host import Descriptors, Disk, Host, HostWatch
from koo.notices import Notice
from koo.options import LimitOptions
from koo.platform import Platform
from koo.testing import until
from koo.testing.providers import FakeAnthropic, answer, error
from koo.upkeep import KeepTime
from koo.web import create_app
from koo.web.bodies import QUERY
from koo.web.examples import RECORDED
from tests.alerts.hooks import Hook
from tests.web.serving import Client, claude, platform, served

ROOT = Path(__file__).parents[1]
DESCRIPTION = ROOT / "docs" / "openapi.json"
EXAMPLES = ROOT / "src" / "koo" / "web" / "examples.json"

API = "/api/v1"
ASKED = {**QUERY, "fallback": []}
ANSWERS = {
    "QueryAnswer": ("POST", f"{API}/ai/query", ASKED),
    "BatchAnswer": ("POST", f"{API}/ai/batch-query", {"queries": [ASKED, {**ASKED, "service": "clod"}]}),
    "SystemHealth": ("GET", f"{API}/monitoring/health", None),
    "Dashboard": ("GET", f"{API}/monitoring/dashboard", None),
    "SystemAlerts": ("GET", f"{API}/monitoring/alerts", None),
    "FleetStatus": ("GET", f"{API}/monitoring/fleet", None),
    "AlertTests": ("POST", f"{API}/monitoring/alerts/test", {"channel": "webhook"}),
    "Saved": ("GET", f"{API}/monitoring/saved", None),
    "SessionView": ("GET", f"{API}/session", None),
    "AuditLog": ("GET", f"{API}/monitoring/audit", None),
    "History": ("GET", f"{API}/monitoring/history?component=ai:claude&since=LATELY", None),
    "AlertDeliveries": ("GET", f"{API}/monitoring/alerts/deliveries", None),
    "DatabaseMonitoring": ("GET", f"{API}/monitoring/database", None),
    "PoolMetrics": ("GET", f"{API}/monitoring/database/pool-metrics", None),
    "DatabaseCheck": ("POST", f"{API}/monitoring/database/health-check", None),
    "ServicesMonitoring": ("GET", f"{API}/monitoring/ai-services", None),
    "ServiceMonitoring": ("GET", f"{API}/monitoring/ai-services/claude/metrics", None),
    "Spend": ("GET", f"{API}/ai/spend?by=day&by=service&by=model", None),
    "BookedCalls": ("GET", f"{API}/ai/requests?limit=1", None),
    "WriteOffs": ("POST", f"{API}/ai/spend/write-off", {"all": True, "by": "ada"}),
    "ServicesHealth": ("GET", f"{API}/ai/services/health", None),
    "ServiceHealth": ("GET", f"{API}/ai/services/claude/health", None),
    "ServiceChecks": ("POST", f"{API}/ai/services/health-check", None),
    "Alive": ("GET", "/livez", None),
    "Ready": ("GET", "/readyz", None),
    "DatabaseReset": ("POST", f"{API}/monitoring/database/reset-circuit-breaker", None),
    "DatabaseAct": ("POST", f"{API}/monitoring/database/pause", None),
    "ServiceReset": ("POST", f"{API}/ai/services/claude/reset-errors", None),
    "ServicesReset": ("POST", f"{API}/ai/services/reset-all-errors", None),
    "AlertAct": (
        "POST",
        f"{API}/monitoring/alerts/PAUSED/acknowledge",
        {"by": "ada", "for_s": 7200, "note": "failover drill"},
    ),
    "AlertHistory": ("GET", f"{API}/monitoring/alerts/history?limit=1", None),
    "SilenceAct": (
        "POST",
        f"{API}/monitoring/alerts/silences",
        {"component": "database", "for_s": 3600, "by": "ada", "reason": "failover drill"},
    ),
    "Silences": ("GET", f"{API}/monitoring/alerts/silences", None),
}
AFTER_AN_OUTAGE = {
    "Incidents": ("GET", f"{API}/monitoring/incidents", None),
    "OneIncident": ("GET", f"{API}/monitoring/incidents/INCIDENT", None),
    "Breakers": ("GET", f"{API}/monitoring/breakers", None),
    "BreakerAct": (
        "POST",
        f"{API}/monitoring/breakers/claude/trip",
        {"by": "ada", "reason": "it returns nonsense", "for_s": 600},
    ),
}
"""The request for the example of each shape, in this order."""


HOST = Host((Disk("home", 40 * 2**30, 250 * 2**30),), Descriptors(23, 1024))
"""A machine that is the same in each recording."""


async def record() -> dict[str, Any]:
    """One response of each shape, after some traffic: a failure, a nearly reached limit, a database statement."""
    with TemporaryDirectory() as folder:
        async with FakeAnthropic() as fake, Hook() as hook:
            fake.script(
                error(529, "overloaded_error"), *[answer("Paris.", input_tokens=21, output_tokens=4)] * 3
            )
            limits = LimitOptions(per_minute=5, per_hour=1000, per_day=10_000)
            service = claude(fake, limits=limits, daily_budget_usd=Decimal(10))
            alerts = AlertOptions(webhook=hook.url, webhook_secret=f"whsec_{'A' * 32}")
            koo = platform(Path(folder), service, alerts=alerts)
            koo.parts.own_watch.host = HostWatch({}, look=lambda _: HOST)
            async with served(create_app(koo)) as client:
                await client.post(f"{API}/ai/query", json=ASKED)
                await client.post(f"{API}/ai/query", json=ASKED)
                async with koo.database.session_scope() as session:
                    await session.execute(text("SELECT 1"))
                await _tell(koo)
                answers = {name: await _ask(client, koo, *asked) for name, asked in ANSWERS.items()}
                await _break(koo)
                answers |= {name: await _ask(client, koo, *asked) for name, asked in AFTER_AN_OUTAGE.items()}
            database = answers["DatabaseMonitoring"]["database_monitoring"]
            if database["last_error"] or answers["DatabaseCheck"]["health_check_result"]["last_error"]:
                sys.exit(
                    "this machine is too busy: the example's own database failed, so nothing was recorded"
                )
            answers["FleetStatus"] = _named(answers["FleetStatus"])
            shown = json.dumps(answers).replace(fake.base_url, "https://api.anthropic.com")
            shown = shown.replace(koo.parts.outbox.couriers[0].channel.place, "https://ops.example")
    recorded: dict[str, Any] = json.loads(shown)
    return recorded


def _named(fleet: Any) -> Any:
    """A fleet whose processes have the same names in each recording."""
    named = json.loads(re.sub(r'"[^"]+:\d+:[0-9a-f]{8}"', '"web-0:17:5f2c9a40"', json.dumps(fleet)))
    for process in named["processes"]:
        process |= {"host": "web-0", "pid": 17, "in_flight": 1}
    for guard in named["guards"]:
        guard |= {"place": "5b890e03b407", "calls": 2}
    for lease in named["leases"]:
        lease["leased"] = 1
    return named


async def _break(koo: Platform) -> None:
    """Open claude's breaker, and refuse a call."""
    koo.reset_limits("claude")
    guard = koo.services["claude"].default_guard
    for _ in range(6):
        with suppress(ServiceFailed, ServiceRefused):
            async with guard.permit():
                detail = {"status": 529, "type": "overloaded_error"}
                raise ServiceFailed(
                    "claude", "status 529, overloaded_error", kind=Kind.OVERLOADED, detail=detail
                )


async def _tell(koo: Platform) -> None:
    """Send a notification through the configured channel."""
    notice = Notice(
        key="5f2c9a40:firing",
        what="firing",
        fingerprint="service_down:ai:openai",
        kind="service_down",
        severity="critical",
        component="ai:openai",
        message="openai cannot be called: the provider refused the key",
        started_at=time.time(),
    )
    await koo.parts.store.notices.put(notice)
    # koo's own background task sends it. A second sender would sometimes count as a second attempt.
    await until(lambda: koo.parts.outbox.couriers[0].standing.sent_at is not None)


async def _ask(client: Client, koo: Platform, method: str, path: str, body: Any) -> Any:
    await koo.parts.store.ledger.refresh()
    await koo.parts.fleet.beat()
    await KeepTime(
        koo.parts
    ).step()  # as koo does every second; otherwise an alert would be in only some of the responses
    paused = [alert["id"] for alert in koo.active_alerts() if alert["kind"] == "database_paused"]
    path = path.replace("INCIDENT", koo.services["claude"].default_guard.breaker.incident)
    path = path.replace("PAUSED", "".join(paused)).replace(
        "LATELY", iso(time.time() - 30).replace("+", "%2B")
    )
    reply = await client.ask(method, path, json=body) if body else await client.ask(method, path)
    assert reply.status == 200, (path, reply.text)
    return reply.body


def is_alike(one: Any, other: Any) -> bool:
    """Whether two responses have the same keys, types and texts."""
    return bool(look_of(one) == look_of(other))


RANDOM = {"id", "incident", "process", "next_cursor", "request_id"}
"""Keys whose values contain random letters."""


def look_of(value: Any) -> Any:
    """A value without what differs between runs: measured numbers, times, and texts that contain a number."""
    if isinstance(value, dict):
        # For a series, only the names of its numbers: how many spans it has, and which are empty, depends on the
        # second.
        shown = {
            key: {name: sorted(one) for name, one in value[key].items()} for key in value if key == "series"
        }
        return {key: "…" if key in RANDOM else look_of(inner) for key, inner in (value | shown).items()}
    if isinstance(value, list):
        return [look_of(inner) for inner in value]
    if isinstance(value, float):
        return "a number"
    return re.sub(r"\b[0-9a-f]{16}\b|\d.*\d|\d", "…", value) if isinstance(value, str) else value


def examples() -> dict[str, Any]:
    """The committed examples, with a new recording for each that looks different now."""
    fresh = asyncio.run(record())
    kept = {
        name: RECORDED[name]
        for name in fresh.keys() & RECORDED.keys()
        if is_alike(RECORDED[name], fresh[name])
    }
    return fresh | kept


def description() -> str:
    """`openapi.json`. Its version is replaced by "…", because the package's version differs in a source tree."""
    schema = create_app(Platform()).openapi()
    schema["info"]["version"] = "…"
    return json.dumps(schema, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    logging.disable()  # the recording's server logs its resets
    recorded = examples()
    RECORDED.clear()  # changed in place, because the description is built from this dict
    RECORDED.update(recorded)
    EXAMPLES.write_text(json.dumps(RECORDED, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    DESCRIPTION.write_text(description(), encoding="utf-8")


if __name__ == "__main__":
    main()
