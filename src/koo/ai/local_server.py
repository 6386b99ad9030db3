"""Local models, each loaded once for this process, in a process of its own that serves it on a Unix socket.

llama.cpp holds the GIL while it loads, waits inside its destructor for clients that are still connected, and takes the
process with it when memory runs out. In a child process none of this is koo's: the event loop turns while a model is
loaded, unloading is a kill that gives all memory back at once, and a child that was killed is an error with a sentence.

The child serves any event loop of this process. It ends with the process: an `atexit` callback ends it at an ordinary
end, and at any other its stdin closes. Its socket lies in a folder that only this user may enter, and requires a random
key. The child of a fork has no models and loads its own.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

from koo.ai import local_llama
from koo.ai.local_llama import SOCKET_NAME, Setup
from koo.forks import forget_in_child
from koo.shortages import start

SOCKET_PATH_BYTES_MAX = 100
"""The kernel's bound is 107 on Linux and 103 on macOS."""
ENVIRONMENT = re.compile(r"(G?OMP|GGML|LD|DYLD|CUDA|HIP|LC)_.*|PATH|PYTHONHOME|HOME|LANG|TMPDIR|TZ")
"""The part of the environment that a child receives: it contains no API key."""
MEMORY_WORDS = ("bad_alloc", "memoryerror", "out of memory", "allocate", "mmap failed")
KILLED = -9


class EngineMissing(Exception):
    """`xllamacpp` cannot be imported, or is too old; its text is that of the error."""


class LoadFailed(Exception):
    """llama.cpp did not accept the file; `memory`: there is too little memory for it."""

    def __init__(self, *, memory: bool) -> None:
        super().__init__("too little memory" if memory else "not a model that llama.cpp can load")
        self.memory = memory


class FolderMissing(Exception):
    """No folder can be made for the socket."""


class Stopped(Exception):
    """The model was unloaded, or the process is ending."""


class ModelServer:
    """One model in its process. Starting it returns at once; all methods may be called from any thread.

    `ready` is set when the model is loaded, or to `EngineMissing`, `LoadFailed` or `Stopped`; `ended` to the exit code
    of the process once that is over.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.key = secrets.token_hex(16)
        self.ready: Future[None] = Future()
        self.ended: Future[int] = Future()
        for future in (self.ready, self.ended):
            # From now on a caller that stops waiting cannot cancel it for all others.
            future.set_running_or_notify_cancel()
        self.stopped = False
        self._folder = _make_folder()
        try:
            self._process = _spawn(self._folder)
        except OSError:
            self._folder.rmdir()
            raise
        try:
            start(threading.Thread(target=self._watch, name="koo-local-model", daemon=True))
        except BaseException:
            self.stop()
            raise

    def __repr__(self) -> str:
        state = "ended" if self.ended.done() else "loaded" if self.ready.done() else "loading"
        return f"<ModelServer {self.setup.path.name!r} {state}, process {self.pid}>"

    @property
    def pid(self) -> int:
        """The process that has the model."""
        return self._process.pid

    @property
    def socket_path(self) -> str:
        """Where it listens."""
        return str(self._folder / SOCKET_NAME)

    def stop(self) -> None:
        """End it in the middle of whatever it does, and give its memory back; takes some milliseconds."""
        self.stopped = True
        self._process.kill()
        self._clean_up()

    def forget(self) -> None:
        """In the child of a fork: leave it to the parent, also when the parent ends before this process."""
        self._close_pipes()
        # Popen would otherwise warn of a process that nothing has waited for.
        self._process.returncode = 0

    def _watch(self) -> None:
        failure = self._start()
        if failure is None:
            self.ready.set_result(None)
        self.ended.set_result(self._clean_up())
        # After the end: a caller that reads the failure and asks again must not get this process.
        if failure is not None:
            self.ready.set_exception(Stopped() if self.stopped else failure)

    def _start(self) -> Exception | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        setup = self.setup
        order = {
            "path": str(setup.path),
            "context_tokens": setup.context_tokens,
            "threads": setup.threads,
            "slots": setup.slots,
            "key": self.key,
        }
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            answer = json.loads(stdout.readline())
        except (OSError, ValueError):
            # It ended silently. Linux kills a process when memory runs out.
            return LoadFailed(memory=self._process.wait() == KILLED)
        return None if not answer else failure_of(answer)

    def _clean_up(self) -> int:
        code = self._process.wait()
        self._close_pipes()
        shutil.rmtree(self._folder, ignore_errors=True)
        return code

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def failure_of(answer: dict[str, str]) -> Exception:
    """Why a child has not loaded its model."""
    if "missing" in answer:
        return EngineMissing(answer["missing"])
    words = answer["failed"].lower()
    return LoadFailed(memory=any(word in words for word in MEMORY_WORDS))


def _make_folder() -> Path:
    for parent in (None, "/tmp"):
        try:
            folder = Path(tempfile.mkdtemp(prefix="koo-", dir=parent))
        except OSError:
            continue
        if len(os.fsencode(folder / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
            return folder
        folder.rmdir()
    raise FolderMissing


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports the engine."""
    environment = {name: text for name, text in os.environ.items() if ENVIRONMENT.fullmatch(name)}
    # Threads that wait for one another sleep (why: `Threads`), unless the operator has chosen otherwise.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return environment


def _spawn(folder: Path) -> subprocess.Popen[bytes]:
    # -P: the folder of the script has files named like modules of the standard library.
    return subprocess.Popen(
        [sys.executable, "-P", local_llama.__file__, str(folder)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        # Ctrl-C in a terminal is koo's to handle.
        start_new_session=True,
    )


# ── one for each process and setup ────────────────────────────────────────────────────────────────────────────────


class ModelServers:
    """The models of this process: one for each file and setup."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[Setup, ModelServer] = {}
        self._hooked = self._over = False

    def find(self, setup: Setup) -> ModelServer | None:
        """The model of this setup, if it is loaded or being loaded."""
        server = self._servers.get(setup)
        return server if server is not None and not server.stopped and not server.ended.done() else None

    def get(self, setup: Setup) -> ModelServer:
        """The model of this setup; begins to load it unless it is loaded.

        Raises `Stopped`, `FolderMissing`, and `OSError` if no process can be started.
        """
        with self._lock:
            server = self.find(setup)
            if server is None:
                self._hook()
                server = self._servers[setup] = ModelServer(setup)
            return server

    def stop(self, *, for_good: bool = False) -> None:
        """Unload all models. The next query loads its own again, unless it is `for_good`."""
        with self._lock:
            self._over = self._over or for_good
            servers, self._servers = self._servers, {}
        for server in servers.values():
            server.stop()

    def _hook(self) -> None:
        if self._over:
            raise Stopped
        if not self._hooked:
            self._hooked = True
            atexit.register(self.stop, for_good=True)
            forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: the models' processes are the parent's to end."""
        self._lock = threading.Lock()
        servers, self._servers = self._servers, {}
        for server in servers.values():
            server.forget()


SERVERS = ModelServers()
