"""Workers of one server report for one another: counts are summed and outlive the workers that counted."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from koo.policies.tally import BOUNDS_S
from koo.testing.polling import wait_until
from koo.testing.providers import FakeAnthropic
from koo.web.exposition import bury, text_of_all
from koo.web.siblings import Siblings
from tests.cli.running import serving, settings_of
from tests.cli.test_serve import question
from tests.cli.test_workers import children_of, said

REQUESTS = 'koo_service_requests_total{outcome="success",service="claude"}'
UP = "koo_database_up"


def numbers(requests: int, up: int = 1, spent: float = 0.5) -> dict[str, Any]:
    """A snapshot."""
    return {
        "samples": [
            ["koo_workers", [], 1],
            ["koo_service_requests", ["claude", "success"], requests],
            [UP, [], up],
            ["koo_budget_spent_usd", ["claude"], spent],
        ],
        "durations": [["claude", [requests] + [0] * len(BOUNDS_S), 0.25 * requests]],
    }


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the block ends or it is killed."""
    one = subprocess.Popen(["sleep", "600"])
    try:
        yield one
    finally:
        one.kill()
        one.wait()


def lines(text: bytes) -> dict[str, float]:
    """The samples of an exposition, by their names."""
    rows = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def sibling(home: Path, worker: str, pid: int | None = None) -> Siblings:
    return Siblings(home, worker, os.getppid(), bury, pid)


def test_counts_are_summed_and_each_workers_own_values_have_its_label(tmp_path: Path) -> None:
    with process() as other:
        sibling(tmp_path, "2", other.pid).leave(numbers(5, up=0, spent=9.0))
        found = lines(text_of_all(*sibling(tmp_path, "1").exchange(numbers(3))))
    assert (found[REQUESTS], found["koo_workers"]) == (8, 2)
    assert (found[f'{UP}{{worker="1"}}'], found[f'{UP}{{worker="2"}}']) == (1, 0)
    assert (
        found['koo_budget_spent_usd{service="claude"}'] == 0.5
    )  # the fleet's value, as the responding worker last read it
    assert found['koo_service_request_duration_seconds_sum{service="claude"}'] == 2.0


def test_a_single_process_keeps_its_series_names() -> None:
    found = lines(text_of_all([numbers(3)], {}))
    assert found[UP] == 1 and not any("worker=" in name for name in found)


def test_a_counter_does_not_decrease_when_a_worker_dies_but_its_gauges_end(tmp_path: Path) -> None:
    mine = sibling(tmp_path, "1")
    with process() as other:
        sibling(tmp_path, "2", other.pid).leave(numbers(5))
        assert lines(text_of_all(*mine.exchange(numbers(3))))[REQUESTS] == 8
    for _ in range(2):  # before it is added to `gone.json`, and after
        found = lines(text_of_all(*mine.exchange(numbers(3))))
        assert (found[REQUESTS], found["koo_workers"], f'{UP}{{worker="2"}}' in found) == (8, 1, False)
        mine.leave(numbers(3))
    (folder,) = (tmp_path / "data" / "workers").iterdir()
    assert sorted(file.suffix for file in folder.glob("*.json")) == [".json"] * 2
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_worker_killed_between_adding_and_removing_adds_nothing_twice(tmp_path: Path) -> None:
    mine = sibling(tmp_path, "1")
    with process() as other:
        sibling(tmp_path, "2", other.pid).leave(numbers(5))
        (folder,) = (tmp_path / "data" / "workers").iterdir()
        (left,) = folder.glob("*.json")
        text = left.read_text()
    mine.leave(numbers(3))
    left.write_text(text)
    for _ in range(2):
        assert lines(text_of_all(*mine.exchange(numbers(3))))[REQUESTS] == 8
        mine.leave(numbers(3))
    assert not left.exists()


def test_older_numbers_do_not_replace_newer_ones(tmp_path: Path) -> None:
    one = sibling(tmp_path, "1")
    one.leave({"at": 20.0, **numbers(7)})
    one.leave({"at": 10.0, **numbers(3)})
    (file,) = (tmp_path / "data" / "workers").rglob("*.json")
    assert json.loads(file.read_text())["samples"][1][2] == 7


def test_an_unusable_folder_is_reported_once_and_the_worker_reports_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = lines(text_of_all(*sibling(tmp_path, "1").exchange(numbers(3))))
    assert found[REQUESTS] == 3
    assert "covers this worker only" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a file's owner")
def test_a_folder_or_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    one = sibling(tmp_path, "1")
    with process() as other:
        sibling(tmp_path, "2", other.pid).leave(numbers(5))
        (folder,) = (tmp_path / "data" / "workers").iterdir()
        (file,) = folder.glob("*.json")
        os.chown(file, 65_534, 65_534)
        assert lines(text_of_all(*one.exchange(numbers(3))))[REQUESTS] == 3
        os.chown(file, 0, 0)
        os.chown(folder, 65_534, 65_534)
        assert lines(text_of_all(*sibling(tmp_path, "1").exchange(numbers(3))))[REQUESTS] == 3


def test_files_of_a_server_that_has_ended_are_removed_by_the_next(tmp_path: Path) -> None:
    with process() as parent:
        Siblings(tmp_path, "1", parent.pid, bury).leave(numbers(5))
    sibling(tmp_path, "1").leave(numbers(3))
    assert len(list((tmp_path / "data" / "workers").iterdir())) == 1


def scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as reply:
        return lines(reply.read())


def test_any_workers_metrics_cover_all_and_survive_a_kill(tmp_path: Path) -> None:
    with FakeAnthropic() as fake, serving(tmp_path, "--workers", "2", **settings_of(fake)) as (url, process):
        wait_until(said(tmp_path, "workers_answer"))
        wait_until(lambda: scraped(url)["koo_workers"] == 2)
        for _ in range(6):
            question(url)
        wait_until(lambda: scraped(url)[REQUESTS] == 6)
        assert {scraped(url)[REQUESTS] for _ in range(10)} == {6}
        dead = children_of(process)[0]
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: dead not in children_of(process))
        seen = [scraped(url) for _ in range(5)]
        assert {one[REQUESTS] for one in seen} == {6}
        wait_until(lambda: scraped(url)["koo_workers"] == 2, 60)
        assert scraped(url)[REQUESTS] == 6
