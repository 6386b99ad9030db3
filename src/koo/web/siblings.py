"""What the workers of one server leave for one another, so that `/metrics` of any answers for all of its host.

Each writes a snapshot of its numbers into a file of its own, once a second and with each scrape, and reads those of the
others when it is asked. The folder is their parent's: `data/workers/` in KOO_HOME, by host, process id and start.

What a worker counted outlives it. One that finds the file of a worker that has ended adds its counts to `gone.json`,
under a lock, and removes it; the ids in there say whose were added, for a process that is killed between the two. A
reader reads the files first and `gone.json` after them: the other way round, a worker buried in between would be
missing, and a counter would fall.

The files hold names and numbers. They are the user's alone, and a folder or a file of another user is not used.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from koo.own_files import FILE_MODE, FOLDER_MODE

log = logging.getLogger("koo.web")

Snapshot = dict[str, Any]
"""`samples` and `durations`, as `exposition.py` makes them; `id`, `worker`, `pid`, `born` are added here."""
GONE = "gone.json"
ANOTHERS = "it belongs to another user"
IDS_KEPT = 100
"""Whose counts were added lately: an older file is not there any more."""


class Siblings:
    """This worker, among those of `parent`. `add(total, snapshot)` adds the counts of one that has ended."""

    def __init__(
        self,
        home: Path,
        worker: str,
        parent: int,
        add: Callable[[Snapshot, Snapshot], None],
        pid: int | None = None,
    ) -> None:
        self.worker = worker
        self._add = add
        self._id = secrets.token_hex(8)
        self._all = home / "data" / "workers"
        self._folder = self._all / f"{socket.gethostname()}-{parent}-{born(parent)}"
        self._pid = os.getpid() if pid is None else pid
        self._writing = threading.Lock()
        self._written_at = 0.0
        self._was_told = False

    def exchange(self, mine: Snapshot) -> tuple[list[Snapshot], Snapshot]:
        """Leave mine; the snapshots of all that live, mine first, and what those that have ended had counted.

        Where the folder cannot be used, mine alone, and a warning once.
        """
        mine = self._signed(mine)
        try:
            self._write(mine)
            others = [one for one in self._read_all() if one["id"] != self._id]
            gone = self._gone()
        except (OSError, ValueError) as error:
            self._tell(error)
            return [mine], {}
        living = [mine, *(one for one in others if lives(one))]
        for one in others:
            if not lives(one) and one["id"] not in gone.get("ids", ()):
                self._add(gone, one)
        return living, gone

    def leave(self, mine: Snapshot) -> None:
        """Write mine, and bury what has ended."""
        try:
            self._write(self._signed(mine))
            self._bury()
        except (OSError, ValueError) as error:
            self._tell(error)

    def _signed(self, mine: Snapshot) -> Snapshot:
        place = {
            "id": self._id,
            "worker": self.worker or str(self._pid),
            "pid": self._pid,
            "born": born(self._pid),
        }
        return {"at": time.monotonic(), **mine, **place}

    def _tell(self, error: Exception) -> None:
        if not self._was_told:
            self._was_told = True
            log.warning(
                "the folder %s cannot be used (%s): /metrics answers for this worker alone", self._folder, error,
                extra={"what": "metrics_alone"},
            )  # fmt: skip

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, mine: Snapshot) -> None:
        with self._writing:  # Two threads may write at once, and the later numbers must stay.
            if mine["at"] < self._written_at:
                return
            if not self._folder.is_dir():
                self._make()
            _check(self._folder, stat.S_ISDIR)
            _replace(self._folder / f"{self._id}.json", mine)
            self._written_at = mine["at"]

    def _make(self) -> None:
        for folder in (self._all.parent, self._all, self._folder):
            with suppress(FileExistsError):
                folder.mkdir(FOLDER_MODE)
        _check(self._all, stat.S_ISDIR)
        mine = f"{socket.gethostname()}-"
        for other in self._all.iterdir():
            host_pid, _, start = other.name.rpartition("-")
            if other.name.startswith(mine) and born(int(host_pid.removeprefix(mine))) != start:
                shutil.rmtree(other, ignore_errors=True)  # its server has ended

    def _read_all(self) -> list[Snapshot]:
        found = []
        for file in self._folder.glob("*.json"):
            if file.name != GONE:
                with suppress(FileNotFoundError):  # another worker has just added it to `gone.json`
                    found.append(_read(file))
        return sorted(found, key=lambda one: (len(one["worker"]), one["worker"]))

    def _gone(self) -> Snapshot:
        try:
            return _read(self._folder / GONE)
        except FileNotFoundError:
            return {}

    def _bury(self) -> None:
        if all(map(lives, self._read_all())):
            return
        with _locked(self._folder / "lock") as is_mine:
            if not is_mine:
                return
            gone = self._gone()
            for one in self._read_all():
                if not lives(one):
                    if one["id"] not in gone.setdefault("ids", []):
                        self._add(gone, one)
                        gone["ids"] = [*gone["ids"], one["id"]][-IDS_KEPT:]
                        _replace(self._folder / GONE, gone)
                    (self._folder / f"{one['id']}.json").unlink(missing_ok=True)


def born(pid: int) -> str:
    """When a process began, in the kernel's ticks: its number may be another's later. Empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self").exists() or not _is_there(pid) else "0"


def lives(one: Snapshot) -> bool:
    """Does the process of this snapshot still run?"""
    return bool(one["born"]) and born(one["pid"]) == one["born"]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _check(path: Path, is_kind: Callable[[int], bool]) -> None:
    found = path.lstat()
    if found.st_uid != os.geteuid() or not is_kind(found.st_mode):
        raise PermissionError(errno.EACCES, ANOTHERS, path.name)


def _read(path: Path) -> Snapshot:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if os.fstat(file.fileno()).st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, ANOTHERS, path.name)
        snapshot: Snapshot = json.load(file)
        return snapshot


def _replace(path: Path, snapshot: Snapshot) -> None:
    """At once: a reader sees the old one or the new one."""
    new = path.with_name(f".{secrets.token_hex(8)}")
    try:
        made = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
        with os.fdopen(made, "w", encoding="utf-8") as file:
            json.dump(snapshot, file)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock is ours now; it ends with the block, or with the process."""
    import fcntl  # Windows has none, and no workers

    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, FILE_MODE)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)
