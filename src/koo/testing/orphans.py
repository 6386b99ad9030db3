"""Ends the servers of a test run when the run ends, in whatever way it ends.

`atexit` handlers do not run in a process that SIGTERM or SIGKILL ends. So a small shell process waits on a pipe that
only the test process holds open. When that process ends, the kernel closes the pipe, and the shell ends every server in
the run's folder and removes the folder. If the shell is killed too, the next run finds the folder with its lock free,
and does the same.

A server is recognised by its working directory, not by its process id, which may belong to another process by now. That
needs Linux. On other systems only the folder is removed, and PostgreSQL stops within a minute because its files are
gone.
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
"""The shell's script. SIGQUIT is PostgreSQL's fastest shutdown that still frees its shared memory; a paused server
receives it only after SIGCONT. SIGKILL follows after ten seconds."""


class Watcher:
    """Watches `folder` for as long as this process runs."""

    def __init__(self, folder: Path) -> None:
        # The lock file gets its final name only after it is locked. Another run that starts in between would find an
        # unlocked one, take the folder for a leftover, and end this run's servers.
        made = folder / f"{LOCK}.new"
        self._lock = os.open(made, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        made.rename(folder / LOCK)
        self._shell = subprocess.Popen(
            _command(folder),
            stdin=subprocess.PIPE,
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,  # or Ctrl-C, which goes to the whole process group, would end it before the servers
        )
        os.register_at_fork(after_in_child=self._forget)

    def end(self) -> None:
        """Stop watching: all servers have ended."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()
        os.close(self._lock)

    def _forget(self) -> None:
        """In a forked child: close the child's copies of the pipe and the lock."""
        # A child that outlives its parent would keep both open, and the servers would run as long as the child does.
        with suppress(OSError):
            assert self._shell.stdin is not None
            self._shell.stdin.close()
            self._shell.returncode = 0
            os.close(self._lock)


def end_what_was_left(parent: Path, pattern: str) -> None:
    """End the servers of runs that have ended, and remove their folders below `parent`."""
    for folder in parent.glob(pattern):
        with suppress(OSError):  # in use, owned by another user, or already removed
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
