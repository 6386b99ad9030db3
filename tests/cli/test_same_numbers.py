"""During one outage every view shows the same numbers: the API, the page's data, the command line, Prometheus and the
history.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import koo
from koo import ExternalServiceError, Platform
from koo.cli.client import connect
from koo.cli.tail import Follower
from koo.cli.watch import Watched
from koo.testing import SkippingClock
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, answer, error
from koo.upkeep import KeepTime
from koo.web import serve_beside
from tests.cli.running import Here
from tests.platform.test_platform import QUESTION
from tests.web.serving import claude, options

ANSWERED, FAILED, REFUSED = 5, 3, 4


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as reply:
        body: bytes = reply.read()
        return body


class Told:
    """The reports of one server, in each of its views."""

    def __init__(self, url: str, here: Here) -> None:
        self.url = url
        self.here = here

    def api(self, path: str) -> Any:
        return json.loads(get(f"{self.url}/api/v1{path}"))

    def command(self, *arguments: str) -> str:
        return self.here.run(*arguments, "--url", self.url)[1]

    def views(self) -> dict[str, Any]:
        """The service's status, from each source that has all of it."""
        every = {
            "health": self.api("/monitoring/health")["ai_services"]["services"]["claude"],
            "the page": self.api("/monitoring/dashboard")["ai_services"]["services"]["claude"],
            "its own": self.api("/ai/services/claude/health"),
            "koo status": json.loads(self.command("status", "--json"))["ai_services"]["services"]["claude"],
            "koo watch": json.loads(self.command("watch", "--json"))["ai_services"]["services"]["claude"],
        }
        streamed = asyncio.run(_streamed(self.url))["ai_services"]["services"]["claude"]
        return {place: view.get("service", view) for place, view in every.items()} | {"live": streamed}

    def prometheus(self) -> dict[tuple[str, str], float]:
        """The service's samples, by name and by their second label."""
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(get(f"{self.url}/metrics").decode()):
            for sample in family.samples:
                of = sample.labels.get("service") or sample.labels.get("breaker")
                if of == "claude":
                    other = [v for k, v in sample.labels.items() if k not in ("service", "breaker", "le")]
                    found[sample.name, other[0] if other else ""] = sample.value
        return found

    def row(self, command: str) -> list[str]:
        """The service's row in a table."""
        return next(line for line in self.command(command).splitlines() if line.startswith("claude ")).split()


async def step(platform: Platform) -> None:
    await platform.open()
    await KeepTime(platform.parts).step()


def outage(platform: Platform, fake: FakeAnthropic) -> None:
    """Some responses, then failures until the breaker opens, then refusals."""
    fake.script(*[answer("Paris.")] * ANSWERED)
    fake.default = error(500, "api_error")
    for number in range(ANSWERED + FAILED + REFUSED):
        if number < ANSWERED:
            assert koo.run(platform.query(QUESTION)).text
        else:
            with pytest.raises(ExternalServiceError):
                koo.run(platform.query(QUESTION))


def test_an_outage_has_the_same_numbers_everywhere(here: Here) -> None:
    clock = SkippingClock()
    with FakeAnthropic(strict=False) as fake:
        platform = Platform(options(here.home, claude(fake)), clock=clock)
        with serve_beside(platform, port=0) as beside:
            koo.run(step(platform))  # the first sample: everything that follows is in the second
            outage(platform, fake)
            clock.advance(seconds=6)
            koo.run(step(platform))
            _compare(Told(beside.url, here))
        koo.run(platform.close())
    clock.release()  # the background loop remains, and the next test reads its time


def _compare(told: Told) -> None:
    views = told.views()
    seen = {}
    for place, view in views.items():
        metrics, health = view["metrics"], view["health"]
        seen[place] = (
            metrics["successful_requests"], metrics["failed_requests"], metrics["refused_requests"],
            metrics["p95"], view["state"], health["circuit_breaker_state"], health["next_attempt"],
            view["rate_limits"]["daily_budget"]["spent"],
        )  # fmt: skip
    assert set(seen.values()) == {seen["health"]}, seen
    *counts, p95, state, breaker, next_attempt, spent = seen["health"]
    assert (counts, state, breaker) == ([ANSWERED, FAILED, REFUSED], "circuit_open", "open")
    # In sentences: the same state, counts, time and money.
    total = str(ANSWERED + FAILED)
    assert told.row("status")[:6] == ["claude", state, breaker, total, str(FAILED), str(REFUSED)]
    at = next_attempt[:19]
    assert f"next attempt {at}Z" in told.command("status")
    assert told.row("watch")[:3] == ["claude", state, breaker] and "37.5 %" in told.command("watch")
    # Prometheus.
    samples = told.prometheus()
    outcomes = [samples["koo_service_requests_total", one] for one in ("success", "failure")]
    refused = sum(value for (name, _), value in samples.items() if name == "koo_service_refusals_total")
    assert [*outcomes, refused] == counts
    assert samples["koo_circuit_breaker_state", breaker] == samples["koo_service_state", state] == 1
    # The history: calls that reached the dependency, those that failed, those that koo refused, and their money.
    series = told.api("/monitoring/history?range=15m")["series"]["ai:claude"]
    past = [sum(one or 0 for one in series[name]) for name in ("calls", "failed", "refused")]
    assert past == [ANSWERED + FAILED, FAILED, REFUSED]
    assert [one for one in series["state"] if one][-1] == state
    booked = sum((Decimal(one) for one in series["spent"] if one), Decimal(0))
    asked = told.api("/ai/requests")
    assert booked == Decimal(spent) == Decimal(asked["amount"]) > 0 and p95 >= 0
    # And `koo tail` sums what the history contains.
    assert re.search(rf"{FAILED} calls failed, {REFUSED} calls refused", _tailed(told))


async def _streamed(url: str) -> Any:
    """The state that `koo watch` builds from the live stream, without polling."""
    async with connect(url) as client:
        watched = Watched(client)
        listening = asyncio.create_task(watched.listen())
        await until(lambda: watched.seen.answer is not None)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert watched.seen.fleet is not None and watched.seen.fleet["processes"]
        return watched.answer


def _tailed(told: Told) -> str:
    """The report of a follower that starts now."""

    async def look() -> str:
        async with connect(told.url) as client:
            follower = Follower(client, time.time() - 60, None)
            return "\n".join([line.text async for line in follower.look()])

    return asyncio.run(look())
