"""The parent of `koo serve --workers`. It binds the socket, starts the workers and replaces those that end.

It has no event loop, opens neither database nor state store, and imports little. All workers listen on its one socket,
so no waiting connection is lost when a worker ends. Each worker is a fresh interpreter; nothing is forked.

    starting → serving → ending

* The first worker starts alone, so that an error in the settings is reported once and one process creates the tables.
  The others start when it serves.
* A worker that ends unexpectedly is replaced: immediately, or, if it ended soon after its start, after a pause that
  grows with each such failure.
* A worker whose event loop is blocked is killed and replaced. Each worker writes one byte a second into the pipe on
  which it reported that it serves; the parent measures the silence.
* SIGTERM, SIGHUP and SIGINT are passed on. So is a second one, which skips the waiting.
* SIGUSR2 replaces all workers one by one. A new worker serves before the old one is stopped.

Each worker has its own process group, so Ctrl-C in a terminal reaches only the parent. Otherwise the signal that the
parent passes on would be the worker's second one. A worker whose parent has died shuts down (`ending.py`).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

log = logging.getLogger("koo.workers")

SHORT_LIFE_S = 10.0
"""A worker that ends sooner has most likely failed at startup, and the next one will too."""
PAUSE_S_MAX = 30.0
# The main loop's longest sleep. Short enough for pauses and deadlines, and two wake-ups a second cost nothing.
TICK_S = 0.5
HUNG_AFTER_S = 60.0
"""A worker that is silent for this long is stuck. No request handling in koo blocks the loop that long, and even a
machine short of memory lets a process run sooner.
"""
ENDS_WITHIN_S = 20.0
"""Added to KOO_SHUTDOWN_DELAY: time for running requests, for those that are then cancelled, and to close the
platform.
"""
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
OBEYED = {0, 130, *(-one for one in ENDING)}
"""Exit codes of a worker that was asked to end: 0, or the signal itself if it was still starting."""
STACKS_S = 0.2
"""Time for a stuck worker to print its stacks before it is killed."""
Start = Callable[[int, int, bool], Sequence[str]]
"""Returns a worker's command line. Arguments: its number, the descriptor on which it reports that it serves, and
whether it prints the example commands.
"""


@dataclass(eq=False)
class Worker:
    """One process. `beats`: the pipe into which it writes when it serves, and each second from then on.

    `silent_s`: how long nothing has arrived, counting only time during which the parent itself was running.
    """

    number: int
    pid: int
    beats: int
    started_at: float
    answers: bool = False
    retires: bool = False
    silent_s: float = 0.0
    stuck: bool = False


@dataclass
class Slot:
    """The place of a worker. `failed`: how many workers in a row ended soon after their start."""

    number: int
    worker: Worker | None = None
    newcomer: Worker | None = None
    failed: int = 0
    starts_at: float = 0.0


@dataclass
class Workers:
    """All workers of one socket. `run` returns the exit code when they have ended."""

    count: int
    start: Start
    listener: socket.socket
    delay_s: float
    monotonic: Callable[[], float] = time.monotonic
    slots: list[Slot] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = [Slot(number) for number in range(1, self.count + 1)]
        self._heard: deque[int] = deque()
        self._to_renew: deque[Slot] = deque()
        self._announced = self._all_answered = False
        self._ends_at: float | None = None
        self._code: int | None = None

    # ── main loop ─────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        """Run until a signal ends it or the first worker fails to start."""
        # All steps run in this thread, one after another. Signal handlers only append to a queue (`_hear`), so no step
        # is ever interrupted by another one that changes the same worker.
        with self._hearing() as wake:
            while self._code is None or self._living():
                self._obey()
                self._fill()
                self._wait(wake)
                self._bury()
                self._kill_hung_ones()
                self._kill_late_ones()
        return self._code

    @contextmanager
    def _hearing(self) -> Iterator[int]:
        read, write = os.pipe()
        # The wake-up pipe prevents a race: a signal that arrives after `_obey` but before `select` would otherwise be
        # handled only after a full tick. Python writes a byte into the pipe for each signal, so `select` returns
        # immediately. It must not block: a burst of signals fills the pipe, and then one byte is as good as many.
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        heard = [
            one for one in ENDING if one == signal.SIGTERM or signal.getsignal(one) is not signal.SIG_IGN
        ]
        heard += [signal.SIGCHLD, signal.SIGUSR2]
        before = {one: signal.signal(one, self._hear) for one in heard}
        waker = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            yield read
        finally:
            signal.set_wakeup_fd(waker)
            for one, handler in before.items():
                signal.signal(one, handler)
            os.close(read)
            os.close(write)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)

    def _wait(self, wake: int) -> None:
        """Wait until something happens, for one tick at most."""
        talking = {one.beats: one for one in self._living() if one.beats >= 0}
        began_at = self.monotonic()
        readable, _, _ = select.select([wake, *talking], [], [], TICK_S)
        with suppress(BlockingIOError):
            os.read(wake, 4096)
        # Count two ticks at most. If the parent was stopped together with its workers (Ctrl-Z, a suspended machine),
        # the clock jumps by hours, and the parent would take its own sleep for the workers' silence and kill them all.
        waited_s = min(self.monotonic() - began_at, 2 * TICK_S)
        for descriptor, worker in talking.items():
            worker.silent_s += waited_s
            if descriptor in readable:
                self._hear_of(worker)

    # ── signals ───────────────────────────────────────────────────────────────────────────────────────────────

    def _obey(self) -> None:
        while self._heard:
            number = self._heard.popleft()
            if number in ENDING:
                self._end(number)
            elif number == signal.SIGUSR2 and self._code is None and self._all_answered:
                # The signal is ignored before all workers serve: replacing workers that are still starting would double
                # the processes at the worst moment.
                log.info("replacing the workers, one after the other", extra={"what": "workers_replaced"})
                self._to_renew.extend(slot for slot in self.slots if slot not in self._to_renew)

    def _end(self, number: int) -> None:
        if self._code is None:
            self._code = 0
            self._ends_at = self.monotonic() + self.delay_s + ENDS_WITHIN_S
            # The workers share this socket, and the kernel keeps it open while any process has it. Connections that
            # arrive after all workers have stopped accepting would wait in its queue until this process ends, and then
            # be reset. Once this process has closed its copy, they are refused as soon as the last worker closes its
            # own.
            self.listener.close()
        else:
            # A worker ignores a second SIGTERM: see `Server.handle_exit`.
            number = signal.SIGINT
        for worker in self._living():
            self._tell(worker, number)

    def _kill_late_ones(self) -> None:
        if self._ends_at is None or self.monotonic() < self._ends_at:
            return
        self._ends_at, self._code = None, 1
        for worker in self._living():
            log.error(
                "worker %d (process %d) did not end in time; killing it", worker.number, worker.pid,
                extra={"what": "worker_killed"},
            )  # fmt: skip
            self._tell(worker, signal.SIGKILL)

    def _kill_hung_ones(self) -> None:
        for worker in self._living():
            # A worker that is still starting has sent nothing yet, and on a slow disk its imports take long. While the
            # server ends, `_kill_late_ones` applies its own deadline.
            if self._code is not None or not worker.answers or worker.stuck or worker.silent_s < HUNG_AFTER_S:
                continue
            worker.stuck = True
            log.error(
                "worker %d (process %d) has blocked its event loop for %.0f s; killing it; its stacks are on "
                "standard error", worker.number, worker.pid, HUNG_AFTER_S, extra={"what": "worker_killed"},
            )  # fmt: skip
            # `faulthandler` prints the stacks of the worker's threads (see `worker.py`).
            self._tell(worker, signal.SIGQUIT)
            time.sleep(STACKS_S)
            self._tell(worker, signal.SIGKILL)

    def _tell(self, worker: Worker, number: int) -> None:
        # A worker that has ended keeps its process id until `_bury` reaps it, so the signal cannot hit another
        # process.
        with suppress(ProcessLookupError):
            os.kill(worker.pid, number)

    # ── starting workers ──────────────────────────────────────────────────────────────────────────────────────

    def _living(self) -> list[Worker]:
        both = (one for slot in self.slots for one in (slot.worker, slot.newcomer))
        return [one for one in both if one is not None]

    def _fill(self) -> None:
        """Start the workers that are missing and may start now: only the first one until it serves."""
        if self._code is not None:
            return
        for slot in self.slots if self._announced else self.slots[:1]:
            if slot.worker is None and self.monotonic() >= slot.starts_at:
                slot.worker = self._begin(slot)
        self._renew()

    def _renew(self) -> None:
        # One at a time, and only if every slot has a worker: when a broken version is rolled out, at most one process
        # is missing or extra.
        if not self._to_renew or any(slot.newcomer or slot.worker is None for slot in self.slots):
            return
        slot = self._to_renew[0]
        slot.newcomer = self._begin(slot)

    def _begin(self, slot: Slot) -> Worker | None:
        beats, said = os.pipe()
        try:
            command = self.start(slot.number, said, not self._announced)
            process = subprocess.Popen(
                command, pass_fds=(said, self.listener.fileno()), process_group=0, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            os.close(beats)
            self._fail(slot, f"could not be started: {error.strerror}")
            return None
        finally:
            os.close(
                said
            )  # the child has its own copy; with this one open, the pipe would never report its end
        # `_bury` reaps the process with `waitpid`. Without a return code, Popen's destructor would warn that it still
        # runs.
        process.returncode = 0
        return Worker(slot.number, process.pid, beats, self.monotonic())

    def _hear_of(self, worker: Worker) -> None:
        beats = os.read(worker.beats, 4096)
        worker.silent_s = 0.0
        if not beats:  # the worker has closed its end: it is exiting
            os.close(worker.beats)
            worker.beats = -1
        elif not worker.answers:
            self._answers(worker)

    def _answers(self, worker: Worker) -> None:
        worker.answers = self._announced = True
        slot = self.slots[worker.number - 1]
        if slot.newcomer is worker and slot.worker is not None:
            slot.worker.retires = True
            # It gets SIGINT, because it may stop accepting immediately: the other workers have the same socket.
            self._tell(slot.worker, signal.SIGINT)
        if not self._all_answered and all(one.worker and one.worker.answers for one in self.slots):
            self._all_answered = True
            log.info(
                "%d workers are ready", self.count, extra={"what": "workers_answer", "count": self.count}
            )

    # ── workers that end ──────────────────────────────────────────────────────────────────────────────────────

    def _bury(self) -> None:
        """Handle each process that has ended. As process 1, this also reaps adopted processes."""
        # `waitpid(-1)` and not one call per worker: several SIGCHLD may arrive as one signal, and in a container the
        # parent is process 1, which must also reap the orphans of its workers' children or they fill the process
        # table.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for worker in self._living():
                if worker.pid == pid:
                    self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: Worker, code: int) -> None:
        if worker.beats >= 0:
            os.close(worker.beats)
        slot = self.slots[worker.number - 1]
        # The replacement failed before it served, so the new version or settings are broken. Keep the old worker and
        # give up replacing the others: going on would lose one working process after another.
        if slot.newcomer is worker:
            slot.newcomer = None
            self._to_renew.clear()
            if self._code is None:
                log.error(
                    "the new worker %d (process %d) %s before it served; the running workers are kept",
                    worker.number, worker.pid, how_it_ended(code), extra={"what": "worker_ended"},
                )  # fmt: skip
            return
        # An old worker that was replaced, or one that crashed: in both cases the newcomer, if any, takes the slot.
        slot.worker, slot.newcomer = slot.newcomer, None
        if worker.retires and self._to_renew and self._to_renew[0] is slot:
            self._to_renew.popleft()
        if self._code is not None:
            self._code = self._code or int(code not in OBEYED)
        elif not self._announced:
            self._code = code if code > 0 else 1  # the worker has printed the reason
            self.listener.close()
        elif not worker.retires:
            self._lost(slot, worker, code)

    def _lost(self, slot: Slot, worker: Worker, code: int) -> None:
        # An error soon after the start is a failed start: a pause keeps the parent from starting processes in a tight
        # loop. Exit code 0 is not a failure, however short the worker's life was.
        how = "was stuck and has been killed" if worker.stuck else how_it_ended(code)
        if code != 0 and self.monotonic() - worker.started_at < SHORT_LIFE_S:
            self._fail(slot, f"(process {worker.pid}) {how}")
            return
        slot.failed = 0
        log.log(
            logging.WARNING if code else logging.INFO,
            "worker %d (process %d) %s; starting another one", worker.number, worker.pid, how,
            extra={"what": "worker_ended"},
        )  # fmt: skip

    def _fail(self, slot: Slot, what: str) -> None:
        # 1, 2, 4, 8, 16, then 30 s: a wrong setting costs little, and a crash that heals (a full disk) delays the
        # restart by half a minute at most.
        slot.failed += 1
        pause_s = min(PAUSE_S_MAX, 2.0 ** (slot.failed - 1))
        slot.starts_at = self.monotonic() + pause_s
        times = "" if slot.failed == 1 else f", for the {slot.failed}th time in a row"
        log.error(
            "worker %d %s less than %.0f s after its start%s; the next one starts in %.0f s",
            slot.number, what, SHORT_LIFE_S, times, pause_s, extra={"what": "worker_ended", "count": slot.failed},
        )  # fmt: skip


def how_it_ended(code: int) -> str:
    """Describe an exit code, or a signal if it is negative."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory}"


def interpreter() -> list[str]:
    """This interpreter with its own options. `-P` keeps the working directory off the module path: a folder `koo` that
    happens to be there would be run instead of this package.
    """
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-P"]
