"""Stories: what the page receives during an outage, produced by the real producer of the live stream in virtual time.

A story is a file in `stories/` with one event per line: `{"at_s": seconds since its start, "event": …, "data": …}`.
The services, their guards, the database's guard, the alert rules, the history and the savings are the real ones. There
is no network, no store file and no randomness, so a story is the same on any machine, and the page's tests play it in
a browser. `make docs` writes them again; `tests/page/test_stories.py` fails if one is stale.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from koo.alerts.engine import Alerts, Moment
from koo.alerts.evidence import Looks
from koo.alerts.gravity import weigh
from koo.alerts.views import alert_views
from koo.bookings import call_view
from koo.episodes import Episode
from koo.errors import ExternalServiceError, Kind
from koo.events import Event
from koo.history import History
from koo.monitoring.fleet import fleet_view
from koo.monitoring.history import count_services, counted_database
from koo.monitoring.history_shapes import HistoryMark
from koo.monitoring.live_shapes import Point
from koo.monitoring.overview import dashboard_view, services_view, system_view
from koo.monitoring.runbook import runbook_path
from koo.monitoring.spend_shapes import BookedCall
from koo.monitoring.vitals import database_metrics
from koo.platform import Platform
from koo.policies.breaker import OPEN
from koo.policies.fleet import GuardKey, Leader, Member, MemberGuard, Roll
from koo.policies.samples import Span, unite
from koo.savings import Savings
from koo.spans import Mark, Spans
from koo.storage.base import Entry
from koo.testing.clock import run_virtual
from koo.web.live import Listener, Live
from koo.web.live_source import BASE, Seen, mark_key, point_of
from koo.web.readiness import Readiness
from tests.monitoring.rig import Rig

STORIES = Path(__file__).with_name("stories")
PROCESS, OTHER = "web-0:17:5f2c9a40", "web-1:17:0c81d3e2"
STARTED_AGO_S = 7_200.0


class Past:
    """The history's part of a state store, in memory."""

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int], Span] = {}
        self._marks: list[Mark] = []

    async def write(self, spans: Iterable[tuple[int, int, Span]]) -> None:
        self._spans |= {(step_s, at_s): span for step_s, at_s, span in spans}

    async def read(self, step_s: int, since_s: int, until_s: int, every_s: int) -> Spans:
        found: Spans = {}
        for (step, at_s), span in self._spans.items():
            if step == step_s and since_s <= at_s < until_s:
                unite(found.setdefault(at_s - at_s % every_s, {}), span)
        return found

    async def mark(self, marks: Sequence[Mark]) -> None:
        self._marks += marks

    async def mark_change(self, mark: Mark) -> None:
        self._marks.append(mark)

    async def marks(self, since: float, until: float, *, limit: int) -> list[Mark]:
        return [mark for mark in self._marks if since <= mark.at < until]


class Episodes:
    """The alerts of a story, as the history reads them."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts
        self.ended: list[Episode] = []

    async def history(self, since: float, until: float, *, limit: int) -> list[Episode]:
        return [seen.episode for seen in self._alerts.seen if seen.episode.fired_at is not None] + self.ended


class Stage(Rig):
    """A process with three services and a database; a test decides what happens to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.alerts = Alerts()
        self._ids = (f"{number:016x}" for number in count(1))
        self._entries: list[Entry] = []
        self.fell_back: dict[str, int] = {}
        self.not_spent: dict[str, int] = {}
        self.episodes = Episodes(self.alerts)
        store: Any = SimpleNamespace(history=Past(), episodes=self.episodes)
        self.history = History(store, self.clock, version=lambda: "shop 4.2")
        self.savings = Savings(self.history)
        for name, budget in (("claude", "20"), ("openai", "10"), ("local", None)):
            self.add(name, budget=budget).gates.draw = lambda: 0.5

    def publish(self, event: Event) -> None:
        """Record as marks."""
        self.history.on_event(event)

    # ── actions ───────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(
        self, name: str, *, cost: str = "0.012", took_s: float = 0.4, tag: str | None = None
    ) -> None:
        """A call that succeeds and is recorded."""
        await self.call(name=name, took_s=took_s)
        amount = Decimal(cost)
        if amount:
            known = self.budget(name)
            self.spend(str(known.spent_usd + amount), name=name)
            self._book(name, amount, tag)

    def _book(self, name: str, amount: Decimal, tag: str | None) -> None:
        wall, number = self.clock.wall(), len(self._entries) + 1
        self._entries.append(
            Entry(
                id=f"{number:028x}",
                at=wall,
                service=name,
                day=int(wall // 86_400),
                model="sonnet",
                amount_usd=amount,
                held_usd=amount * 4,
                source="price table",
                estimated=False,
                input_tokens=900 + number,
                cache_read_tokens=0,
                cache_write_tokens=0,
                output_tokens=220 + number,
                reasoning_tokens=0,
                unit_prices={},
                price_version="",
                tag=tag,
                metadata={},
                process=PROCESS,
            )
        )

    async def fail(self, name: str) -> None:
        """A call that its provider rejects as overloaded, or that koo refuses because of earlier ones."""

        async def operation() -> None:
            await asyncio.sleep(0.2)
            raise ExternalServiceError(
                name, "it is overloaded (status 529, overloaded_error)", kind=Kind.OVERLOADED
            )

        with suppress(ExternalServiceError):
            await self.services[name].default_guard.call(operation)

    async def go_down(self, name: str) -> None:
        """Let calls fail until the breaker opens."""
        while self.services[name].default_guard.breaker.phase is not OPEN:
            await self.fail(name)

    async def refused(self, name: str, times: int, fallback: str = "") -> None:
        """Calls that an open breaker refuses. Those with a fallback are answered by it."""
        for _ in range(times):
            await self.fail(name)
            if fallback:
                self.fell_back[name] = self.fell_back.get(name, 0) + 1
                await self.ask(fallback, cost="0", took_s=0.9)

    def over_budget(self, name: str, times: int, needed: str) -> None:
        """Calls that the day's budget does not cover."""
        for _ in range(times):
            self.services[name].default_guard.tally.record_refusal("budget_exceeded", self.clock.monotonic())
            pico = int(Decimal(needed) * 10**12)
            self.not_spent[name] = self.not_spent.get(name, 0) + pico

    # ── what the page receives ────────────────────────────────────────────────────────────────────────────────

    async def parts(self) -> dict[str, Any]:
        """Like `PlatformSource.parts`, for this stage."""
        self.tick()
        database, services = self.database_health(), services_view(self.views(), self.clock)
        findings = self.findings()
        self._let_alerts_follow(findings, database, services["services"])
        alerts = alert_views(self.alerts, self._now)
        for alert in alerts:
            alert["runbook"] = runbook_path(alert["kind"], BASE)
        health = system_view(database, services, self.koo, weigh(findings, alerts), self.clock)
        self._sample(database, services["services"])
        assert self.database is not None
        found: dict[str, Any] = {
            "status": {
                **dashboard_view(health, alerts)["summary"],
                "koo": self.koo,
                "version": "0.1.0",
                "label": "shop 4.2",
                "process": PROCESS,
            },
            "alerts": alerts,
            "database": database,
            "pool": database_metrics(self.database.vitals()),
            "budgets": [],
        }
        return found | {f"service/{name}": view for name, view in services["services"].items()}

    @property
    def _now(self) -> Moment:
        return Moment(self.clock.wall(), self.clock.monotonic())

    def _let_alerts_follow(self, findings: Any, database: Any, services: Any) -> None:
        looks = Looks(database, services, frozenset(), STARTED_AGO_S, STARTED_AGO_S)
        changed = self.alerts.step(findings, self._now, looks, lambda: next(self._ids))
        self.episodes.ended += [
            one for one in changed if one.ended_at is not None and one.fired_at is not None
        ]

    def _sample(self, database: Any, services: Any) -> None:
        if self.history.is_due:
            assert self.database is not None
            counted = count_services(self.services, services, self.fell_back, self.not_spent)
            counted["database"] = counted_database(self.database.guard.tally, database)
            self.history.take(counted)


class StageSource:
    """A stage as a source of the live stream."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._marks, self._requests = Seen(), Seen()
        self._point_at: int | None = None

    async def parts(self) -> dict[str, Any]:
        return await self._stage.parts()

    def point(self) -> Point | None:
        newest = self._stage.history.newest
        if newest is None or newest[0] == self._point_at:
            return None
        self._point_at = newest[0]
        return point_of(*newest)

    async def stored_parts(self) -> dict[str, Any]:
        return {"fleet": self._fleet(), "saved": await self._stage.savings.report()}

    def _fleet(self) -> Any:
        stage, wall = self._stage, self._stage.clock.wall()
        members = [_member(name, host, wall) for name, host in ((PROCESS, "web-0"), (OTHER, "web-1"))]
        guards = [
            MemberGuard(
                process=process,
                key=GuardKey(name, "5b890e03b407"),
                phase=str(service.default_guard.breaker.phase.value),
                is_down=service.default_guard.breaker.phase.value == "open",
                since=wall - wall % 60,
                calls=10,
            )
            for name, service in stage.services.items()
            for process in (PROCESS, OTHER)
        ]
        budgets = [(f"ai:{name}", stage.budget(name)) for name in ("claude", "openai")]
        roll = Roll(members=members, guards=guards, leader=Leader(PROCESS, 3))
        return fleet_view(roll, PROCESS, budgets, stage.koo["state_store"], wall)

    async def marks(self) -> list[HistoryMark]:
        found = await self._stage.history.marks_since(self._stage.clock.wall() - 60)
        return self._marks.new_of(found, mark_key)

    async def requests(self) -> tuple[list[BookedCall], int]:
        views = [call_view(entry) for entry in self._stage._entries]
        return self._requests.new_of(views, lambda one: one["id"]), 0


def _member(name: str, host: str, wall: float) -> Member:
    return Member(
        process=name,
        ledger=name,
        host=host,
        worker="",
        pid=17,
        version="0.1.0",
        label="shop 4.2",
        started_at=wall - wall % 3600 - STARTED_AGO_S,
        seen_at=wall,
        silent_for_s=0.0,
        in_flight=1,
        configuration={},
        lives=True,
    )


# ── recording ─────────────────────────────────────────────────────────────────────────────────────────────────────

Play = Callable[[Stage, Live], Awaitable[None]]
SESSION = {"role": "write", "who": "session", "expires_at": None, "login": True, "timestamp": ""}


class Teller:
    """Records what one listener receives."""

    def __init__(self, stage: Stage) -> None:
        self.lines: list[dict[str, Any]] = []
        self._stage = stage
        self._began = stage.clock.monotonic()
        self._hearing: asyncio.Task[None] | None = None

    async def listen(self, live: Live) -> None:
        """Connect, as a page does."""
        listener = Listener()
        await live.join(listener, {"application": "Shop", "session": SESSION})
        self._hearing = asyncio.create_task(self._hear(listener))

    async def _hear(self, listener: Listener) -> None:
        while not listener.reason:
            taken = (await listener.take(15)).decode().replace(BASE, "/api/v1")
            for event in taken.split("\n\n")[:-1]:
                name, data = event.split("\n")
                self._say(name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        self._say("end", {"reason": listener.reason})

    def _say(self, event: str, data: Any) -> None:
        at_s = round(self._stage.clock.monotonic() - self._began, 3)
        self.lines.append({"at_s": at_s, "event": event, "data": data})

    async def stop(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.gather(self._hearing, return_exceptions=True)


async def busy(stage: Stage, seconds: int) -> None:
    """A quiet afternoon: a query now and then, and a database check every two seconds."""
    for second in range(seconds):
        if second % 2 == 0:
            stage.look_at_database()
            await stage.use_database(True)
        if second % 5 == 1:
            await stage.ask("claude", tag="search")
        if second % 5 == 3:
            await stage.ask("openai", cost="0.004", took_s=0.7)
        await asyncio.sleep(-(stage.clock.monotonic() % -1) or 1)


async def healthy(stage: Stage, teller: Teller, live: Live) -> None:
    """A healthy afternoon: nothing is wrong."""
    await busy(stage, 12)


async def service_down(stage: Stage, teller: Teller, live: Live) -> None:
    """One service fails, its breaker opens, a fallback answers; half a minute later it has recovered."""
    await busy(stage, 5)
    await stage.go_down("claude")
    for _ in range(5):
        await stage.refused("claude", 2, "local")
        await asyncio.sleep(2)
    await asyncio.sleep(
        stage.services["claude"].default_guard.breaker.opens_until() - stage.clock.monotonic() + 1
    )
    for _ in range(3):
        await stage.ask("claude", tag="search")
    await busy(stage, 8)


async def two_outages(stage: Stage, teller: Teller, live: Live) -> None:
    """A service and the database fail at the same time: two causes and two alerts."""
    await busy(stage, 5)
    await stage.go_down("openai")
    await stage.use_database(*[False] * 12)
    stage.look_at_database("no connection could be opened: connection refused")
    for _ in range(6):
        await stage.refused("openai", 1, "claude")
        stage.look_at_database("no connection could be opened: connection refused")
        await asyncio.sleep(1)


async def over_budget(stage: Stage, teller: Teller, live: Live) -> None:
    """The day's budget of one service is used up; its calls are refused until midnight."""
    stage.spend("18.40", held="0.20", name="claude")
    await busy(stage, 5)
    for spent in ("19.10", "19.70", "20"):
        stage.spend(spent, name="claude")
        await asyncio.sleep(2)
    for _ in range(10):
        stage.over_budget("claude", 2, "0.048")
        await asyncio.sleep(1)


async def server_gone(stage: Stage, teller: Teller, live: Live) -> None:
    """The server shuts down in order; half a minute later another one serves."""
    await busy(stage, 6)
    live.end()
    await asyncio.sleep(30)
    await teller.listen(live)
    await busy(stage, 6)


TOLD = {
    "healthy": healthy,
    "service-down": service_down,
    "two-outages": two_outages,
    "over-budget": over_budget,
    "server-gone": server_gone,
}


def tell(name: str) -> str:
    """The content of a story's file."""

    async def main() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            stage = Stage(Path(folder))
            readiness = Readiness(Platform(), stage.clock.monotonic)
            live, teller = Live(lambda: StageSource(stage), lambda: stage.clock, readiness), Teller(stage)
            await teller.listen(live)
            await TOLD[name](stage, teller, live)
            await teller.stop()
            await live.close()
            return teller.lines

    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in run_virtual(main))
