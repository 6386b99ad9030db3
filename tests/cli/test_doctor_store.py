"""`koo doctor` reports what the state store may lose, and what that means for money."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from koo.cli.doctor_store import state_store
from koo.clock import SYSTEM_CLOCK, SystemClock
from koo.options import PlatformOptions
from koo.platform import Platform
from koo.storage.durability import risks_of_file, risks_of_settings
from koo.testing.postgres import PostgresServer
from tests.cli.running import Here

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /srv/shared\\040files nfs4 rw 0 0
/dev/sdb1 /srv/shared\\040files/local ext4 rw 0 0
tmpfs /mem tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "words", "is_serious"),
    [
        ("/srv/shared files/koo-state.db", "a network file system (nfs4)", True),
        ("/mem/koo-state.db", "in memory", False),
        ("/var/tmp/koo/koo-state.db", "a folder for temporary files", False),
    ],
)
def test_the_risk_of_a_file_depends_on_its_location(path: str, words: str, is_serious: bool) -> None:
    (risk,) = risks_of_file(Path(path), MOUNTS)
    assert (words in risk.found, risk.is_serious) == (True, is_serious)


@pytest.mark.parametrize("path", ["/var/lib/koo/koo-state.db", "/srv/shared files/local/koo-state.db"])
def test_a_file_on_a_local_disk_is_not_reported(path: str) -> None:
    assert risks_of_file(Path(path), MOUNTS) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"fsync": "off", "full_pages": "off"}, "fsync is off"),
        ({"full_pages": "off"}, "full_page_writes is off"),
        ({"commit": "off"}, "does not wait for the disk"),
        ({"names": "*", "followers": 1}, None),
        ({"names": "*", "followers": 1, "commit": "local"}, "does not wait for it"),
        ({"followers": 1}, "1 standby is connected but not synchronous"),
        ({"followers": 3}, "3 standbys are connected but not synchronous"),
        ({"is_standby": True}, "accepts no writes"),
    ],
)
def test_the_risks_of_a_server_depend_on_its_settings(changed: dict[str, object], words: str | None) -> None:
    settings = {
        "fsync": "on", "full_pages": "on", "commit": "on", "names": "", "is_standby": False, "followers": 0
    }  # fmt: skip
    risks = risks_of_settings(**{**settings, **changed})  # type: ignore[arg-type]
    assert len(risks) == (words is not None)
    for risk in risks:
        assert words is not None and words in risk.found and risk.advice


def test_doctor_reports_the_risks_of_a_running_server(here: Here, postgres18: PostgresServer) -> None:
    """The tests' server has `fsync` off."""
    name = postgres18.create_database()
    postgres18.sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    here.set({"KOO_STATE_URL": postgres18.url("psycopg", name)})
    _, out, _ = here.run("doctor", "--json")
    found = [one for one in json.loads(out)["findings"] if one["subject"] == "state store"]
    assert [one["result"] for one in found] == ["ok", "warning", "warning"]
    assert "fsync is off" in found[1]["found"] and found[1]["advice"] == "set fsync = on"
    assert "loses the last bookings" in found[2]["found"]


@pytest.mark.parametrize(
    ("ahead_s", "found"),
    [
        (7200.0, "it is 2 h ahead of the clock of the state store's server"),
        (-300.0, "it is 5 min behind the clock of the state store's server"),
        (1.0, None),
    ],
)
def test_doctor_compares_the_clock_with_the_stores(
    ahead_s: float, found: str | None, postgres18: PostgresServer, tmp_path: Path
) -> None:
    class OtherClock(SystemClock):
        wall = staticmethod(lambda: SYSTEM_CLOCK.wall() + ahead_s)

    async def main() -> list[str]:
        url = postgres18.url("psycopg", postgres18.create_database())
        platform = Platform(PlatformOptions(home=tmp_path, state_url=url), clock=OtherClock())
        async with platform:
            return [check.found async for check in state_store(platform) if check.subject == "clock"]

    assert asyncio.run(main()) == ([] if found is None else [found])
