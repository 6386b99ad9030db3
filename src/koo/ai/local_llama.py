"""The local model's process: llama.cpp's HTTP server on a Unix socket.

`koo.ai.local_server` starts this file as a script, with the path of the socket's folder as argument. It reads one line
of JSON from stdin (the fields of `Setup`, and a key), loads the model, and writes one line of JSON to stdout:

    {}                  the model is loaded
    {"missing": ...}    the engine cannot be imported
    {"failed": ...}     the model cannot be loaded; the value is what llama.cpp wrote

Then it serves until stdin ends. The kernel closes that pipe however koo's process ends, `kill -9` included, so no model
is left running without an owner.

It imports nothing from koo. So a query waits only for a bare interpreter (50 ms) and the model, and the process uses no
memory beyond what these need.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BATCH_TOKENS = 64
"""Prompt tokens between two points at which the model can stop. This is 4 % slower than 512, but a cancelled query
stops within a quarter of a second instead of two."""
THREADS_MAX = 8
"""With models small enough for a CPU, more threads mostly wait for one another."""
SMALL_MODEL_BYTES = 256 * 1024 * 1024
"""A smaller model writes with one thread: a token is done before a second thread has woken up (see `Threads`)."""
HTTP_THREADS_SPARE = 7
"""An HTTP thread is busy for as long as its answer takes. These extra ones accept requests that wait for a slot."""
SOCKET_NAME = "s.sock"
LOG_BYTES_MAX = 4096
OOM_SCORE = "500"
"""If memory runs out, Linux should kill this process and not koo's, because koo can then report what happened."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The model file, the context tokens of each slot, the number of threads (None: chosen by koo), and the number of
    slots."""

    path: Path
    context_tokens: int
    threads: int | None = None
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads read a prompt, and how many write the answer.

    The threads wait for one another about a hundred times in each step. By default OpenMP waits by spinning. If another
    process occupies one thread's core, the other thread spins for nothing. Measured with the small model on two cores,
    in tokens per second:

        threads                  machine idle    one other busy process
        two, spinning                      80                    1 to 5
        two, sleeping                      30                        30
        one                                43                        24

    With sleeping threads, waking up takes longer than the work itself. So threads sleep while they wait
    (`OMP_WAIT_POLICY`), and a small model writes with one thread. All cores are used where a step is long: for reading,
    where a step is 64 tokens, and for writing with a large model.
    """

    reading: int
    writing: int


def threads_for(setup: Setup) -> Threads:
    """The threads that the setup sets, or those that suit a file of this size. Raises `OSError` without the file."""
    if setup.threads is not None:
        return Threads(setup.threads, setup.threads)
    cores = usable_cores()
    return Threads(cores, cores if setup.path.stat().st_size >= SMALL_MODEL_BYTES else 1)


def main(folder: Path) -> None:
    """Load the model, serve it until stdin ends, and delete `folder`."""
    os.umask(0o077)  # all files, and the socket, are accessible to this user only
    try:
        _be_ended_first()
        _serve(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # This exit skips destructors: llama.cpp's waits for requests whose clients are still connected. An ordinary
        # exit would hang, and keep the model's memory, for as long as one client keeps its connection.
        os._exit(0)


def _serve(folder: Path) -> None:
    # Keep stdout for the result line and send everything else to stderr: what a library prints while it is imported
    # would otherwise be parsed as the result.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    key = order.pop("key")
    answer, server = _load(Setup(Path(order.pop("path")), **order), folder, key)
    out.write(json.dumps(answer) + "\n")
    out.flush()
    if server is not None:
        sys.stdin.read()


def _load(setup: Setup, folder: Path, key: str) -> tuple[dict[str, str], Any]:
    try:
        import xllamacpp
    except ImportError as error:
        return {"missing": str(error)}, None
    log = _redirect_stderr(folder / "log")
    try:
        server = xllamacpp.Server(_params(xllamacpp.CommonParams(), setup, folder, key))
    except AttributeError as error:
        return {"missing": str(error)}, None
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        return {
            "failed": f"{type(error).__name__} {log.read_bytes()[-LOG_BYTES_MAX:].decode(errors='replace')}"
        }, None
    # The log was needed only for a failed load. From here on llama.cpp may write parts of prompts to it, which must not
    # end up in a file.
    _redirect_stderr(Path(os.devnull))
    log.unlink()
    return {}, server


def _redirect_stderr(path: Path) -> Path:
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    return path


def _be_ended_first() -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    except OSError:
        pass  # not Linux, or not allowed: then the system decides which process it kills


def _params(params: Any, setup: Setup, folder: Path, key: str) -> Any:
    params.model.path = str(setup.path)
    params.model_alias = {setup.path.stem}
    params.offline = True
    params.n_ctx = setup.context_tokens * setup.slots
    params.n_parallel = setup.slots
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    threads = threads_for(setup)
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = threads.writing, threads.reading
    # Log errors only.
    params.verbosity = 1
    # The default caches up to 8 GiB of earlier prompts.
    params.cache_ram_mib = 0
    params.fit_params = False
    params.warmup = False
    # Tests read the number of decoding steps here, to see that a closed connection stops the model.
    params.endpoint_metrics = True
    params.ui = False
    params.n_threads_http = setup.slots + HTTP_THREADS_SPARE
    params.hostnames = [str(folder / SOCKET_NAME)]
    params.api_keys = [key]
    return params


@cache
def usable_cores() -> int:
    """How many physical cores this process may use, by affinity and cgroup quota, at most `THREADS_MAX`."""
    if hasattr(os, "sched_getaffinity"):
        cores = len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup/cpu.max"))
    # The kernel stops a process that has used up its quota, in the middle of a step. With more threads than the quota
    # has CPUs, all of them would wait for the ones that are stopped, several times a second.
    return max(1, min(cores, THREADS_MAX, quota or cores))


def _core_of(cpu: int) -> str:
    """The list of CPUs that share a core with this one. Two hyperthreads of a core multiply no faster than one."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def cgroup_quota(file: Path) -> int | None:
    """The container's quota in whole CPUs ("200000 100000" is 2), or None if it has none ("max 100000")."""
    try:
        quota, period = file.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
