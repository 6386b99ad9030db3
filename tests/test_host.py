"""Room on disks and file descriptors: what a look finds, and a disk that does not answer."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from koo.host import (
    EVERY_S,
    SILENT_STEPS,
    Descriptors,
    Disk,
    Host,
    HostWatch,
    count_descriptors,
    look_at_host,
)
from koo.monitoring.own import FULL_BYTES, NEARLY_FULL_BYTES, disk_state


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_the_one_above_it(tmp_path: Path) -> None:
    look = look_at_host({"home": tmp_path, "state_store": tmp_path / "data" / "deep"})
    (disk,) = look.disks
    assert disk.name == "home" and 0 <= disk.free_bytes <= disk.total_bytes, "one disk is named once"


def test_descriptors_are_those_of_this_process() -> None:
    before = count_descriptors()
    assert before is not None and before.limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    ends = os.pipe()
    try:
        during = count_descriptors()
    finally:
        for end in ends:
            os.close(end)
    assert during is not None and during.used == before.used + 2


def test_where_none_can_be_opened_all_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "iterdir", full)
    found = count_descriptors()
    assert found is not None and found.used == found.limit


@pytest.mark.parametrize(
    ("free", "total", "state"),
    [
        (NEARLY_FULL_BYTES, 100 * 2**30, "ok"),
        (NEARLY_FULL_BYTES - 1, 100 * 2**30, "nearly_full"),
        (FULL_BYTES, 100 * 2**30, "nearly_full"),
        (FULL_BYTES - 1, 100 * 2**30, "full"),
        (2**29, 2**33, "ok"),  # of a small disk a gigabyte is much
        (0, 0, "ok"),  # a pseudo file system has no room to tell of
    ],
)
def test_how_full_a_disk_is(free: int, total: int, state: str) -> None:
    assert disk_state(Disk("home", free, total)) == state


class Looks:
    """A watch whose looks are counted."""

    def __init__(self) -> None:
        self.count = 0
        self.watch = HostWatch({}, look=self.look)

    def look(self, _: object) -> Host:
        self.count += 1
        return Host(descriptors=Descriptors(self.count, 100))

    def step(self, now: float) -> int:
        """How many looks there were, once the one of this step is over."""
        self.watch.step(now)
        wait_for_look()
        return self.count


def wait_for_look() -> None:
    for thread in threading.enumerate():
        if thread.name == "koo host":
            thread.join(30)


def test_it_looks_at_once_and_then_every_half_minute() -> None:
    looks = Looks()
    assert [looks.step(float(now)) for now in (0, 1, EVERY_S - 1, EVERY_S, EVERY_S + 1)] == [1, 1, 1, 2, 2]
    assert looks.watch.last == Host(descriptors=Descriptors(2, 100)) and not looks.watch.is_silent


def test_steps_that_take_long_put_no_look_off() -> None:
    """A disk that is full makes the state store slow, and each second waits for the store."""
    looks = Looks()
    assert [looks.step(now) for now in (0.0, EVERY_S / 2, EVERY_S)] == [1, 1, 2]


def test_in_a_hurry_it_looks_with_the_next_step() -> None:
    looks = Looks()
    looks.step(0.0)
    looks.watch.hurry()
    assert [looks.step(now) for now in (1.0, 2.0)] == [2, 2]


def test_a_disk_that_does_not_answer_holds_nobody_up_and_is_told_after_a_minute() -> None:
    back = threading.Event()

    def look(_: object) -> Host:
        back.wait(60)
        return Host()

    watch = HostWatch({}, look=look)
    for step in range(SILENT_STEPS):
        watch.step(float(step))
    assert not watch.is_silent
    watch.step(float(SILENT_STEPS))
    assert watch.is_silent and watch.last is None
    back.set()
    wait_for_look()
    assert not watch.is_silent and watch.last == Host()
