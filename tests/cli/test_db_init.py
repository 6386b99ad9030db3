"""`koo db init` creates the table for exactly-once; until then `koo doctor` reports that it is missing."""

from __future__ import annotations

import json

from koo.testing.postgres import PostgresServer
from tests.cli.running import Here


def test_the_table_is_missing_until_it_is_created(here: Here, postgres18: PostgresServer) -> None:
    name = postgres18.create_database()
    here.set({"DATABASE_URL": postgres18.url("psycopg", name), "DB_EXACTLY_ONCE": "marker"})
    try:
        assert looked_at(here)["found"] == "the table koo_markers is missing: run `koo db init`"
        assert here.run("db", "init")[:2] == (
            0,
            f"the table koo_markers exists in 127.0.0.1:{postgres18.port}/{name}\n",
        )
        code, out, _ = here.run("db", "init", "--json")
        assert (code, json.loads(out)["table"]) == (0, "koo_markers"), "it can be repeated"
        assert looked_at(here)["result"] == "ok"
    finally:
        postgres18.drop_database(name)


def looked_at(here: Here) -> dict[str, str]:
    _, out, _ = here.run("doctor", "--json")
    (found,) = [one for one in json.loads(out)["findings"] if one["subject"] == "exactly once"]
    return dict(found)
