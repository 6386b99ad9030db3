"""A real server as a child process that a test can start, stop, kill, freeze and start again.

`koo.testing.postgres` defines the program and when it is ready; this module has everything that is common to servers.
Every server has its own directory and one port on 127.0.0.1 for its whole life, so a client's URL stays valid across a
kill and a restart. Calls block for some milliseconds (a start for some tenths of a second); in a coroutine use
`asyncio.to_thread(server.kill)`. Servers that are still alive when the interpreter ends are stopped and their
directories removed, even if a signal ends the interpreter (`koo.testing.orphans`).

Four lessons are in the code:

* The port is below the range from which the kernel takes the local ports of outgoing connections. A client that keeps
  reconnecting to a dead server's port inside that range will sooner or later get the same number as its own local port.
  TCP then connects it to itself, and the dead "server" seems to reply.
* A UDP socket of the same number is kept as a lease: TCP and UDP ports do not collide, and the kernel frees the lease
  even if the process is killed. Without it, another test process could take the port while the server is down.
* PostgreSQL's backends leave their parent's process group, so signals are sent to the process tree, parent first. A
  parent that still runs would start new children in the meantime.
* The child has its own session. Otherwise Ctrl-C in the terminal would stop the server before the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from koo.testing.orphans import Watcher, end_what_was_left

if TYPE_CHECKING:
    import psutil

HOST = "127.0.0.1"
FOLDER = "koo-servers-"
START_TIMEOUT_S = 30.0
"""A start takes some tenths of a second; a busy machine may need a hundred times as long."""
STOP_TIMEOUT_S = 20.0
"""A fast shutdown takes less than a second, unless the server hangs."""


class ServerFailed(RuntimeError):
    """A server under test did not start or stop, or refused a statement; the message ends with its log."""


class Account(NamedTuple):
    """The system user that a server runs as; both None: the user that runs the tests."""

    uid: int | None = None
    gid: int | None = None

    def give(self, *paths: Path) -> None:
        """Make this account the owner of `paths`."""
        if self.uid is not None and self.gid is not None:
            for path in paths:
                os.chown(path, self.uid, self.gid)

    def reaches(self, path: Path) -> bool:
        """Whether the account may traverse every folder above `path` and read `path`."""
        if self.uid is None:
            return True
        others = stat.S_IROTH | stat.S_IXOTH if path.is_dir() else stat.S_IROTH
        passable = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
        return passable and path.stat().st_mode & others == others


def unprivileged() -> Account:
    """`nobody` under root, because PostgreSQL refuses to run as root; otherwise the current user."""
    if os.geteuid() != 0:
        return Account()
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


@functools.cache
def scratch() -> Path:
    """This process's own directory for servers, which every user may traverse; removed at exit."""
    # If root's TMPDIR is private, the server's account could not open its own data directory there.
    shared = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    parent = next((path for path in shared if path.is_dir() and unprivileged().reaches(path)), shared[0])
    end_what_was_left(parent, f"{FOLDER}*")
    path = Path(tempfile.mkdtemp(prefix=FOLDER, dir=parent))
    path.chmod(0o711)
    atexit.register(_close_all, path, os.getpid(), Watcher(path))
    return path


# Without it, two threads that start their first servers at the same time would both make the template directory.
_one_prepares = threading.RLock()

_alive: weakref.WeakSet[RealServer] = weakref.WeakSet()


def _close_all(path: Path, owner: int, watcher: Watcher) -> None:
    if os.getpid() != owner:  # a forked child that exits must not stop its parent's servers
        return
    for server in list(_alive):
        server.close()
    shutil.rmtree(path, ignore_errors=True)
    watcher.end()


def lease_port(port: int | None = None) -> socket.socket:
    """A UDP socket that reserves its port number for a TCP server until the socket is closed.

    Args:
        port: the number to take (OSError if it is in use); by default a free one between 20000 and 32000.
    """
    for _ in range(200):
        number = port or 20_000 + secrets.randbelow(12_000)
        lease = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lease.bind((HOST, number))
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                # Without this option, connections of an earlier server in TIME_WAIT make a free port look taken.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, number))
        except OSError:
            lease.close()
            if port is not None:
                raise
        else:
            return lease
    raise OSError("no free port between 20000 and 32000 on 127.0.0.1")


class RealServer(ABC):
    """One server process on one port of 127.0.0.1. As a context manager it starts on entry and is removed on exit."""

    # The fastest shutdown that leaves nothing behind.
    _close_signal: ClassVar[int] = signal.SIGTERM

    def __init__(self, *, port: int | None = None, account: Account | None = None) -> None:
        self.host = HOST
        self._account = account or Account()
        self._wanted_port = port
        self._lease: socket.socket | None = None
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    # ── what a subclass defines ───────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The command line; the server must stay in the foreground."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the running process serves clients; called every few milliseconds during the start."""

    def _prepare(self, directory: Path) -> None:
        """Fill the fresh directory, once, before the first start."""

    def _clean_up(self) -> None:
        """Free what a killed server could not free itself; called at close."""

    # ── state ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def port(self) -> int:
        """The port, the same for the server's whole life; known before the first start."""
        if self._lease is None:
            self._lease = lease_port(self._wanted_port)
        return int(self._lease.getsockname()[1])

    @property
    def directory(self) -> Path:
        """The server's own directory, which `close` removes."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-", dir=scratch()))
            self._account.give(self._directory)
            self._prepare(self._directory)
            _alive.add(self)
        return self._directory

    @property
    def pid(self) -> int:
        """The process id of the (parent) server process. Raises ServerFailed if it has never been started."""
        if self._process is None:
            raise ServerFailed(f"{self!r} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """The server's output so far, from all its starts."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # ── acts ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> Self:
        """Start and wait until clients are served; does nothing if it runs. Raises ServerFailed with the log's end."""
        if self.running:
            return self
        with _one_prepares:
            directory, command = self.directory, [str(word) for word in self._command()]
        with (directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=self._environment(),
                start_new_session=True,
                user=self._account.uid,
                group=self._account.gid,
                extra_groups=None if self._account.uid is None else [],
            )
        self._paused = False
        self._wait_until_ready(self._process)
        return self

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        """Send the signal and wait for the server's end. After 20 s it is killed, and ServerFailed is raised."""
        if self._process is None or not self.running:
            return
        self.resume()
        self._process.send_signal(with_signal)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailed(
                f"{self!r} did not stop within {STOP_TIMEOUT_S:g} s\n{self._log_tail()}"
            ) from None

    def restart(self) -> Self:
        """Stop, and start again with the same port and data."""
        self.stop()
        return self.start()

    def kill(self) -> None:
        """Send SIGKILL to the process and all its children, with the effect of an out-of-memory kill or a power cut."""
        # The tree is stopped first, so that the parent cannot start new children while it is being killed.
        tree = self._signal_tree(signal.SIGSTOP)
        for process in tree:
            _send(process, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
        self._paused = False
        _wait_gone(tree)

    def pause(self) -> None:
        """Send SIGSTOP to the whole tree: connections stay open, the kernel accepts new ones, and no reply comes."""
        self._signal_tree(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let a paused server continue; does nothing if it is not paused."""
        if self._paused:
            self._signal_tree(signal.SIGCONT)
            self._paused = False

    def close(self) -> None:
        """Stop the server if it runs, remove its directory, and free its port. A closed server starts again as a new
        one."""
        # SIGKILL is not used: the children would become orphans, which stay zombies forever in a container whose first
        # process reaps no children.
        if self.running:
            self.stop(self._close_signal)
        self._process = None
        if self._directory is not None:
            self._clean_up()
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        _alive.discard(self)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "paused" if self._paused else "running" if self.running else "down"
        where = f"{HOST}:{self.port}" if self._lease is not None else "no port yet"
        return f"<{type(self).__name__} {state}, {where}>"

    # ── implementation ────────────────────────────────────────────────────────────────────────────────────────

    def _environment(self) -> Mapping[str, str]:
        # The developer's own PGDATA, PGPORT or LANG would change what is tested.
        return {"PATH": os.defpath, "LC_ALL": "C"}

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if process.poll() is not None:
                raise ServerFailed(
                    f"{self!r} ended during its start with code {process.returncode}\n{self._log_tail()}"
                )
            if time.monotonic() > give_up_at:
                self.kill()
                raise ServerFailed(f"{self!r} was not ready within {START_TIMEOUT_S:g} s\n{self._log_tail()}")
            time.sleep(0.005)

    def _log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-20:])

    def _signal_tree(self, number: int) -> list[psutil.Process]:
        """Send a signal to the parent, then to its children; returns all of them."""
        import psutil

        if not self.running:
            return []
        try:
            parent = psutil.Process(self.pid)
            _send(parent, number)
            children = parent.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        for child in children:
            _send(child, number)
        return [parent, *children]


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _wait_gone(processes: Sequence[psutil.Process]) -> None:
    """Wait until none of them runs: a new server refuses to start while backends of the old one are alive."""
    give_up_at = time.monotonic() + STOP_TIMEOUT_S
    while any(_is_alive(process) for process in processes) and time.monotonic() < give_up_at:
        time.sleep(0.002)


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    try:
        # In a container whose first process reaps no children, dead processes stay zombies.
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
