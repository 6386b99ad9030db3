"""The local model's process: llama.cpp's HTTP server on a Unix socket, quiet, with as many threads as help.

`koo.ai.local_server` starts this file as a script, with the folder for the socket. It reads one line of JSON from stdin
(the fields of `Setup`, and a key), loads the model and answers with one line on stdout: {}, or {"missing": ...} where
the engine cannot be imported, or {"failed": ...} with what llama.cpp wrote where the model cannot be loaded. Then it
serves until stdin ends, which it does however koo's process ends, `kill -9` included.

It imports nothing of koo, so that a query waits for a bare interpreter (50 ms) and the model only, and the process has
no more memory than they need.
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
"""Prompt tokens between two chances to stop: 4 % slower than 512, and a quarter of a second instead of two."""
THREADS_MAX = 8
"""More only wait for one another, with models small enough for a CPU."""
SMALL_MODEL_BYTES = 256 * 1024 * 1024
"""A smaller model writes with one thread: a token is done before a second thread has woken up (see `Threads`)."""
HTTP_THREADS_SPARE = 7
"""An HTTP thread is busy as long as its answer: those beyond the slots take requests that wait for a slot."""
SOCKET_NAME = "s.sock"
LOG_BYTES_MAX = 4096
OOM_SCORE = "500"
"""Where memory runs out, Linux is to end this process rather than koo's, which can say what happened."""


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
    has nothing to wait for: 43 in silence, 24 beside one busy process. So threads wait asleep (`OMP_WAIT_POLICY`), a
    small model is written by one thread, and all cores read, where a step is 64 tokens, and write with a large model,
    where a step is long.
    """

    reading: int
    writing: int


def threads_for(setup: Setup) -> Threads:
    """What the setup says, else what helps with a file of this size. Raises `OSError` without the file."""
    if setup.threads is not None:
        return Threads(setup.threads, setup.threads)
    cores = usable_cores()
    return Threads(cores, cores if setup.path.stat().st_size >= SMALL_MODEL_BYTES else 1)


def main(folder: Path) -> None:
    """Load, serve until stdin ends, and leave no file in `folder`, nor the folder itself."""
    os.umask(0o077)  # whatever it writes, its socket too, is for this user alone
    try:
        _be_ended_first()
        _serve(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Without destructors: llama.cpp's would wait for requests whose clients are still connected.
        os._exit(0)


def _serve(folder: Path) -> None:
    # What a library prints while it is imported must not be taken for the answer.
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
    # From here on llama.cpp has nothing to say that belongs into a file: it may repeat a prompt.
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
        pass  # Not Linux, or not allowed: memory then runs out for whichever process the system chooses.


def _params(params: Any, setup: Setup, folder: Path, key: str) -> Any:
    params.model.path = str(setup.path)
    params.model_alias = {setup.path.stem}
    params.offline = True
    params.n_ctx = setup.context_tokens * setup.slots
    params.n_parallel = setup.slots
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    threads = threads_for(setup)
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = threads.writing, threads.reading
    # Errors only.
    params.verbosity = 1
    # The default keeps up to 8 GiB of earlier prompts.
    params.cache_ram_mib = 0
    params.fit_params = False
    params.warmup = False
    # Its count of decodings is how the tests see that a closed connection stops the model.
    params.endpoint_metrics = True
    params.ui = False
    params.n_threads_http = setup.slots + HTTP_THREADS_SPARE
    params.hostnames = [str(folder / SOCKET_NAME)]
    params.api_keys = [key]
    return params


@cache
def usable_cores() -> int:
    """The physical cores that this process may use, by affinity and cgroup quota, at most `THREADS_MAX`."""
    if hasattr(os, "sched_getaffinity"):
        cores = len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup/cpu.max"))
    # Threads above the quota would wait for those that the kernel holds back.
    return max(1, min(cores, THREADS_MAX, quota or cores))


def _core_of(cpu: int) -> str:
    """The CPUs that share a core with this one: two hyperthreads multiply no faster than one."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def cgroup_quota(file: Path) -> int | None:
    """Whole CPUs of the container's quota ("200000 100000"), or None where there is none ("max 100000")."""
    try:
        quota, period = file.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
