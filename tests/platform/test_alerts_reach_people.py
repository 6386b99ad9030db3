"""Real events are notified to a real webhook receiver and a real mail server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from koo.alert_options import AlertOptions
from koo.alerts.kinds import KINDS, AlertKind
from koo.errors import ExternalServiceError
from koo.options import BreakerOptions, DatabaseOptions, RetryOptions
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.testing.polling import until
from koo.testing.postgres import PostgresServer
from koo.testing.providers import FakeAnthropic, answer, error
from koo.testing.proxy import FaultProxy
from tests.alerts.hooks import SILENT, Hook
from tests.alerts.hooks import answer as hook_answer
from tests.alerts.mails import HOST, MailServer
from tests.platform.test_platform import QUESTION, options

ROOT = Path(__file__).parents[2]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_MODEL = "claude-haiku-4-5"
FAILED = error(500, "api_error")
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the work of each second fifty times a second."""
    monkeypatch.setattr("koo.upkeep.TICK_S", 0.02)
    monkeypatch.setattr("koo.storage.notices.MESSAGES_PER_MINUTE", 1000)
    for kind, row in KINDS.items():
        monkeypatch.setitem(
            cast("dict[str, AlertKind]", KINDS), kind, replace(row, pending_s=0.0, recovering_s=0.0)
        )


@dataclass
class World:
    """A platform with one service, whose alerts are sent by webhook and mail."""

    platform: Platform
    server: FakeAnthropic
    hook: Hook
    mails: MailServer
    home: Path

    async def ask(self, *script: object, **changes: Any) -> None:
        """Send one query, which the provider answers as scripted."""
        self.server.script(*script)  # type: ignore[arg-type]
        with suppress(ExternalServiceError):
            await self.platform.query(replace(QUESTION, on_limit="refuse", **changes))

    async def heard(self, what: str, kind: str) -> dict[str, Any]:
        """Wait until webhook and mailbox have that notice of this alert kind; returns the webhook's."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = [
                    one
                    for taken in self.hook.taken
                    for one in taken.json["alerts"]
                    if (one["what"], one["kind"]) == (what, kind)
                ]
                if told and any(
                    kind in letter.get_content() and _is(what, letter) for letter in self.mails.mails
                ):
                    return dict(told[0])
                await asyncio.sleep(0.01)


def _is(what: str, letter: Any) -> bool:
    return ("resolved:" in letter["Subject"]) == (what == "resolved")


@asynccontextmanager
async def world(home: Path, *, database: DatabaseOptions | None = None) -> AsyncIterator[World]:
    async with FakeAnthropic(strict=False) as server, Hook() as hook, MailServer() as mails:
        # Longer than a test may take: on a slow machine a shorter opening might be over before it is seen.
        breaker = BreakerOptions(failure_threshold=3, recovery_s=3600.0)
        alerts = AlertOptions(
            webhook=hook.url,
            webhook_secret=SECRET,
            email=("ops@example.com",),
            smtp_url=f"smtp://{HOST}:{mails.port}",
            sender="koo@example.com",
            public_url="https://koo.example",
        )
        chosen = replace(
            options(home, server, breaker=breaker, retry=RetryOptions(attempts_max=1)), alerts=alerts
        )
        platform = Platform(chosen if database is None else replace(chosen, database=database))
        async with platform:
            yield World(platform, server, hook, mails, home)


async def refuse_the_key(world: World) -> None:
    await world.ask(error(401, "authentication_error"))


async def take_the_key_again(world: World) -> None:
    await world.platform.check_services("claude")


async def fail(world: World) -> None:
    for _ in range(3):
        await world.ask(FAILED)


async def reset(world: World) -> None:
    world.platform.reset_service("claude")


async def fail_another_model(world: World) -> None:
    await world.ask(answer())
    for _ in range(3):
        await world.ask(FAILED, model=OTHER_MODEL)


async def pause(world: World) -> None:
    await world.platform.database.health_check()
    world.platform.pause_database()


async def resume(world: World) -> None:
    world.platform.resume_database()


Step = Callable[[World], Awaitable[None]]
COURSES: dict[str, tuple[Step, Step]] = {
    "service_down": (fail, reset),
    "circuit_open": (fail_another_model, reset),
    "database_paused": (pause, resume),
}
"""How an alert starts, and how it ends."""


@pytest.mark.parametrize("kind", COURSES)
def test_an_alert_reaches_the_receivers_and_so_does_its_end(kind: str, tmp_path: Path) -> None:
    begin, end = COURSES[kind]

    async def main() -> None:
        async with world(tmp_path) as w:
            await begin(w)
            firing = await w.heard("firing", kind)
            assert firing["advice"] and firing["runbook_url"].endswith(f"/runbook/{kind}")
            assert firing["ended_at"] is None
            await end(w)
            resolved = await w.heard("resolved", kind)
            assert resolved["started_at"] == firing["started_at"]
            assert resolved["ended_at"] is not None and resolved["lasted_s"] >= 0
            told = [(one["kind"], one["what"]) for taken in w.hook.taken for one in taken.json["alerts"]]
            assert told.count((kind, "firing")) == told.count((kind, "resolved"))

    asyncio.run(main())


def test_a_database_outage_and_its_end_are_notified(tmp_path: Path, postgres16: PostgresServer) -> None:
    async def main() -> None:
        address = urlsplit(postgres16.url("psycopg", postgres16.create_database()))
        async with FaultProxy(str(address.hostname), address.port or 5432) as proxy:
            url = proxy.through(address.geturl())
            async with world(tmp_path, database=DatabaseOptions(url=url, probe_timeout_s=20.0)) as w:
                await w.platform.database.health_check()
                await proxy.refuse()
                proxy.reset_all()
                await w.platform.database.health_check()
                firing = await w.heard("firing", "database_unavailable")
                assert firing["severity"] == "critical" and firing["refuses"]
                await proxy.accept()
                await w.platform.database.health_check()
                resolved = await w.heard("resolved", "database_unavailable")
                assert resolved["lasted_s"] > 0

    asyncio.run(main())


def test_a_refused_key_is_notified_with_its_reason_and_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            await refuse_the_key(w)
            firing = await w.heard("firing", "service_down")
            assert "refused the key" in firing["message"]
            assert firing["refuses"]
            (letter,) = w.mails.mails
            text = letter.get_content()
            assert "Set a valid key and restart" in " ".join(text.split())
            assert "https://koo.example/dashboard/#ai:claude" in text
            await take_the_key_again(w)
            await w.heard("resolved", "service_down")
            assert {letter["References"] for letter in w.mails.mails} == {letter["References"]}

    asyncio.run(main())


def test_a_providers_error_text_is_sent_as_plain_text(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            evil = "\r\nBcc: all@example.com \x1b[2J\u202e <!channel> <script>alert(1)</script>"
            await w.ask(error(401, "authentication_error", evil))
            await w.heard("firing", "service_down")
            (letter,) = w.mails.mails
            assert letter["Bcc"] is None and letter.get_content_type() == "text/plain"
            said = json.dumps(w.hook.taken[0].json, ensure_ascii=False)
            assert said.isprintable()

    asyncio.run(main())


def test_a_failing_channel_is_reported_through_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koo.alerts.own_rules.FAILING_S", 1e-9)

    async def main() -> None:
        async with world(tmp_path) as w:
            w.hook.always = hook_answer(503, "")
            await refuse_the_key(w)
            await until(lambda: any("channel:webhook" in one["Subject"] for one in w.mails.mails), PATIENCE_S)
            (letter,) = (one for one in w.mails.mails if "channel:webhook" in one["Subject"])
            assert "1 notice is waiting for webhook: it answered with status 503" in letter.get_content()

    asyncio.run(main())


def test_notices_waiting_when_koo_stops_are_sent_after_the_next_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hook() as hook:
            url = hook.url
            await hook.__aexit__()
            at = replace(options(tmp_path), alerts=AlertOptions(webhook=url))
            async with Platform(at) as koo:
                koo.override_service("claude", Override.FORCED_OPEN)
                await until(lambda: koo.parts.outbox.statuses()[0]["state"] == "failing", PATIENCE_S)
            with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as state:
                # Simulate the end of its pause.
                state.execute("UPDATE koo_channels SET next_ms = 0")
                state.execute("UPDATE koo_deliveries SET next_ms = 0")
        async with Hook() as hook:
            at = replace(options(tmp_path), alerts=AlertOptions(webhook=hook.url))
            async with Platform(at) as koo:
                await hook.until(1)
                assert hook.taken[0].json["alerts"][0]["kind"] == "service_down"
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        (row,) = (await koo.alert_deliveries())["deliveries"]
                        if row["state"] == "sent":
                            break
                        await asyncio.sleep(0.01)
                assert row["attempts"] >= 2

    asyncio.run(main())


@pytest.mark.slow
def test_a_delivery_of_a_killed_process_is_sent_again_under_the_same_key(
    tmp_path: Path,
) -> None:
    """The receiver may have it, but koo cannot know."""

    async def start(*arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.platform.alert_sender", str(tmp_path), *arguments, cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def main() -> None:
        async with Hook() as hook:
            hook.answers = [SILENT]
            first = await start(hook.url, "forced")
            await hook.until(1)
            first.kill()
            await first.wait()
            with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as state:
                (lease,) = state.execute("SELECT lease_ends_ms FROM koo_channels").fetchone()
                assert lease > 0
                # Simulate the end of its lease.
                state.execute("UPDATE koo_channels SET lease_ends_ms = 1")
            second = await start(hook.url)
            try:
                await hook.until(2)
                one, again = hook.taken[:2]
                assert one.headers["webhook-id"] == again.headers["webhook-id"]
                assert int(one.headers["koo-epoch"]) < int(again.headers["koo-epoch"])
                assert one.body == again.body
                await until(lambda: rows(tmp_path) == [("firing", "sent", 2)], PATIENCE_S)
            finally:
                second.kill()
                await second.wait()

    asyncio.run(main())


def rows(home: Path) -> list[Any]:
    with closing(sqlite3.connect(home / "state.db")) as state:
        return state.execute(
            "SELECT n.what, d.state, d.attempts FROM koo_notices n, koo_deliveries d WHERE d.notice = n.key "
            "AND n.what = 'firing'"
        ).fetchall()
