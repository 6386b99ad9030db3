"""What this process depends on: room on its disks, and file descriptors.

Asking a disk for its room takes a microsecond, or for ever if it is a network share whose server is away. So a
thread asks, one at a time, and if it does not come back the disk is reported as not answering. The thread is a
daemon: it holds nothing, and the end of the process need not wait for it.
"""

from __future__ import annotations

import errno
import math
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from koo.shortages import NoThread, shortage_in, start

EVERY_S = 30.0
"""A disk that a runaway log fills is noticed within half a minute, even if the work of each second takes long."""
SILENT_STEPS = 60
"""Counted in steps: the time in which the whole process stood still says nothing about a disk."""
DESCRIPTOR_FOLDERS = ("/proc/self/fd", "/dev/fd")
"""One entry for each open descriptor: Linux, and the other Unixes."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Room for an ordinary user where a folder lies. `name` says whose folder it is."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Open file descriptors, and how many there may be."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Host:
    """What was found at one look; `descriptors` None: the system does not say."""

    disks: tuple[Disk, ...] = ()
    descriptors: Descriptors | None = None


class HostWatch:
    """Looks now and then, in a thread. `folders` by name: where koo writes; one disk is named once."""

    def __init__(
        self, folders: Mapping[str, Path], look: Callable[[Mapping[str, Path]], Host] | None = None
    ) -> None:
        self._folders = dict(folders)
        self._look = look or look_at_host
        self._thread: threading.Thread | None = None
        self._steps = 0
        self._due_at = -math.inf
        self.last: Host | None = None

    def hurry(self) -> None:
        """The next step looks: something speaks of a disk that is full, or has room again."""
        self._due_at = -math.inf

    def step(self, now: float) -> None:
        """About once a second: begin a look that is due. Does not wait for it. `now` in monotonic seconds."""
        if now >= self._due_at and (self._thread is None or not self._thread.is_alive()):
            thread = threading.Thread(target=self._run, name="koo host", daemon=True)
            try:
                start(thread)
            except NoThread as error:
                shortage_in(
                    error
                )  # It is noted, and tried again in a second: this must not end what comes after it.
                return
            self._steps, self._thread, self._due_at = 0, thread, now + EVERY_S
        self._steps += 1

    @property
    def is_silent(self) -> bool:
        """A look that began a minute ago has not come back."""
        thread = self._thread
        return self._steps > SILENT_STEPS and thread is not None and thread.is_alive()

    def _run(self) -> None:
        self.last = self._look(self._folders)


def look_at_host(folders: Mapping[str, Path]) -> Host:
    """Ask the system. May block for as long as a disk does."""
    disks: dict[int, Disk] = {}
    for name, folder in folders.items():
        try:
            place = _existing(folder)
            usage = shutil.disk_usage(place)
            disks.setdefault(place.stat().st_dev, Disk(name, usage.free, usage.total))
        except OSError:  # No right to look there, or just removed: what cannot be known is left out.
            continue
    return Host(tuple(disks.values()), count_descriptors())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: koo makes its own when it first writes."""
    return next((one for one in (folder, *folder.parents) if one.exists()), Path())


def count_descriptors() -> Descriptors | None:
    """How many are open; None if the system has no limit or does not say."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return None
    for folder in DESCRIPTOR_FOLDERS:
        try:
            return Descriptors(sum(1 for _ in Path(folder).iterdir()) - 1, limit)  # the listing needs one
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return Descriptors(limit, limit)
    return None
