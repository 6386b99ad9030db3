"""A short version of `make prove-once`: transfers whose COMMITs are cut happen once, and the judge detects doubles."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from koo.testing.postgres import Driver, PostgresServer
from koo.testing.proxy import CommitCut
from proofs.once import Bank, Run, on_postgres, on_sqlite
from proofs.once_keys import on_server

CUTS: dict[CommitCut, int] = {"before": 1, "at": 1, "after": 1}


def run_of(driver: Driver, mode: str) -> Run:
    return Run(driver, mode, "none", 7, 80, CUTS)


@pytest.mark.parametrize(("driver", "mode"), [("psycopg", "key"), ("asyncpg", "marker")])
def test_each_transfer_happens_once_however_its_commit_is_lost(
    postgres18: PostgresServer, driver: Driver, mode: str
) -> None:
    bank, ground, faults = asyncio.run(on_postgres(postgres18, run_of(driver, mode)))
    assert (ground.proxy.cuts > 0, bank.unknown, faults) == (True, 0, [])


def test_on_sqlite_killed_clerks_are_restarted_with_the_same_keys(tmp_path: Path) -> None:
    bank, faults = asyncio.run(on_sqlite(tmp_path, 7, 150))
    assert (bank.kills > 0, faults) == (True, [])


def test_the_judge_detects_transfers_repeated_naively(postgres18: PostgresServer) -> None:
    _, _, faults = asyncio.run(on_postgres(postgres18, run_of("psycopg", "naive")))
    assert any("done twice" in fault for fault in faults)


def test_the_judge_detects_missing_and_unreported_transfers(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        bank = Bank(lambda: f"sqlite:///{tmp_path}/bank.db", "", "key", 7, 3)
        await bank.open()
        bank.said = {0: "done", 1: "unknown"}
        found = ["1 acknowledged and not done", "1 neither acknowledged nor unknown"]
        assert await bank.faults() == found
        assert await bank.faults(may_lose=True) == found[1:] and bank.lost == 1
        async with bank._database() as database, database.session_scope() as session:
            await session.execute(text("UPDATE accounts SET cents = 5 WHERE id = 0"))
        assert "the sum is off by 5" in await bank.faults()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["psycopg", "sqlite"])
def test_two_clients_with_one_key_get_one_response_even_if_the_server_is_killed(
    postgres18: PostgresServer, tmp_path: Path, where: Driver | str
) -> None:
    """The test takes some seconds: each server is a process that imports koo, and it is killed eight times."""
    if where == "sqlite":
        url = f"sqlite:///{tmp_path}/till.db"
    else:
        url = postgres18.url("psycopg", postgres18.create_database())
    trial = asyncio.run(on_server(url, tmp_path, 7, 8))
    assert trial.faults == []
    assert trial.moments.total() == 8
