"""A slice of `make prove-once`: transfers whose COMMITs are cut are done once, and the judge sees doubles."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from koo.testing.postgres import Driver, PostgresServer
from proofs.once import on_postgres, on_sqlite


@pytest.mark.parametrize(("driver", "mode"), [("psycopg", "key"), ("asyncpg", "marker")])
def test_each_transfer_is_done_once_however_its_commit_is_lost(
    postgres18: PostgresServer, driver: Driver, mode: str
) -> None:
    bank, cuts, faults = asyncio.run(on_postgres(postgres18, driver, mode, 7, 80, kills=False))
    assert (cuts > 0, bank.unknown, faults) == (True, 0, [])


def test_on_sqlite_clerks_that_are_killed_are_started_again_with_the_same_keys(tmp_path: Path) -> None:
    bank, _, faults = asyncio.run(on_sqlite(tmp_path, 7, 150))
    assert (bank.kills > 0, faults) == (True, [])


def test_the_judge_sees_what_a_naive_repeat_does_twice(postgres18: PostgresServer) -> None:
    _, _, faults = asyncio.run(on_postgres(postgres18, "psycopg", "naive", 7, 80, kills=False))
    assert any("done twice" in fault for fault in faults)
