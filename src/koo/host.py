"""The resources of this process's host: free disk space and file descriptors.

Reading a disk's free space takes a microsecond, or forever on a network share whose server is down. So a thread reads
it, one at a time, and if it does not return, the disk is reported as not responding. The thread is a daemon: it holds
nothing, so the process can end without waiting for it.
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
"""A runaway log that fills a disk is noticed within half a minute."""
SILENT_STEPS = 60
"""Counted in steps, not seconds: time in which the whole process was suspended says nothing about a disk."""
DESCRIPTOR_FOLDERS = ("/proc/self/fd", "/dev/fd")
"""Folders with an entry for each open descriptor: Linux, and other Unixes."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The space on a folder's disk, for an ordinary user. `name` says what the folder is for."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Open file descriptors and their limit."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Host:
    """The result of one reading. `descriptors` is None if the system does not report them."""

    disks: tuple[Disk, ...] = ()
    descriptors: Descriptors | None = None


class HostWatch:
    """Reads the host's resources regularly, in a thread. `folders`: where koo writes, by name; each disk is listed
    once."""

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
        """Read at the next step, because an event suggests that a disk is full or has space again."""
        self._due_at = -math.inf

    def step(self, now: float) -> None:
        """Start a reading that is due, without waiting; to be called about once a second. `now` in monotonic
        seconds."""
        # No second thread is started while one has not returned: it would hang on the same disk, and so would another
        # one every half minute.
        if now >= self._due_at and (self._thread is None or not self._thread.is_alive()):
            thread = threading.Thread(target=self._run, name="koo host", daemon=True)
            try:
                start(thread)
            except NoThread as error:
                # The failure is recorded, and the reading is tried again in a second. If it were raised, it would stop
                # the rest of this second's work, alerts included.
                shortage_in(error)
                return
            self._steps, self._thread, self._due_at = 0, thread, now + EVERY_S
        self._steps += 1

    @property
    def is_silent(self) -> bool:
        """Whether a reading that started a minute ago has not returned."""
        thread = self._thread
        return self._steps > SILENT_STEPS and thread is not None and thread.is_alive()

    def _run(self) -> None:
        self.last = self._look(self._folders)


def look_at_host(folders: Mapping[str, Path]) -> Host:
    """Read the resources. It may block as long as a disk does."""
    disks: dict[int, Disk] = {}
    for name, folder in folders.items():
        try:
            place = _existing(folder)
            usage = shutil.disk_usage(place)
            disks.setdefault(place.stat().st_dev, Disk(name, usage.free, usage.total))
        except OSError:  # no permission, or just removed: leave it out
            continue
    return Host(tuple(disks.values()), count_descriptors())


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent: koo creates its folders when it first writes."""
    return next((one for one in (folder, *folder.parents) if one.exists()), Path())


def count_descriptors() -> Descriptors | None:
    """The open descriptors; None if the system has no limit or does not report them."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return None
    for folder in DESCRIPTOR_FOLDERS:
        try:
            return Descriptors(sum(1 for _ in Path(folder).iterdir()) - 1, limit)  # minus the listing's own
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return Descriptors(limit, limit)
    return None
