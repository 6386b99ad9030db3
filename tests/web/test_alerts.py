"""Alerts over HTTP: history, acknowledgements, silences. All processes show the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from koo.errors import CallerMistake, DatabaseUnavailable, InvalidRequest
from koo.monitoring import alert_shapes, shapes
from koo.platform import Platform
from koo.policies.breaker import Override
from koo.storage.base import StoreUnavailable
from koo.testing.providers import FakeAnthropic, answer, error
from koo.upkeep import KeepTime
from koo.web import create_app
from tests.web.exact import check_exactly
from tests.web.serving import Client, claude, platform, served

ALERTS = "/api/v1/monitoring/alerts"
Work = Callable[[Client, Platform], Awaitable[None]]


def with_server(folder: Path, work: Work, default: Any = None, **more: Any) -> None:
    async def main() -> None:
        async with FakeAnthropic(default=default or answer()) as fake:
            koo = platform(folder, claude(fake), **more)
            async with served(create_app(koo)) as client:
                await work(client, koo)

    asyncio.run(main())


async def look(koo: Platform) -> None:
    """Do the process's work of one second."""
    await KeepTime(koo.parts).step()


async def down(client: Client, koo: Platform) -> dict[str, Any]:
    """Open the breaker of the only service, and return its alert as listed."""
    koo.override_service("claude", Override.FORCED_OPEN)
    await look(koo)
    listed: list[dict[str, Any]] = (await client.get(ALERTS)).body["alerts"]
    return next(alert for alert in listed if alert["kind"] == "service_down")


async def act(client: Client, path: str, body: Any = None, *, status: int = 200) -> Any:
    reply = await client.post(f"{ALERTS}/{path}", json=body)
    assert reply.status == status, reply.text
    return reply.body


def test_a_listed_alert_has_its_phase_and_its_notices(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        alert = await down(client, koo)
        check_exactly(alert, shapes.Alert)
        assert (alert["phase"], alert["active"], alert["acknowledged"]) == ("firing", True, None)
        assert (alert["silenced"], alert["inhibited_by"]) == (None, None)
        assert alert["notified"]["state"] == "no_channel" and alert["since"] == alert["timestamp"]

    with_server(tmp_path, work)


def test_an_acknowledgement_is_listed_until_the_alert_ends_or_it_is_withdrawn(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        alert = await down(client, koo)
        path = f"{alert['id']}/acknowledge"
        done = await act(client, path, {"by": "ada", "for_s": 600, "note": "on\nit"})
        check_exactly(done, alert_shapes.AlertAct)
        assert done["message"] == "service_down of ai:claude is acknowledged"
        for said in (done["alert"]["acknowledged"], (await down(client, koo))["acknowledged"]):
            assert (said["by"], said["note"]) == ("ada", "on it"), "a line break would break a message"
            until = datetime.fromisoformat(said["until"]) - datetime.fromisoformat(said["at"])
            assert until == timedelta(seconds=600)
        done = await act(client, f"{alert['id']}/unacknowledge")
        assert done["alert"]["acknowledged"] is None
        later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        done = await act(client, path, {"by": "ben", "until": later.isoformat()})
        assert done["alert"]["acknowledged"]["until"] == later.isoformat()
        koo.override_service("claude", Override.NONE)
        await look(koo)
        problem = await act(client, path, {"by": "ada"}, status=404)
        assert problem["detail"] == "alerts: no alert with that id is active"

    with_server(tmp_path, work)


def test_the_history_has_ended_alerts_and_their_acknowledgements(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        alert = await down(client, koo)
        await act(client, f"{alert['id']}/acknowledge", {"by": "ada"})
        koo.override_service("claude", Override.NONE)
        await look(koo)
        page = (await client.get(f"{ALERTS}/history")).body
        check_exactly(page, alert_shapes.AlertHistory)
        (past,) = [one for one in page["episodes"] if one["kind"] == "service_down"]
        assert (past["id"], past["phase"], past["acknowledged"]["by"]) == (alert["id"], "resolved", "ada")
        assert past["ended_at"] >= past["timestamp"] == alert["timestamp"]
        listed = (await client.get(ALERTS)).body["alerts"]
        assert [one["type"] for one in listed if one["id"] == alert["id"]] == ["info"], (
            "an ended alert has type info"
        )

    with_server(tmp_path, work)


def test_the_history_is_read_page_by_page_and_between_two_times(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        for _ in range(3):
            await down(client, koo)
            koo.override_service("claude", Override.NONE)
            await look(koo)
        whole = (await client.get(f"{ALERTS}/history")).body["episodes"]
        assert len(whole) >= 3
        found: list[Any] = []
        cursor = ""
        while cursor is not None:
            page = (await client.get(f"{ALERTS}/history?limit=2{cursor and '&cursor=' + cursor}")).body
            found += page["episodes"]
            cursor = page["next_cursor"]
        assert found == whole
        none = (
            await client.get(f"{ALERTS}/history?since=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z")
        ).body
        assert none["episodes"] == [] and none["since"] == "2020-01-01T00:00:00+00:00"
        # koo's own form of a time, pasted into a URL: an unescaped + means a space there.
        pasted = f"{ALERTS}/history?since=2020-01-01T03:00:00.125+03:00&until=2020-01-02T00:00:00+00:00"
        range_of = (await client.get(pasted)).body
        assert (range_of["since"], range_of["until"]) == (
            "2020-01-01T00:00:00.125000+00:00", "2020-01-02T00:00:00+00:00",
        )  # fmt: skip

    with_server(tmp_path, work)


def test_a_silence_is_listed_keeps_notices_back_and_ends(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        asked = {"component": "ai:*", "for_s": 3600, "by": "ada", "reason": "key rotation"}
        made = await act(client, "silences", asked)
        check_exactly(made, alert_shapes.SilenceAct)
        silence = made["silence"]
        assert (silence["kind"], silence["component"], silence["reason"]) == ("*", "ai:*", "key rotation")
        listed = (await client.get(f"{ALERTS}/silences")).body
        check_exactly(listed, alert_shapes.Silences)
        assert listed["silences"] == [silence]
        alert = await down(client, koo)
        assert alert["silenced"] == silence and alert["notified"]["state"] == "silenced"
        reply = await client.ask("DELETE", f"{ALERTS}/silences/{silence['id']}")
        assert reply.status == 200 and reply.body["silence"]["ends_at"] < silence["ends_at"]
        assert (await client.get(f"{ALERTS}/silences")).body["silences"] == []
        assert (await down(client, koo))["notified"]["state"] == "no_channel"
        gone = await client.ask("DELETE", f"{ALERTS}/silences/{silence['id']}")
        assert gone.status == 404 and gone.body["detail"] == "alerts: no silence with that id is in force"

    with_server(tmp_path, work)


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("silences", {"by": "ada", "reason": "x"}, "set the end"),
        (
            "silences",
            {"by": "ada", "reason": "x", "for_s": 60, "ends_at": "2020-01-01T00:00:00Z"},
            "set the end",
        ),
        (
            "silences",
            {"by": "ada", "reason": "x", "ends_at": "2020-01-01T00:00:00Z"},
            "in the future and within 30",
        ),
        (
            "silences",
            {"by": "ada", "reason": "x", "ends_at": "2999-01-01T00:00:00"},
            "a time with a time zone",
        ),
        ("silences", {"by": "ada", "reason": "x", "for_s": 2_592_001}, "for_s"),
        ("silences", {"by": "ada", "for_s": 60}, "reason: is missing"),
        ("silences", {"by": "ada", "for_s": 60, "reason": " \n"}, "reason must not be empty"),
        ("silences", {"by": "\u200b", "for_s": 60, "reason": "x"}, "`by` must say who"),
        ("silences", {"by": "ada", "for_s": 60, "reason": "x", "kindd": "*"}, "did you mean kind?"),
        ("1/acknowledge", {}, "by: is missing"),
        ("1/acknowledge", {"by": "ada", "for_s": 0}, "for_s"),
        ("1/acknowledge", {"by": "ada", "until": "tomorrow"}, "until"),
    ],
)
def test_an_invalid_body_is_the_callers_mistake(tmp_path: Path, path: str, body: Any, detail: str) -> None:
    async def work(client: Client, koo: Platform) -> None:
        problem = await act(client, path, body, status=422)
        assert detail in problem["detail"]

    with_server(tmp_path, work)


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("cursor=page-2", "cursor must be the next_cursor"),
        ("since=2026-01-02T00:00:00", "a time with a time zone"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "`since` must not be after `until`"),
        ("until=yesterday", "until"),
    ],
)
def test_an_invalid_range_is_the_callers_mistake(tmp_path: Path, asked: str, detail: str) -> None:
    async def work(client: Client, koo: Platform) -> None:
        reply = await client.get(f"{ALERTS}/history?{asked}")
        assert reply.status == 422 and detail in reply.body["detail"], reply.text

    with_server(tmp_path, work)


def test_a_read_token_cannot_act(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        look_only = {"Authorization": "Bearer reading-token-of-a-test"}
        assert (await client.ask("GET", f"{ALERTS}/history", headers=look_only)).status == 200
        assert (await client.ask("GET", f"{ALERTS}/silences", headers=look_only)).status == 200
        for method, path in (
            ("POST", "1/acknowledge"),
            ("POST", "1/unacknowledge"),
            ("POST", "silences"),
            ("DELETE", "silences/1"),
        ):
            assert (await client.ask(method, f"{ALERTS}/{path}", headers=look_only)).status == 403, path

    tokens = {"token": "acting-token-of-a-test", "read_token": "reading-token-of-a-test"}
    with_server(tmp_path, work, **tokens)


def test_without_the_store_nothing_is_promised_that_other_processes_would_not_know(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        alert = await down(client, koo)

        async def fail(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("the state store is unreachable")

        koo.parts.store.executor.run = fail  # type: ignore[attr-defined]
        assert (await client.get(ALERTS)).status == 200, "what this process sees is listed without it"
        for method, path, body in (
            ("GET", "history", None),
            ("GET", "silences", None),
            ("POST", f"{alert['id']}/acknowledge", {"by": "ada"}),
            ("POST", f"{alert['id']}/unacknowledge", None),
            ("POST", "silences", {"by": "ada", "reason": "x", "for_s": 60}),
            ("DELETE", "silences/1", None),
        ):
            reply = (
                await client.ask(method, f"{ALERTS}/{path}", json=body)
                if body
                else await client.ask(method, f"{ALERTS}/{path}")
            )
            assert reply.status == 503 and reply.headers["Retry-After"] == "5", path
            assert reply.body["detail"].startswith("state store: the state store is unreachable")
        del koo.parts.store.executor.run  # type: ignore[attr-defined]

    with_server(tmp_path, work)


def test_python_and_http_do_the_same_from_any_loop(tmp_path: Path) -> None:
    async def work(client: Client, koo: Platform) -> None:
        alert = await down(client, koo)
        assert koo.alerts.current() == koo.active_alerts()

        async def elsewhere() -> None:
            done = await koo.alerts.acknowledge(alert["id"], by="ada", for_s=60)
            assert done["acknowledged"] is not None and done["acknowledged"]["by"] == "ada"
            silence = await koo.alerts.silence(component="ai:*", for_s=60, by="ada", reason="known")
            assert await koo.alerts.silences() == [silence]
            await koo.alerts.end_silence(silence["id"])
            assert (await koo.alerts.unacknowledge(alert["id"]))["acknowledged"] is None
            assert alert["id"] in [one["id"] for one in (await koo.alerts.history())["episodes"]]
            with pytest.raises(CallerMistake, match="no alert with that id"):
                await koo.alerts.unacknowledge("nothing")
            with pytest.raises(InvalidRequest, match="set the end"):
                await koo.alerts.silence(by="ada", reason="known")

        await asyncio.to_thread(asyncio.run, elsewhere())

    with_server(tmp_path, work)


def test_after_a_reset_the_list_and_the_verdict_change_before_the_next_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koo.upkeep.TICK_S", 3600.0)  # no beats except those of `look`
    file = tmp_path / "app.db"
    file.mkdir()

    async def verdict(client: Client) -> tuple[str, list[str]]:
        health = (await client.get("/api/v1/monitoring/health")).body
        listed = (await client.get(ALERTS)).body["alerts"]
        return health["overall_health"], [one["kind"] for one in listed if one["active"]]

    async def work(client: Client, koo: Platform) -> None:
        await down(client, koo)
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable):
                async with koo.database.session_scope() as session:
                    await session.execute(text("SELECT 1"))
        await look(koo)
        assert await verdict(client) == ("unhealthy", ["database_unavailable", "service_down"])
        file.rmdir()
        await koo.database.health_check()
        reset = "/api/v1/monitoring/database/reset-circuit-breaker"
        assert (await client.post(reset)).status == 200
        assert (await verdict(client))[1] == ["service_down"]
        koo.override_service("claude", Override.NONE)
        assert await verdict(client) == ("healthy", [])
        for _ in range(3):
            await client.post("/api/v1/ai/query", json={"service": "claude", "prompt": "Hi"})
        await look(koo)
        assert (await verdict(client))[1] == ["service_down"]
        assert (await client.post("/api/v1/ai/services/claude/reset-errors")).status == 200
        assert await verdict(client) == ("healthy", [])
        await look(koo)
        ended = (await client.get(f"{ALERTS}/history")).body["episodes"]
        assert [one["kind"] for one in ended if one["ended_at"]].count("service_down") == 2

    with_server(tmp_path, work, default=error(500, "api_error"))
