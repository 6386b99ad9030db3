"""`koo spend` and `koo spend write-off` against a running server."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from koo.cli.words import usd
from koo.policies.treasury import LIVES_MS
from koo.storage.store import SqlStore
from koo.testing.providers import FakeAnthropic
from tests.cli.running import Here, serving, settings_of
from tests.cli.test_serve import ask
from tests.storage.support import hold


def question(url: str, tag: str) -> None:
    ask(f"{url}/api/v1/ai/query", {"service": "claude", "prompt": "Capital of France?", "tag": tag})


def leave_money_behind(home: Path) -> str:
    """A process that held 0.25 USD and has not reported for a while. Returns its name."""

    async def main() -> str:
        dead = SqlStore("sqlite:///data/koo-state.db", home=home)
        dead.ledger.budget("service/claude", 10**13)
        await hold(dead, "0.25")
        await dead.ledger.beat()
        await dead.executor.stop()
        return dead.ledger.purses.name

    name = asyncio.run(main())
    with sqlite3.connect(home / "data" / "koo-state.db") as store:
        store.execute(
            "UPDATE koo_processes SET seen_ms = seen_ms - ? WHERE name = ?", (LIVES_MS + 1000, name)
        )
    store.close()
    return name


def test_spending_is_shown_as_a_table_as_csv_and_as_json(here: Here) -> None:
    with FakeAnthropic() as fake, serving(here.home, **settings_of(fake)) as (url, _):
        here.set({"KOO_URL": url})
        question(url, "night")
        question(url, "=1+1")
        code, out, _ = here.run("spend", "--days", "1", "--by", "service", "--by", "tag")
        assert code == 0 and "claude" in out and "night" in out
        assert f"total {usd(str(fake.billed_usd))} in 2 calls" in out

        code, out, _ = here.run("spend", "--by", "service,tag", "--csv")
        rows = list(csv.DictReader(io.StringIO(out)))
        assert {(row["service"], row["tag"], row["calls"]) for row in rows} == {
            ("claude", "night", "1"),
            ("claude", "'=1+1", "1"),  # what a spreadsheet would execute
        }
        assert {"amount", "estimated", "input_tokens", "output_tokens"} <= rows[0].keys()

        code, out, _ = here.run("spend", "--json")
        document = json.loads(out)
        assert code == 0 and document["calls"] == 2 and document["by"] == ["service"]


def test_an_invalid_argument_is_reported_in_one_sentence(here: Here) -> None:
    with serving(here.home) as (url, _):
        here.set({"KOO_URL": url})
        for arguments, sentence in (
            (("--by", "weekday"), "by.0: Input should be"),
            (("--month", "2026-13"), "spend: month must be written as 2026-11"),
            (
                ("--days", "1", "--from", "2026-11-01"),
                "spend: choose one of `days`, `from` and `to`, or `month`",
            ),
        ):
            code, out, err = here.run("spend", *arguments)
            assert code == 2 and sentence in err, (arguments, err)
        code, _, err = here.run("spend", "write-off")
        assert code == 2 and "name a process, or use --all" in err
        code, _, err = here.run("spend", "write-off", "x", "--all")
        assert code == 2
        code, _, err = here.run("spend", "write-off", "nobody")
        assert code == 2 and "no process of that name" in err
        code, out, _ = here.run("spend", "write-off", "--all")
        assert code == 0 and "nothing to write off" in out


def test_without_a_server_it_explains_how_to_start_one(here: Here) -> None:
    here.set({"KOO_URL": "http://127.0.0.1:9"})
    code, _, err = here.run("spend")
    assert code == 4 and "start one with `koo serve`" in err


def test_a_dead_processs_money_is_listed_and_written_off_with_its_author(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    with FakeAnthropic() as fake, serving(here.home, **settings_of(fake)) as (url, _):
        here.set({"KOO_URL": url})
        name = leave_money_behind(here.home)
        code, _, err = here.run("spend")
        assert code == 0 and f"process {name} no longer reports" in err and "0.25 USD of ai:claude" in err
        code, out, _ = here.run("spend", "write-off", name, "--reason", "its host is gone")
        assert code == 0 and "may be overspent by its amount" in out and "0.25 USD of ai:claude" in out
        code, _, err = here.run("spend")
        assert "no longer reports" not in err and "written off by ada@" in err
    log = (here.home / "serve.log").read_text()
    assert "ada@" in log and "its host is gone" in log
