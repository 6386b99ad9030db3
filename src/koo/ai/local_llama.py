"""How llama.cpp is opened: quietly, without a port, with as many threads as help.

`xllamacpp` cannot be had without llama.cpp's HTTP server, which by default listens on a TCP port of the loopback, open
to every program and web page on this machine. Here it listens on a Unix socket in a folder of our own, which is removed
as soon as the model is loaded (and it wants a key that nobody was told). Nobody talks to it: koo calls its handlers.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BATCH_TOKENS = 64
"""Prompt tokens between two chances to stop: 4 % slower than 512, and a quarter of a second instead of two."""
THREADS_MAX = 8
"""More only wait for one another, with models small enough for a CPU."""
SMALL_MODEL_BYTES = 256 * 1024 * 1024
"""A smaller model writes with one thread: a token is done before a second thread has woken up (see `Threads`)."""
SOCKET_PATH_BYTES_MAX = 100
"""The kernel's bound is 107 on Linux and 103 on macOS."""


class EngineMissing(Exception):
    """`xllamacpp` is not installed, or is too old."""


class LoadFailed(Exception):
    """llama.cpp did not take the file, or there is not enough memory."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Which file, how many tokens of context for each slot, how many threads (None: as help), how many slots."""

    path: Path
    context_tokens: int
    threads: int | None = None
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads read a prompt, and how many write.

    They wait for one another some hundred times in each step. By default OpenMP waits spinning, and where a neighbour
    has the other thread's core, it spins for nothing: on two cores the small model wrote 80 tokens a second in silence
    and 1 to 5 beside one busy process. Asleep it is 30, busy or not: waking up takes longer than the work. One thread
    waits for nobody: 43 in silence, 24 beside one busy process. So the waiting is asleep, a small model is written by
    one thread, and all cores read, where a step is 64 tokens, and write with a large model, where a step is long.
    """

    reading: int
    writing: int


def threads_for(setup: Setup) -> Threads:
    """What the setup says, else what helps with a file of this size. Raises `OSError` without the file."""
    if setup.threads is not None:
        return Threads(setup.threads, setup.threads)
    cores = usable_cores()
    return Threads(cores, cores if setup.path.stat().st_size >= SMALL_MODEL_BYTES else 1)


def open_server(setup: Setup) -> Any:
    """Load the model: about half a second for the small one. Raises `EngineMissing` and `LoadFailed`."""
    try:
        with _openmp_that_sleeps():
            import xllamacpp
    except ImportError as error:
        raise EngineMissing("xllamacpp is not installed") from error
    folder = _private_folder()
    try:
        server = xllamacpp.Server(_params(xllamacpp.CommonParams(), setup, folder))
        # One turn of its loop: a server that is destroyed before its loop has begun waits for that loop for ever.
        server.handle_metrics()
        return server
    except AttributeError as error:
        raise EngineMissing("xllamacpp is too old") from error
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise LoadFailed(str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _openmp_that_sleeps() -> Iterator[None]:
    """Have OpenMP's threads wait asleep (why: `Threads`).

    OpenMP reads this once, from C's environment, when the library is loaded. What an operator chose stands, and nothing
    of it stays for child processes.
    """
    c_policy, c_passive = b"OMP_WAIT_POLICY", b"passive"
    if os.name != "posix":
        yield
        return
    # PyDLL keeps the GIL: no other Python thread reads the environment while it moves.
    libc = ctypes.PyDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    chosen = libc.getenv(c_policy) is not None
    if not chosen:
        libc.setenv(c_policy, c_passive, 1)
    try:
        yield
    finally:
        if not chosen:
            libc.unsetenv(c_policy)


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="koo-"))
    if len(os.fsencode(folder / "s.sock")) > SOCKET_PATH_BYTES_MAX:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="koo-", dir="/tmp"))
    return folder


def _params(params: Any, setup: Setup, folder: Path) -> Any:
    params.model.path = str(setup.path)
    params.offline = True
    params.n_ctx = setup.context_tokens * setup.slots
    params.n_parallel = setup.slots
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    threads = threads_for(setup)
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = threads.writing, threads.reading
    # Below the lowest level: llama.cpp writes to stderr, which belongs to the application.
    params.verbosity = -1
    # The default keeps up to 8 GiB of earlier prompts.
    params.cache_ram_mib = 0
    params.fit_params = False
    params.warmup = False
    params.endpoint_metrics = True
    params.ui = False
    params.n_threads_http = 1
    params.hostnames = [str(folder / "s.sock") if hasattr(socket, "AF_UNIX") else "127.0.0.1"]
    params.api_keys = [secrets.token_hex(16)]
    return params


def count_steps(metrics: str) -> int:
    """The decodings in llama.cpp's Prometheus text."""
    lines = (line.split() for line in metrics.splitlines())
    return sum(int(float(words[1])) for words in lines if words[:1] == ["llamacpp:n_decode_total"])


@cache
def usable_cores() -> int:
    """The physical cores that this process may use, by affinity and cgroup quota, at most `THREADS_MAX`."""
    if hasattr(os, "sched_getaffinity"):
        cores = len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup/cpu.max"))
    # Threads above the quota would wait for those that the kernel holds back.
    return max(1, min(cores, THREADS_MAX, quota or cores))


def _core_of(cpu: int) -> str:
    """The CPUs that share a core with this one: two hyperthreads multiply no faster than one."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cgroup_quota(file: Path) -> int | None:
    """Whole CPUs of the container's quota ("200000 100000"), or None where there is none ("max 100000")."""
    try:
        quota, period = file.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
