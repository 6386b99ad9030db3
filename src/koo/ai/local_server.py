"""Runs local models. Each is loaded once, in a child process that serves it on a Unix socket.

llama.cpp holds the GIL while it loads a model. Its destructor waits for clients that are still connected. When memory
runs out, the whole process is killed. In a child process none of this affects koo: the event loop keeps running while a
model loads, unloading is a kill that frees all memory immediately, and a child that was killed becomes an ordinary
error with a message.

The child serves all event loops of this process, and ends with it: through an `atexit` callback if the process exits
normally, otherwise because its stdin is closed. Its socket is in a folder that only this user can enter, and it
requires a random key. A forked child of koo's process starts without models and loads its own.
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
"""The kernel's limit is 107 bytes on Linux and 103 on macOS."""
ENVIRONMENT = re.compile(r"(G?OMP|GGML|LD|DYLD|CUDA|HIP|LC)_.*|PATH|PYTHONHOME|HOME|LANG|TMPDIR|TZ")
"""The environment variables that a child receives. API keys are not among them."""
MEMORY_WORDS = ("bad_alloc", "memoryerror", "out of memory", "allocate", "mmap failed")
KILLED = -9


class EngineMissing(Exception):
    """`xllamacpp` cannot be imported or is too old. The text is that of the original error."""


class LoadFailed(Exception):
    """llama.cpp could not load the file. `memory`: because there is too little memory."""

    def __init__(self, *, memory: bool) -> None:
        super().__init__("too little memory" if memory else "not a model that llama.cpp can load")
        self.memory = memory


class FolderMissing(Exception):
    """No folder could be made for the socket."""


class Stopped(Exception):
    """The model was unloaded, or the process is exiting."""


class ModelServer:
    """One model in its own process. The constructor does not wait for it. All methods may be called from any thread.

    `ready` is set when the model has been loaded, or to `EngineMissing`, `LoadFailed` or `Stopped`. `ended` is set to
    the exit code of the process when that has ended.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.key = secrets.token_hex(16)
        self.ready: Future[None] = Future()
        self.ended: Future[int] = Future()
        for future in (self.ready, self.ended):
            # Several callers wait for the same future, each through `wrap_future`, which passes on a cancellation. A
            # running future refuses it; a pending one would be cancelled for all callers when the first one leaves.
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
        """The process ID of the model's process."""
        return self._process.pid

    @property
    def socket_path(self) -> str:
        """The path of the socket that it listens on."""
        return str(self._folder / SOCKET_NAME)

    def stop(self) -> None:
        """Kill the process immediately, whatever it is doing. That frees its memory within milliseconds."""
        # This is set before the kill: `_watch` in its thread sees the process end, and must report `Stopped`. Otherwise
        # it could see exit code -9 first and report that memory ran out.
        self.stopped = True
        self._process.kill()
        self._clean_up()

    def forget(self) -> None:
        """In a forked child of koo's process, leave the model's process to the parent."""
        # This process has inherited a copy of the pipe to the model's stdin. As long as that is open, the model would
        # not notice that the parent has ended.
        self._close_pipes()
        # Popen warns when it is collected with a process that was never waited for. Waiting here is impossible, as the
        # model's process is not a child of this one.
        self._process.returncode = 0

    def _watch(self) -> None:
        failure = self._start()
        if failure is None:
            self.ready.set_result(None)
        self.ended.set_result(self._clean_up())
        # This happens only after `ended` is set: a caller that sees the failure and tries again calls `find`, which
        # returns this server as long as it has not ended, and would fail with it a second time.
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
            # The process ended without a result line. If it was killed, Linux has most likely run out of memory.
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
    """The error for a child's result line that reports a failure."""
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
    # Threads sleep while they wait for one another (see `Threads`), unless the operator has set another policy.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return environment


def _spawn(folder: Path) -> subprocess.Popen[bytes]:
    # -P keeps the script's folder out of `sys.path`: it has files with the names of standard library modules, such as
    # `types.py`, which the child would import instead.
    return subprocess.Popen(
        [sys.executable, "-P", local_llama.__file__, str(folder)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        # A terminal sends Ctrl-C to its whole foreground process group. In a session of its own the child does not
        # receive it, so koo can end running queries cleanly before it ends the model.
        start_new_session=True,
    )


# ── one server for each setup ─────────────────────────────────────────────────────────────────────────────────────


class ModelServers:
    """The model servers of this process, one for each setup."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[Setup, ModelServer] = {}
        self._hooked = self._over = False

    def find(self, setup: Setup) -> ModelServer | None:
        """The server of this setup, if it has loaded its model or is loading it."""
        server = self._servers.get(setup)
        return server if server is not None and not server.stopped and not server.ended.done() else None

    def get(self, setup: Setup) -> ModelServer:
        """The server of this setup. Starts one if there is none.

        Raises `Stopped`, `FolderMissing`, or `OSError` if no process can be started.
        """
        # The lock covers check and start. Without it two threads could start the same model twice. The second server
        # would replace the first, and the first would never be stopped because nothing refers to it.
        with self._lock:
            server = self.find(setup)
            if server is None:
                self._hook()
                server = self._servers[setup] = ModelServer(setup)
            return server

    def stop(self, *, for_good: bool = False) -> None:
        """Unload all models. The next query loads its model again, unless `for_good` is set."""
        # `_over` and the swap change under one lock. Otherwise a query in another thread could start a model after the
        # process has begun to exit, and nothing would stop it.
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
        """In a forked child, forget the models: the parent ends their processes."""
        self._lock = threading.Lock()  # the old one may have been held by a thread that was not forked
        servers, self._servers = self._servers, {}
        for server in servers.values():
            server.forget()


SERVERS = ModelServers()
