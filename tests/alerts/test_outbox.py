"""The outbox answers "why was I not notified?": the channels, their states, and the delivery of each notice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from koo.alert_options import AlertOptions
from koo.alerts.outbox import NOT_CONFIGURED, Outbox
from koo.deadlines import Deadlines
from koo.errors import CallerMistake
from koo.monitoring.notice_shapes import AlertDelivery, ChannelStatus
from koo.monitoring.shapes import Alert
from koo.network_options import NetworkOptions
from koo.notices import Notice
from koo.storage.store import SqlStore
from koo.testing.clock import StandingClock
from tests.alerts.hooks import SILENT, Hook, answer
from tests.alerts.mails import HOST, MailServer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Rig:
    """One process's outbox on a real store, with a clock that stands still until it is moved."""

    def __init__(self, folder: Path, options: AlertOptions) -> None:
        self.clock = StandingClock()
        self.store = SqlStore(f"sqlite:///{folder / 'state.db'}", clock=self.clock, timeout_s=20.0)
        deadlines = Deadlines()
        deadlines.bind(asyncio.get_running_loop())
        self.outbox = Outbox(
            options,
            NetworkOptions(),
            self.store,
            clock=self.clock,
            deadlines=deadlines,
            publish=lambda event: None,
        )

    async def step(self, after_s: float = 1.0) -> None:
        self.clock.now += after_s
        for courier in self.outbox.couriers:
            await courier.step()

    async def put(self, key: str = "a1:firing", **changes: Any) -> None:
        words: dict[str, Any] = {
            "key": key,
            "what": "firing",
            "fingerprint": "circuit_open:ai:claude",
            "kind": "circuit_open",
            "severity": "critical",
            "component": "ai:claude",
            "message": "the circuit breaker is open",
            "started_at": self.clock.now,
        }
        await self.store.notices.put(Notice(**words | changes))

    async def deliveries(self) -> list[AlertDelivery]:
        return (await self.outbox.deliveries([]))["deliveries"]

    def status(self, channel: str = "webhook") -> ChannelStatus:
        return next(one for one in self.outbox.statuses() if one["channel"] == channel)


def on_rig(
    folder: Path, main: Callable[[Rig, Hook, MailServer], Awaitable[None]], *channels: str, **more: Any
) -> None:
    async def run() -> None:
        async with Hook() as hook, MailServer() as mails:
            chosen: dict[str, Any] = {
                "webhook": {"webhook": hook.url},
                "slack": {"slack": hook.url},
                "email": {
                    "email": ("ops@example.com",),
                    "smtp_url": f"smtp://{HOST}:{mails.port}",
                    "sender": "koo@example.com",
                },
            }
            options = {name: value for channel in channels for name, value in chosen[channel].items()}
            rig = Rig(folder, AlertOptions(**options | more))
            try:
                await main(rig, hook, mails)
            finally:
                await rig.outbox.finish()
                await rig.store.close()

    asyncio.run(run())


def test_every_channel_sends_a_notice(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        await rig.step()
        await rig.put()
        await rig.step()
        assert sorted("alerts" in taken.json for taken in hook.taken) == [False, True]
        assert len(mails.mails) == 1
        for row in await rig.deliveries():
            assert (row["state"], row["attempts"]) == ("sent", 1)
            assert row["reason"] == "sent 1.0 s after it was written"
        await rig.step()
        assert {one["state"] for one in rig.outbox.statuses()} == {"ok"}

    on_rig(tmp_path, main, "webhook", "slack", "email")


def test_a_message_in_progress_when_koo_closes_is_free_for_another_process_immediately(
    tmp_path: Path,
) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        await rig.step()
        await rig.put()
        hook.answers = [SILENT]
        sending = asyncio.create_task(rig.step())
        await hook.until(1)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        other = SqlStore(f"sqlite:///{tmp_path / 'state.db'}", clock=rig.clock, timeout_s=20.0)
        try:
            assert await other.notices.take("webhook") is None
            await rig.outbox.finish()
            parcel = await other.notices.take("webhook")
            assert parcel is not None and parcel.key == "a1:firing"
        finally:
            await other.close()

    on_rig(tmp_path, main, "webhook")


def test_without_a_channel_the_answer_says_what_to_set(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        await rig.put()
        found = await rig.outbox.deliveries([alert()])
        assert (found["configured"], found["note"], found["deliveries"]) == (False, NOT_CONFIGURED, [])
        assert [one["reason"] for one in found["untold"]] == [NOT_CONFIGURED]
        with pytest.raises(CallerMistake, match="no channel is configured"):
            await rig.outbox.test()

    on_rig(tmp_path, main)


def alert(**changes: Any) -> Alert:
    known: Any = {
        "type": "critical",
        "component": "database",
        "message": "it is gone",
        "timestamp": "2026-01-01T00:00:00+00:00",
        "kind": "database_unavailable",
        "active": True,
        "ended_at": None,
        "data": {},
        "id": "b2",
        "phase": "firing",
        "since": "2026-01-01T00:00:00+00:00",
        "acknowledged": None,
        "silenced": None,
        "inhibited_by": None,
        "notified": {"state": "notified", "at": "2026-01-01T00:00:00+00:00", "reason": ""},
    }
    made: Alert = known | changes
    return made


def test_an_alert_without_a_notice_has_the_engines_reason(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        await rig.step()
        await rig.put("a1:firing")
        await rig.step()
        silenced: Any = {"state": "silenced", "at": None, "reason": "ada silenced it until noon"}
        found = await rig.outbox.deliveries(
            [
                alert(id="a1"),
                alert(id="c3", notified=silenced),
                alert(id="d4", ended_at="2026-01-01T00:00:01+00:00", notified=silenced),
            ]
        )
        assert [(one["id"], one["state"], one["reason"]) for one in found["untold"]] == [
            ("c3", "silenced", "ada silenced it until noon")
        ]

    on_rig(tmp_path, main, "webhook")


def test_each_state_of_a_delivery_has_a_reason_in_one_sentence(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        async def reasons() -> dict[str, str]:
            return {row["key"]: row["reason"] for row in await rig.deliveries()}

        await rig.step()
        await rig.put("low:firing", severity="warning")
        await rig.put("a1:firing")
        hook.answers = [answer(503, "", retry_after="60")]
        await rig.step()
        await rig.step()
        assert await reasons() == {
            "low:firing": "warning is below the lowest severity that was sent when it was written",
            "a1:firing": "waits for its next attempt after one attempt: it answered with status 503",
        }
        await rig.put("b2:firing")
        await rig.step()
        status = rig.status()
        assert (status["state"], status["waiting"], status["reason"]) == (
            "failing",
            2,
            "it answered with status 503",
        )
        assert status["failing_since"] is not None and status["next_attempt"] is not None
        hook.always = answer(400, "no")
        for _ in range(15):
            await rig.step(301)
        assert (await reasons())["a1:firing"].startswith("given up after ")
        assert (await reasons())["a1:firing"].endswith(": it answered with status 400 (it says: no)")
        assert rig.status()["given_up"] == 2

    on_rig(tmp_path, main, "webhook", severity="critical")


def test_a_delivery_for_another_processs_channel_says_so(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        await rig.store.notices.join(["email"])
        await rig.step()
        await rig.put()
        await rig.store.notices.owe("email", ["critical"])
        await rig.step()
        (reason,) = [row["reason"] for row in await rig.deliveries() if row["channel"] == "email"]
        assert (
            reason == "waits for a process that has the channel email configured; this one does not have it"
        )

    on_rig(tmp_path, main, "webhook")


def test_a_test_is_sent_immediately_and_reports_its_result(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        hook.answers = [answer(404, "no_service")]
        found = {one["channel"]: one for one in (await rig.outbox.test())["results"]}
        assert found.keys() == {"webhook", "email"}
        assert not found["webhook"]["sent"]
        assert found["webhook"]["error"] == (
            "it answered with status 404: nothing exists at this address: check it (it says: no_service)"
        )
        assert found["email"]["sent"] and found["email"]["error"] is None
        assert "this is a test" in mails.mails[0]["Subject"]
        assert found["webhook"]["place"] == f"http://{HOST}:{hook.port}"
        (again,) = (await rig.outbox.test("webhook"))["results"]
        assert again["sent"]
        assert hook.taken[-1].json["type"] == "koo.alert.test"
        assert hook.taken[-1].headers["webhook-signature"].startswith("v1,")
        with pytest.raises(CallerMistake, match="there is no channel 'slack'; configured: webhook, email"):
            await rig.outbox.test("slack")

    on_rig(tmp_path, main, "webhook", "email", webhook_secret=SECRET)


def test_a_test_reports_an_address_that_was_refused_while_others_were_accepted(tmp_path: Path) -> None:
    async def main(rig: Rig, _: Hook, mails: MailServer) -> None:
        mails.refuses = {"gone@example.com"}
        (found,) = (await rig.outbox.test())["results"]
        (warning,) = found["warnings"]
        assert found["sent"] and warning.startswith("1 of 2 addresses were refused (status 550: ")

    on_rig(tmp_path, main, "email", email=("ops@example.com", "gone@example.com"))


def test_a_mail_that_one_address_refuses_for_now_is_sent_to_it_again(tmp_path: Path) -> None:
    async def main(rig: Rig, _: Hook, mails: MailServer) -> None:
        mails.refuses_for_now = {"grey@example.com"}
        await rig.step()
        await rig.put()
        await rig.step()
        (row,) = await rig.deliveries()
        assert row["state"] == "waiting" and "1 of 2 addresses were refused for now" in row["reason"]
        await rig.put("a2:firing")
        await rig.step()
        assert len(mails.to) == 2, "the next message does not wait for this one"
        mails.refuses_for_now.clear()
        for _second in range(12):
            await rig.step()
        assert [one["state"] for one in await rig.deliveries()] == ["sent", "sent"]
        assert sorted(mails.to) == [*[["grey@example.com"]] * 2, *[["ops@example.com"]] * 2]

    on_rig(tmp_path, main, "email", email=("ops@example.com", "grey@example.com"))


def test_the_outbox_shows_no_secret_of_a_channel(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        await rig.step()
        await rig.put()
        for status in (500, 404, 302):
            hook.always = answer(status, hook.url, location=hook.url)
            await rig.step(400)
        shown = str(await rig.outbox.deliveries([])) + str(await rig.outbox.test())
        assert rig.status()["state"] == "failing"
        for secret in ("T0k3n", "s3cret", SECRET):
            assert secret not in shown

    on_rig(tmp_path, main, "webhook", webhook_secret=SECRET)


def test_while_the_store_is_away_the_answer_contains_this_processs_own_deliveries(tmp_path: Path) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        await rig.step()
        (tmp_path / "state.db").unlink()
        (tmp_path / "state.db").mkdir()
        rig.outbox.alone([notice_of(rig)])
        await rig.step()
        found = await rig.outbox.deliveries([])
        assert found["store"] is not None and "state store" in found["store"]
        assert [(row["key"], row["state"]) for row in found["deliveries"]] == [("a1:firing", "sent")]
        assert hook.taken[0].json["note"].startswith("The state store cannot be reached")

    on_rig(tmp_path, main, "webhook")


def notice_of(rig: Rig) -> Notice:
    return Notice(
        key="a1:firing",
        what="firing",
        fingerprint="budget_local:state_store",
        kind="budget_local",
        severity="warning",
        component="state_store",
        message="the state store cannot be reached",
        started_at=rig.clock.now,
    )


def test_warnings_about_channels_are_logged_at_the_start_without_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(rig: Rig, hook: Hook, mails: MailServer) -> None:
        rig.outbox.begin()

    on_rig(tmp_path, main, webhook="http://hooks.example/s3cret", slack="https://hooks.slack.example/s3cret")
    assert "KOO_ALERT_WEBHOOK is a plain http:// address of another machine" in caplog.text
    assert "s3cret" not in caplog.text
