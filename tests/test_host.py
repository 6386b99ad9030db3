"""Disk space and file descriptors: the readings, and a disk that does not respond."""

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


def test_a_missing_folder_counts_for_the_disk_of_its_parent(tmp_path: Path) -> None:
    look = look_at_host({"home": tmp_path, "state_store": tmp_path / "data" / "deep"})
    (disk,) = look.disks
    assert disk.name == "home" and 0 <= disk.free_bytes <= disk.total_bytes, "each disk is listed once"


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


def test_if_no_descriptor_can_be_opened_all_count_as_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
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
        (2**29, 2**33, "ok"),  # a gigabyte is a large part of a small disk
        (0, 0, "ok"),  # a pseudo file system reports no space
    ],
)
def test_the_state_of_a_disk_depends_on_its_free_space_and_its_size(
    free: int, total: int, state: str
) -> None:
    assert disk_state(Disk("home", free, total)) == state


class Looks:
    """A watch that counts its readings."""

    def __init__(self) -> None:
        self.count = 0
        self.watch = HostWatch({}, look=self.look)

    def look(self, _: object) -> Host:
        self.count += 1
        return Host(descriptors=Descriptors(self.count, 100))

    def step(self, now: float) -> int:
        """Make a step, wait for its reading, and return the number of readings."""
        self.watch.step(now)
        wait_for_look()
        return self.count


def wait_for_look() -> None:
    for thread in threading.enumerate():
        if thread.name == "koo host":
            thread.join(30)


def test_the_host_is_read_immediately_and_then_every_half_minute() -> None:
    looks = Looks()
    assert [looks.step(float(now)) for now in (0, 1, EVERY_S - 1, EVERY_S, EVERY_S + 1)] == [1, 1, 1, 2, 2]
    assert looks.watch.last == Host(descriptors=Descriptors(2, 100)) and not looks.watch.is_silent


def test_long_steps_do_not_delay_a_reading() -> None:
    """A full disk makes the state store slow, and the work of each second waits for the store."""
    looks = Looks()
    assert [looks.step(now) for now in (0.0, EVERY_S / 2, EVERY_S)] == [1, 1, 2]


def test_after_hurry_is_called_the_next_step_reads_the_host() -> None:
    looks = Looks()
    looks.step(0.0)
    looks.watch.hurry()
    assert [looks.step(now) for now in (1.0, 2.0)] == [2, 2]


def test_a_disk_that_does_not_respond_blocks_nothing_and_is_reported_after_a_minute() -> None:
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
