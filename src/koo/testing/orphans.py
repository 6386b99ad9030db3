"""No server outlives its test run, however that ends.

`atexit` does not run in a process that SIGTERM or SIGKILL ends. So a small shell waits beside it on a pipe that only
this process holds open: the kernel closes it with the process, and the shell ends each server in the run's folder, then
removes that. Should the shell be killed too, the next run finds the folder, whose lock is free, and does the same.

A server is known by its working folder, not by a number that may belong to another process by now; so this needs Linux.
Elsewhere only the folder is removed, and PostgreSQL ends itself within a minute when it misses its files.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from contextlib import suppress
from pathlib import Path

LOCK = "owner"
END_ALL = """
trap '' INT HUP TERM
read -r over
[ -d "$1" ] || exit 0
living() {
    for one in /proc/[0-9]*; do
        case "$(readlink "$one/cwd" 2>/dev/null)" in "$1"/*) echo "${one#/proc/}" ;; esac
    done
}
tell() { for pid in $(living "$2"); do kill -"$1" "$pid"; kill -CONT "$pid"; done 2>/dev/null; }
tell QUIT "$1"
turns=0
while [ $turns -lt 100 ] && [ -n "$(living "$1")" ]; do sleep 0.1; turns=$((turns + 1)); done
tell KILL "$1"
rm -rf "$1"
"""
"""SIGQUIT is PostgreSQL's quickest end that gives its shared memory back; a paused one takes it when it goes on."""


class Watcher:
    """Watches over `folder` for as long as this process runs."""

    def __init__(self, folder: Path) -> None:
        # Named only once it is locked: a run that begins in between would take it for a leftover.
        made = folder / f"{LOCK}.new"
        self._lock = os.open(made, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        made.rename(folder / LOCK)
        self._shell = subprocess.Popen(
            _command(folder),
            stdin=subprocess.PIPE,
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,  # Ctrl-C in the terminal, or the end of its group, must not end it first
        )
        os.register_at_fork(after_in_child=self._forget)

    def end(self) -> None:
        """There is nothing to watch over any more."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()
        os.close(self._lock)

    def _forget(self) -> None:
        """A forked child that lives on must not hold the pipe open, nor the lock."""
        with suppress(OSError):
            assert self._shell.stdin is not None
            self._shell.stdin.close()
            self._shell.returncode = 0
            os.close(self._lock)


def end_what_was_left(parent: Path, pattern: str) -> None:
    """End servers of runs that are gone, and remove their folders below `parent`."""
    for folder in parent.glob(pattern):
        with suppress(OSError):  # it is in use, another user's, or gone by now
            lock = os.open(folder / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                subprocess.run(
                    _command(folder), stdin=subprocess.DEVNULL, cwd="/", env={"PATH": os.defpath}, check=False
                )
            finally:
                os.close(lock)


def _command(folder: Path) -> list[str]:
    return ["sh", "-c", END_ALL, "sh", str(folder.resolve())]
