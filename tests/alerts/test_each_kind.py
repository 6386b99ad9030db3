"""Each kind of alert is found when its condition occurs in real guards, a real ledger and real watchers."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from koo.ai.token_gate import Tokens
from koo.alerts.absorbing import absorb
from koo.alerts.findings import Finding
from koo.alerts.kinds import KINDS
from koo.alerts.news import StoreNews
from koo.alerts.own_rules import find_in_channels
from koo.alerts.own_watch import LOOKS_MAX, OwnWatch
from koo.clock import iso
from koo.database.gate import GateState
from koo.errors import ExternalServiceError, Kind, RateLimited
from koo.events import ProcessRenamed, StoreForgot
from koo.host import Descriptors, Disk, Host, HostWatch
from koo.monitoring.notice_shapes import ChannelStatus
from koo.options import NEVER, LimitOptions
from koo.policies.forecast import RunOut
from koo.policies.verdict import THROTTLED, Fault
from koo.shortages import NO_DESCRIPTOR, shortage_in
from koo.storage.base import Short
from tests.monitoring.rig import FAILED, KEY_REFUSED, MODEL_REFUSED, TOO_MANY, Ends, Rig, on_rig

QUOTA = Fault(verdict=THROTTLED, kind=Kind.QUOTA, retry_after_s=3600.0, reach="service")


class Scene(Rig):
    """A rig, with the other inputs of the rules."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.add()
        self.news = StoreNews(self.clock)
        self.channels: list[ChannelStatus] = []

    def findings(self) -> list[Finding]:
        found = [*super().findings(), *find_in_channels(self.channels, self.clock.wall())]
        return self.news.add_to(found)


# ── scenarios ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def service_down(scene: Scene) -> None:
    await scene.call(KEY_REFUSED)


async def circuit_open(scene: Scene) -> None:
    await scene.call(model="opus")
    await scene.open()


async def circuit_recovering(scene: Scene) -> None:
    await scene.open()
    await scene.half_open()


async def key_refused(scene: Scene) -> None:
    await scene.call(model="opus")
    await scene.call(MODEL_REFUSED)


async def client_key_refused(scene: Scene) -> None:
    async def refused() -> None:
        raise Ends(KEY_REFUSED, "")

    clients = scene.services["claude"].credentials
    with suppress(Ends):
        await clients.guard("one", None).call(refused)
    await clients.guard("another", None).call(lambda: asyncio.sleep(0))


async def quota(scene: Scene) -> None:
    await scene.call(QUOTA)


async def pause(scene: Scene) -> None:
    await scene.call(TOO_MANY)


async def degraded(scene: Scene) -> None:
    await scene.calls(18, 2)


async def unhealthy(scene: Scene) -> None:
    for _ in range(3):
        await scene.call(FAILED)


async def saturated(scene: Scene) -> None:
    scene.add(concurrency_max=1, queue_max=0)
    running = asyncio.create_task(scene.call(took_s=5.0))
    await asyncio.sleep(0)
    with suppress(ExternalServiceError):
        await scene.call()
    await running


def requests(window: str, count: int) -> Callable[[Scene], Awaitable[None]]:
    async def happen(scene: Scene) -> None:
        scene.add(limits=LimitOptions(**{f"per_{window}": 10}))
        await scene.calls(count)

    return happen


def tokens(*asked: int) -> Callable[[Scene], Awaitable[None]]:
    """Calls, one after the other, that may each need this many of a hundred tokens a minute."""

    async def happen(scene: Scene) -> None:
        service = scene.add(limits=LimitOptions(tokens_per_minute=100))
        for one in asked:
            with suppress(RateLimited):
                await Tokens(service).take(one, NEVER, waits=False)

    return happen


def spent(amount: str, **more: str) -> Callable[[Scene], Awaitable[None]]:
    async def happen(scene: Scene) -> None:
        scene.spend(amount, **more)

    return happen


async def too_small(scene: Scene) -> None:
    """The ledger's numbers after such a refusal. `tests/platform/test_alerts_of_refusals.py` tests the refusal."""
    short = Short(
        budget="", title="the day's budget", needed_usd=Decimal(1), left_usd=Decimal("0.1"), resets_at=0.0
    )
    scene.budgets["claude"] = replace(scene.budget(), short=short)


async def forecast(scene: Scene) -> None:
    scene.spend("4")
    now = scene.clock.wall()
    scene.budgets["claude"] = replace(scene.budget(), runs_out=RunOut(now + 3600, now + 7200))


async def database_unavailable(scene: Scene) -> None:
    scene.look_at_database("connection refused")


async def database_unhealthy(scene: Scene) -> None:
    await scene.use_database(True, *[False] * 3)


async def database_slow(scene: Scene) -> None:
    assert scene.database is not None
    for _ in range(20):
        scene.database.metrics.statement.note(2.0)


async def database_read_only(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.metrics.is_read_only = True


async def database_without_wal(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.metrics.is_without_wal = True


async def database_saturated(scene: Scene) -> None:
    scene.turn_away()


class OpenScope:
    """The parts of a scope that the queue uses."""

    owner: asyncio.Task[Any] | None = None
    session: object = None
    statement: str | None = "UPDATE accounts SET balance = 1"
    deadline = float("inf")
    expired = False

    def leave_to_parent(self) -> None: ...
    def expire(self) -> None: ...


async def database_leaking(scene: Scene) -> None:
    scene.pool_queue.holders[OpenScope()] = scene.clock.monotonic()
    await scene.clock.sleep(21)


async def database_commit_unknown(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.metrics.unknown_commit_at = scene.clock.monotonic()


async def database_markers_unusable(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.metrics.marker_problem = "the table koo_markers is missing"


async def database_paused(scene: Scene) -> None:
    scene.pause_database()


async def database_draining(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.gate.set(GateState.DRAINING)


async def store_away(scene: Scene) -> None:
    scene.lose_store(["claude"])


async def store_forgot(scene: Scene) -> None:
    scene.news.on_event(StoreForgot("state store", "0.5"))


async def process_renamed(scene: Scene) -> None:
    scene.news.on_event(ProcessRenamed("state store"))


async def shortage(scene: Scene) -> None:
    """A connection could not be opened, because this process had no file descriptor left."""
    watch = OwnWatch({})
    assert shortage_in(OSError(errno.EMFILE, "too many")) == NO_DESCRIPTOR
    now = scene.clock.monotonic()
    watch.step(now, check_s=1.0, probe=None, probe_s=None)
    scene.koo = watch.view(scene.koo["state_store"], now)


def host(disk_mib: int = 10_000, used: int = 10) -> Callable[[Scene], Awaitable[None]]:
    """A check of a machine with this much free space, and this many of a hundred descriptors open."""

    async def happen(scene: Scene) -> None:
        found = Host((Disk("home", disk_mib * 2**20, 100 * 2**30),), Descriptors(used, 100))
        watch = OwnWatch({})
        watch.host = HostWatch({}, look=lambda _: found)
        watch.host.step(0.0)
        while watch.host.last is None:  # noqa: ASYNC110 - in a thread, which virtual time does not control
            await asyncio.sleep(0)
        scene.koo = watch.view(scene.koo["state_store"], scene.clock.monotonic())

    return happen


async def monitor_stale(scene: Scene) -> None:
    watch = OwnWatch({})
    watch.host = HostWatch({}, look=lambda _: Host())
    for _ in range(LOOKS_MAX + 3):
        watch.step(scene.clock.monotonic(), check_s=0.0, probe=None, probe_s=None)
    scene.koo = watch.view(scene.koo["state_store"], scene.clock.monotonic())


async def notification_failing(scene: Scene) -> None:
    scene.channels.append(
        {
            "channel": "webhook",
            "place": "https://ops.example",
            "state": "failing",
            "reason": "it answered 500",
            "failing_since": iso(scene.clock.wall() - 61),
            "next_attempt": iso(scene.clock.wall() + 60),
            "last_sent": None,
            "waiting": 2,
            "given_up": 0,
            "least_severity": "warning",
            "breaker": "closed",
            "warnings": [],
        }
    )


HAPPENS: Mapping[str, Callable[[Scene], Awaitable[None]]] = {
    "service_down": service_down,
    "circuit_open": circuit_open,
    "circuit_recovering": circuit_recovering,
    "key_refused": key_refused,
    "client_key_refused": client_key_refused,
    "quota_used_up": quota,
    "provider_limit_reached": pause,
    "degraded_performance": degraded,
    "service_unhealthy": unhealthy,
    "service_saturated": saturated,
    "limit_reached_requests_per_minute": requests("minute", 10),
    "limit_reached_requests_per_hour": requests("hour", 10),
    "limit_reached_requests_per_day": requests("day", 10),
    "limit_reached_tokens_per_minute": tokens(60, 60),
    "limit_approaching_requests_per_minute": requests("minute", 8),
    "limit_approaching_requests_per_hour": requests("hour", 8),
    "limit_approaching_requests_per_day": requests("day", 8),
    "limit_approaching_tokens_per_minute": tokens(80),
    "budget_used_up": spent("10"),
    "budget_too_small": too_small,
    "budget_at_95": spent("9.5"),
    "budget_at_90": spent("9"),
    "budget_approaching": spent("8"),
    "budget_forecast": forecast,
    "bill_above_hold": spent("1", above_hold="0.5"),
    "money_unsettled": spent("1", unsettled="0.5"),
    "budget_local": spent("1", scope="this process"),
    "store_unavailable": store_away,
    "store_forgot": store_forgot,
    "process_renamed": process_renamed,
    "database_unavailable": database_unavailable,
    "database_unhealthy": database_unhealthy,
    "database_slow": database_slow,
    "database_read_only": database_read_only,
    "database_without_wal": database_without_wal,
    "database_saturated": database_saturated,
    "database_leaking": database_leaking,
    "database_commit_unknown": database_commit_unknown,
    "database_markers_unusable": database_markers_unusable,
    "database_paused": database_paused,
    "database_draining": database_draining,
    "disk_full": host(disk_mib=10),
    "disk_nearly_full": host(disk_mib=900),
    "descriptors_used_up": host(used=98),
    "descriptors_nearly_used_up": host(used=90),
    "out_of_resources": shortage,
    "notification_failing": notification_failing,
    "monitor_stale": monitor_stale,
}


def test_each_kind_has_a_scenario_that_causes_it() -> None:
    assert HAPPENS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", HAPPENS)
def test_each_kind_is_found_when_it_happens_and_is_listed_separately(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path)
        before = {one.kind for one in scene.findings()}
        await HAPPENS[kind](scene)
        (found,) = [one for one in scene.findings() if one.kind == kind]
        assert before == set() and found.severity == KINDS[kind].severity and found.begins
        assert found.message[0] != " " and found.message[-1] not in " :;"
        assert KINDS[kind].severity != "critical" or found.data.get("refuses") or kind in NOTHING_REFUSED

    on_rig(lambda rig: main())


NOTHING_REFUSED = {"database_unavailable", "disk_full", "descriptors_used_up"}
"""Critical, although koo itself refuses nothing yet: calls fail, or soon will."""


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_greater_kind_is_at_least_as_severe_as_its_parts(kind: str) -> None:
    rank = {"critical": 0, "warning": 1}
    for greater in KINDS[kind].part_of:
        assert rank[KINDS[greater].severity] <= rank[KINDS[kind].severity], greater


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_is_directly_or_indirectly_part_of_itself(kind: str) -> None:
    seen, todo = set(), list(KINDS[kind].part_of)
    while todo:
        seen.add(one := todo.pop())
        todo += [next_one for next_one in KINDS[one].part_of if next_one not in seen]
    assert kind not in seen


def test_a_greater_finding_lists_its_parts_and_has_their_data() -> None:
    slow = Finding("degraded_performance", "ai:x", "10% failed", {"error_rate": 0.1})
    opened = Finding("circuit_open", "ai:x", "it is open", {"next_attempt": "soon", "refuses": "all"})
    down = Finding("service_down", "ai:x", "it is down", {"refuses": "every call to x"})
    other = replace(opened, component="ai:y")
    whole, alone = absorb([slow, opened, down, other])
    assert (whole.kind, whole.message) == ("service_down", "it is down") and alone == other
    assert whole.data == {
        "error_rate": 0.1,
        "next_attempt": "soon",
        "refuses": "every call to x",
        "also": ["degraded_performance", "circuit_open"],
    }


def test_a_finding_too_weak_to_begin_an_alert_does_not_hide_another() -> None:
    slow = Finding("degraded_performance", "ai:x", "5% failed", begins=False)
    unhealthy_one = Finding("service_unhealthy", "ai:x", "3 checks failed")
    assert absorb([slow, unhealthy_one]) == [slow, unhealthy_one]
