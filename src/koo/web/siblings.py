"""What the workers of one server share on disk, so that `/metrics` of any worker covers all workers of this host.

Each worker writes a snapshot of its numbers into its own file, once a second and at each scrape, and reads the other
workers' files when it is scraped. The folder belongs to their parent: `data/workers/` in KOO_HOME, named by host,
process id and start time.

A worker's counts outlive it. A worker that finds the file of one that has ended adds its counts to `gone.json`, under
a lock, and deletes the file. `gone.json` lists the ids that were added, in case a process is killed between the two
steps. A reader reads the snapshots first and `gone.json` after them. In the other order, a worker added to `gone.json`
in between would be missing, and a counter would decrease.

The files contain names and numbers. Only their user can read them, and a folder or file of another user is not used.
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
"""`samples` and `durations`, as produced by `exposition.py`; `id`, `worker`, `pid` and `born` are added here."""
GONE = "gone.json"
ANOTHERS = "it belongs to another user"
IDS_KEPT = 100
"""How many ids of added workers are kept. The file of an earlier one has long been deleted."""


class Siblings:
    """This worker among the workers of `parent`. `add(total, snapshot)` adds the counts of one that has ended."""

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
        """Write this worker's snapshot. Returns the snapshots of all running workers, this one's first, and the counts
        of those that have ended. If the folder cannot be used, returns this worker's alone and warns once.
        """
        mine = self._signed(mine)
        try:
            self._write(mine)
            others = [one for one in self._read_all() if one["id"] != self._id]
            # This is read after the snapshots, never before them: see the module docstring.
            gone = self._gone()
        except (OSError, ValueError) as error:
            self._tell(error)
            return [mine], {}
        living = [mine, *(one for one in others if lives(one))]
        # A worker that has ended but is not in `gone.json` yet. Its counts are added for this response only; `_bury`
        # writes them down. Its file may also be left over after they were written: then its id is listed.
        for one in others:
            if not lives(one) and one["id"] not in gone.get("ids", ()):
                self._add(gone, one)
        return living, gone

    def leave(self, mine: Snapshot) -> None:
        """Write this worker's snapshot, and add the counts of workers that have ended to `gone.json`."""
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
                "the folder %s cannot be used (%s): /metrics covers this worker only", self._folder, error,
                extra={"what": "metrics_alone"},
            )  # fmt: skip

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, mine: Snapshot) -> None:
        with self._writing:  # two threads may write at the same time, and the later numbers must win
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
            # Folders of servers that have ended on this host. The start time distinguishes them from a running server
            # with the same process id; folders of other hosts on a shared disk are left alone.
            if other.name.startswith(mine) and born(int(host_pid.removeprefix(mine))) != start:
                shutil.rmtree(other, ignore_errors=True)

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
        # This is checked without the lock first, because almost always nothing has ended. It is checked again with the
        # lock, because another worker may have done the work in the meantime.
        if all(map(lives, self._read_all())):
            return
        with _locked(self._folder / "lock") as is_mine:
            if not is_mine:
                # Another worker holds the lock and is doing the same. Waiting would only block this thread.
                return
            gone = self._gone()
            for one in self._read_all():
                if not lives(one):
                    if one["id"] not in gone.setdefault("ids", []):
                        self._add(gone, one)
                        gone["ids"] = [*gone["ids"], one["id"]][-IDS_KEPT:]
                        # written before the file is deleted: a crash in between leaves both, and the id prevents a
                        # second addition
                        _replace(self._folder / GONE, gone)
                    (self._folder / f"{one['id']}.json").unlink(missing_ok=True)


def born(pid: int) -> str:
    """Return when a process started, in the kernel's ticks, because process ids are reused. Empty if it has ended."""
    # The line contains the program's name in parentheses, which may itself contain spaces and parentheses: split after
    # the last one. The start time is field 22 of proc(5), here the 20th after the name.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        # Without /proc (macOS) the start time is unknown: "0" means that some process with this id exists.
        return "" if Path("/proc/self").exists() or not _is_there(pid) else "0"


def lives(one: Snapshot) -> bool:
    """Return whether the process of this snapshot is still running."""
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
    """Replace atomically: a reader sees the old file or the new one."""
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
    """Yield whether this worker holds the lock. It is released at the end of the block, or when the process ends."""
    import fcntl  # Windows does not have it, and has no workers

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
