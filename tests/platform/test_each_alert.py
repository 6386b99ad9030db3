"""Each kind of alert, from its cause to a real webhook receiver and a real mail server, and until its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from koo.alerts.kinds import KINDS
from tests.platform.alert_courses import COURSES
from tests.platform.alert_stage import Receivers, stage


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receivers]:
    with Receivers.open(tmp_path_factory.mktemp("empty")) as opened:
        yield opened


def test_each_alert_kind_has_a_scenario() -> None:
    assert COURSES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", COURSES)
def test_each_alert_kind_and_its_end_are_sent_by_webhook_and_mail(
    kind: str,
    tmp_path: Path,
    receivers: Receivers,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    course = COURSES[kind]

    async def main() -> None:
        async with stage(
            course, tmp_path, receivers, monkeypatch, lambda: request.getfixturevalue("postgres18")
        ) as on:
            await course.begin(on)
            firing = await on.heard("firing", kind)
            assert firing["severity"] == KINDS[kind].severity and firing["ended_at"] is None
            assert firing["advice"] and firing["runbook_url"].endswith(f"/runbook/{kind}")
            await course.end(on)
            resolved = await on.heard("resolved", kind)
            assert resolved["started_at"] == firing["started_at"]
            assert resolved["ended_at"] is not None and resolved["lasted_s"] >= 0
            told = [(one["kind"], one["what"]) for one in on.told]
            assert told.count((kind, "firing")) == told.count((kind, "resolved")) == 1

    asyncio.run(main())
