"""Serverless: a process that is frozen between two requests does not keep money from other processes."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

from koo.testing.polling import wait_until
from koo.testing.providers import FakeAnthropic
from tests.cli.running import serving, settings_of
from tests.cli.test_serve import question

LEFT = "SELECT sum(granted - back + over_granted - spent) FROM koo_purses WHERE budget = 'service/claude'"
"""What a process was granted and has neither spent nor returned, in pico-dollars."""


def asked(home: Path, sql: str) -> int:
    with closing(sqlite3.connect(home / "data" / "koo-state.db")) as store:
        return int(store.execute(sql).fetchone()[0] or 0)


def test_a_process_frozen_after_each_response_keeps_the_money_of_at_most_one_call(tmp_path: Path) -> None:
    """A process that has run for a moment keeps nothing: without traffic, a purse is returned with the settlement."""
    stranded = []
    with FakeAnthropic() as fake, serving(tmp_path, **settings_of(fake)) as (url, process):
        for _ in range(4):
            question(url)
            os.kill(process.pid, signal.SIGSTOP)
            stranded.append(asked(tmp_path, LEFT))
            os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: asked(tmp_path, LEFT) == 0)
        wait_until(lambda: asked(tmp_path, "SELECT count(*) FROM koo_entries") == 4)
        assert max(stranded) <= asked(tmp_path, "SELECT max(bound) FROM koo_entries")
