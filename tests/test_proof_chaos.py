"""The judge of the chaos proof: it finds every broken rule, and nothing else."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from proofs.chaos_faults import Fault, fill_up, of_ground, of_provider
from proofs.chaos_judge import (
    Books,
    Course,
    Pause,
    Struck,
    growth,
    lines_a_minute,
    open_in,
    rows_wrong,
    slope_mib,
    told,
)
from proofs.chaos_world import TROUBLE, Child, Sample


async def nothing(world: Any) -> None:
    """A step that does nothing."""


DOWN = Fault("it is down", nothing, nothing, 10.0, frozenset({"service_down"}), "ai:alpha", ends_s=20.0)
FIRES = ("serve", "service_down", "ai:alpha")


def course(*holds_at: float, of: tuple[str, str, str] = FIRES) -> Course:
    """A fault from 10 to 20 s, observed each second for a minute; its alert fires at these seconds."""
    seen = [(float(at), {of} if at in holds_at else set()) for at in range(60)]
    return Course(struck=[Struck(DOWN, 10.0, 20.0)], alerts=seen)


def test_an_alert_must_fire_during_its_fault_and_end_after_it() -> None:
    (one,) = told(course(*range(12, 30)))
    assert (one.fired_s, one.ended_s, one.wrong()) == (2.0, 10.0, "")
    (late,) = told(course(*range(30, 40)))
    assert late.wrong() == "it is down: none of service_down fired"
    (lasts,) = told(course(*range(12, 60)))
    assert lasts.wrong() == "it is down: its alert had not ended 20 s after it"
    (elsewhere,) = told(course(*range(12, 30), of=("serve", "service_down", "ai:beta")))
    assert elsewhere.fired_s is None


def test_an_alert_may_continue_if_the_next_fault_of_its_kind_begins_before_it_ends() -> None:
    seen = course(*range(12, 56))
    assert next(iter(told(seen))).wrong()
    seen.struck.append(Struck(DOWN, 30.0, 50.0))
    assert [one.wrong() for one in told(seen)] == ["", ""]


def pauses(*rss_mib: float, **of_last: Any) -> list[Pause]:
    sample = Sample(0.0, 0.0, descriptors=20, threads=8, said={"tasks": {"koo keeper": 5}})
    made = [
        Pause(60.0 * minute, 1.0, {}, {"serve": replace(sample, rss_mib=rss)}, 0, 0)
        for minute, rss in enumerate(rss_mib)
    ]
    made[-1].samples["serve"] = replace(made[-1].samples["serve"], **of_last)
    return made


def test_growth_from_pause_to_pause_is_found_after_the_warm_up() -> None:
    children = [Child("serve", {})]
    assert slope_mib(pauses(10, 50, 60, 62, 64), "serve") == 2.0
    assert list(growth(pauses(10, 90, 100, 100.5, 101), children)) == []
    assert "2.00 MiB a minute" in next(growth(pauses(10, 90, 100, 102, 104), children))
    assert "100 descriptors" in next(growth(pauses(1, 1, 1, descriptors=100), children))
    assert "30 threads" in next(growth(pauses(1, 1, 1, threads=30), children))


def test_open_files_and_lines_per_minute_are_counted() -> None:
    assert open_in({"held_pico": 0, "permits": 2, "scopes": 0, "tasks": {"x": 3}}) == {"permits": 2}
    assert lines_a_minute([]) == 0
    assert lines_a_minute([0.0, 1.0, 59.0, 61.0, 200.0]) == 3


def test_a_bill_must_be_between_the_known_and_the_estimated_cost() -> None:
    books = Books(entries=Decimal(10), marked=Decimal(3), unsettled=Decimal(0))
    assert list(books.wrong(Decimal(8))) == []
    assert "above the ledgers'" in next(books.wrong(Decimal(11)))
    assert "above the bill" in next(books.wrong(Decimal(6)))


def test_each_acknowledged_row_exists_once_and_no_other_except_unknown_ones() -> None:
    said = "ROWS 1 2 3 UNKNOWN 4"
    assert list(rows_wrong(said, [1, 2, 3])) == list(rows_wrong(said, [1, 2, 3, 4])) == []
    assert "missing" in next(rows_wrong(said, [1, 2]))
    assert "twice" in next(rows_wrong(said, [1, 2, 3, 3]))
    assert "their callers got an error: nothing" in next(rows_wrong(said, [1, 2, 3, 5]))
    assert "their callers got an error: it did" in next(
        rows_wrong(f'{said} FAILED {{"5": "it did"}}', [1, 2, 3, 5])
    )
    assert next(rows_wrong("", [1]))


def test_pythons_warnings_about_leftovers_count_as_trouble() -> None:
    for line in (
        "RuntimeWarning: coroutine 'Keeper._run' was never awaited", "Task exception was never retrieved",
        "Task was destroyed but it is pending!", "Traceback (most recent call last):",
    ):  # fmt: skip
        assert TROUBLE.search(line)
    assert not TROUBLE.search("alpha: query failed (timeout): no answer within 2 s; 2 attempts")


def test_each_fault_has_a_unique_name() -> None:
    names = [fault.name for fault in (*of_provider("alpha"), *of_provider("beta"), *of_ground())]
    assert len(names) == len(set(names)) >= 40


def test_a_disk_is_filled_to_its_last_page_during_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled in one piece, the write failed as a whole, and a disk that was not full raised no alert."""
    room = 5 * 2**20 + 7 * 4096

    def allocate(file: int, offset: int, size: int) -> None:
        nonlocal room
        room -= 4096  # the application's own page
        if room < size:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= size

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    fill_up(tmp_path)
    assert room < 4096
