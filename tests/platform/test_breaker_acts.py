"""An operator's override of a breaker: in every process, with who and why, until its end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from koo.clock import SYSTEM_CLOCK
from koo.errors import CallerMistake, CircuitOpen, InvalidRequest
from koo.events import Event, OverrideSet
from koo.platform import Platform
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic
from tests.platform.test_platform import MODEL, QUESTION, options, run

NAME = f"claude/{MODEL}"


def state_of(platform: Platform, name: str) -> str:
    return platform.breakers.statuses(name)[0]["state"]


def is_forced(platform: Platform, name: str) -> bool:
    return state_of(platform, name) == "forced_open"


def test_an_override_applies_in_every_process_even_in_one_that_starts_later(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as one, Platform(options(tmp_path, server)) as two:
            await two.parts.sharing.catch_up()
            for name in (NAME, "database"):
                one.breakers.trip(name, by="ada", reason="it returns\nnonsense")
                await until(partial(is_forced, two, name))
            with pytest.raises(CircuitOpen, match="forced open by ada: it returns nonsense") as refused:
                await two.query(QUESTION)
            assert refused.value.retry_after_s is None
            began = SYSTEM_CLOCK.wall()
            async with Platform(options(tmp_path, server)) as later:
                assert later.breakers.statuses("claude")[0]["reason"].startswith("forced open by ada")
                act = later.services["claude"].default_guard.breaker.act
                assert act is not None and act.at is not None and act.at <= began, "when ada set it"
                assert state_of(later, "database") == "forced_open", "created after the override"
            two.breakers.reset(NAME, by="bob", reason="mended")
            two.breakers.reset("database", by="bob")
            await until(lambda: state_of(one, NAME) == state_of(one, "database") == "closed")
            async with Platform(options(tmp_path, server)) as later:
                assert state_of(later, NAME) == state_of(later, "database") == "closed"
            # The process that refused is queried first. The request makes it write its incidents, which otherwise takes
            # up to a second.
            for told in (await two.incidents.list(), await one.incidents.list()):
                guards = {one["guard"]: one for one in told["incidents"]}
                assert guards[NAME]["processes"] == 3 and guards[NAME]["refused"] == 1
                whole = (await one.incidents.find(guards[NAME]["id"]))["incident"]
                assert [(act["what"], act["by"], act["reason"]) for act in whole["acts"]] == [
                    ("forced open", "ada", "it returns nonsense"),
                    ("reset", "bob", "mended"),
                ]

    run(test)


def test_an_override_ends_at_its_time_and_refusals_give_that_time(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        told: list[Event] = []
        async with Platform(options(tmp_path, server)) as platform:
            platform.events.listen(told.append)
            act = platform.breakers.trip("claude", reason="a drill", for_s=0.001)
            guard = platform.services["claude"].default_guard
            wait_s = guard.breaker.refusal(guard.now())[1]
            assert 0 < wait_s <= 1.001 and act.until is not None
            await until(lambda: state_of(platform, "claude") == "closed")
            await platform.query(QUESTION)
            await platform.query(replace(QUESTION, model="claude-haiku-5-5"))
        ends = [event.act.reason for event in told if isinstance(event, OverrideSet) and event.act]
        assert ends == ["a drill", "it expired"]

    run(test)


def test_an_alert_has_the_id_of_its_incident(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        async with Platform(options(tmp_path, server)) as platform:
            platform.breakers.trip("claude", by="ada", reason="a drill")
            (alert,) = [one for one in platform.active_alerts() if one["kind"] == "service_down"]
            found = await platform.incidents.find(alert["data"]["incident"])
            assert found["incident"]["guard"] == NAME

    run(test)


def test_an_unknown_breaker_name_is_refused(tmp_path: Path) -> None:
    platform = Platform(options(tmp_path))
    with pytest.raises(CallerMistake, match=f"the known ones are: .*{NAME}"):
        platform.breakers.trip("nobody")
    with pytest.raises(InvalidRequest, match="within 30 days"):
        platform.breakers.trip("claude", for_s=31 * 86_400)
