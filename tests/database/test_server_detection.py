"""koo detects the server behind a database's URL: its limit on connections, and a pooler in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from koo.cli.doctor_database import behind_database, database_itself
from koo.database.database import Database
from koo.errors import DatabaseUnavailable
from tests.database.conftest import Place
from tests.database.pooler import pooling
from tests.database.support import opened, options, run


def address(place: Place, port: int) -> str:
    return place.url.replace(f":{place.server.port}/", f":{port}/")


@pytest.mark.parametrize(("shared", "mode"), [(True, "transaction"), (False, "session")])
def test_a_pooler_and_its_mode_are_detected(pg: Place, shared: bool, mode: str) -> None:
    """A pooler makes up process ids. In transaction mode, two clients report the same server process."""

    async def main() -> None:
        async with (
            pooling(pg.server, pg.database, shared=shared) as port,
            opened(address(pg, port)) as database,
        ):
            facts = await database.examine_server()
            assert facts is not None and facts.pooling == mode

    run(main)


def test_a_server_without_a_pooler_reports_none_and_its_connection_limit(pg: Place) -> None:
    async def main() -> None:
        pg.server.sql("CREATE ROLE few LOGIN PASSWORD 'koo-test' CONNECTION LIMIT 7")
        try:
            async with opened(pg.url.replace("postgres:koo-test@", "few:koo-test@")) as database:
                facts = await database.examine_server()
                assert facts is not None and facts.pooling == ""
                assert (facts.room, facts.limit) == (7, "the user's CONNECTION LIMIT")
        finally:
            pg.server.sql("DROP ROLE few")
        async with opened(pg.url) as database:
            facts = await database.examine_server()
            assert facts is not None and facts.limit == "max_connections"
            assert facts.room == int(pg.server.sql("SHOW max_connections"))
        plain = Database(options(pg.url.replace(pg.database, "nowhere")))
        with pytest.raises(DatabaseUnavailable, match="does not exist"):
            await plain.examine_server()

    run(main)


def test_sqlite_has_no_server_to_examine(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{tmp_path / 'a.db'}") as database:
            assert await database.examine_server() is None

    run(main)


# ── koo doctor ───────────────────────────────────────────────────────────────────────────────────────────────────


async def said(database: Database, workers: int) -> dict[str, tuple[str, str, str]]:
    return {
        check.subject: (check.result, check.found, check.advice)
        async for check in behind_database(database, workers)
    }


def test_doctor_compares_processes_times_pool_size_with_the_servers_limit(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url, pool_size=10, max_overflow=20) as database:
            room = int(pg.server.sql("SHOW max_connections"))
            fit = room // 32
            result, found, _ = (await said(database, fit))["connections"]
            assert (
                result == "ok" and f"up to {fit * 32} connections" in found and f"enough for {fit}" in found
            )
            result, found, advice = (await said(database, fit + 1))["connections"]
            assert result == "warning" and f"room for {room}" in found and "DATABASE_POOL_SIZE" in advice
            assert "pooler" not in await said(database, 1)

    run(main)


def test_doctor_names_the_settings_for_a_pooler(pg: Place) -> None:
    async def main() -> None:
        async with pooling(pg.server, pg.database, shared=True) as port:
            url = address(pg, port)
            async with opened(url) as database:
                told = await said(database, 100)
                assert told["pooler"][0] == "warning"
                assert "DATABASE_PREPARED_STATEMENTS=false" in told["pooler"][2]
                assert told["connections"][0] == "note", "the server's limit is not the pooler's"
            async with opened(url, prepared_statements=False) as database:
                assert (await said(database, 1))["pooler"][0] == "ok"

    run(main)


def test_doctors_advice_fits_the_connection_error(pg: Place) -> None:
    async def main() -> None:
        pg.server.sql("DROP ROLE IF EXISTS shut_out")
        pg.server.sql("CREATE ROLE shut_out NOLOGIN")
        for url, word in (
            (pg.url, ""),
            (pg.url.replace(pg.database, "nowhere"), "correct its name"),
            (pg.url.replace("postgres:koo-test@", "shut_out:koo-test@"), "pg_hba.conf"),
            (f"{pg.url}?no_such=1", "what follows the ?"),
            (pg.url.replace(str(pg.server.port), "1"), "is it running"),
        ):
            async with opened(url) as database:
                check = await database_itself(database)
                assert (check.result == "ok") is (word == "") and word in check.advice, check
                assert "koo-test" not in str(check)
        pg.server.sql("DROP ROLE shut_out")

    run(main)


def test_probe_and_doctor_do_not_use_statements_prepared_by_another_process(
    pg: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process numbers asyncpg's statements from 1, and a shared server connection keeps those of all processes."""

    async def main() -> None:
        async with (
            pooling(pg.server, pg.database, shared=True) as port,
            opened(address(pg, port)) as first,
            opened(address(pg, port)) as second,
        ):
            for database in (first, second):
                monkeypatch.setattr("asyncpg.connection._uid", 0)
                assert (await database.health_check())["error"] is None
                monkeypatch.setattr("asyncpg.connection._uid", 0)
                assert await database.examine_server() is not None

    run(main)
