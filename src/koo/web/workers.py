"""The parent of `koo serve --workers`: it binds the socket, starts workers and replaces those that end.

It has no event loop, opens neither database nor state store, and imports little. All workers listen on its one socket,
so no waiting connection is lost when a worker ends. Each is a fresh interpreter: nothing is forked.

    starting → serving → ending

The first worker starts alone: what is wrong with the settings is said once, and one process makes the tables. When it
answers, the others start. One that ends unasked is replaced, at once, or after a pause that grows if it ends again and
again soon after its start. One whose event loop stands still is killed and replaced: each worker writes a byte a
second into the pipe by which it said that it answers, and the parent counts the silence. SIGTERM, SIGHUP and SIGINT
are passed on, and so is a second one, which does not wait. SIGUSR2 replaces all, one after the other: the new one
answers before the old one is ended.

Each worker has its own process group, so that Ctrl-C on a terminal reaches only the parent. Otherwise the signal that
the parent passes on would be a worker's second one. A worker whose parent is gone ends (`ending.py`).
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
"""A worker that ends sooner has most likely failed at its start, and so will the next one."""
PAUSE_S_MAX = 30.0
TICK_S = 0.5
HUNG_AFTER_S = 60.0
"""A worker that is silent for this long is stuck: no answer of koo's keeps the loop busy that long, and even a machine
short of memory wakes a process sooner."""
ENDS_WITHIN_S = 20.0
"""After KOO_SHUTDOWN_DELAY: for the requests that run, for those that are cancelled then, and to close."""
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
OBEYED = {0, 130, *(-one for one in ENDING)}
"""How a worker ends on request: in order, or by the signal itself while it still starts."""
STACKS_S = 0.2
"""For a worker to print where it stands before it is killed."""
Start = Callable[[int, int, bool], Sequence[str]]
"""The command line of a worker, by its number, the descriptor where it says that it is ready, and whether it is the one
that prints what to try."""


@dataclass(eq=False)
class Worker:
    """One process. `beats`: the descriptor that it writes to when it answers, and each second from then on.

    `silent_s`: how long nothing came, in time that the parent itself was awake for.
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
    """The place of a worker. `failed`: how often in a row one ended soon after its start."""

    number: int
    worker: Worker | None = None
    newcomer: Worker | None = None
    failed: int = 0
    starts_at: float = 0.0


@dataclass
class Workers:
    """All workers of one socket. `run` lasts until they have ended; its result is the exit code."""

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

    # ── its life ──────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        """Until a signal ends it, or the first worker does not start."""
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
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        heard = [*ENDING, signal.SIGCHLD, signal.SIGUSR2]
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
        """Until something happens; for a moment at most."""
        talking = {one.beats: one for one in self._living() if one.beats >= 0}
        began_at = self.monotonic()
        readable, _, _ = select.select([wake, *talking], [], [], TICK_S)
        with suppress(BlockingIOError):
            os.read(wake, 4096)
        # At most two ticks at a time: a parent that was stopped, with its workers, must not take its own sleep for
        # their silence.
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
                log.info("replacing the workers, one after the other", extra={"what": "workers_replaced"})
                self._to_renew.extend(slot for slot in self.slots if slot not in self._to_renew)

    def _end(self, number: int) -> None:
        if self._code is None:
            self._code = 0
            self._ends_at = self.monotonic() + self.delay_s + ENDS_WITHIN_S
            # The workers have the same socket. What came when all of them had shut the door would else wait in its
            # queue until this process ends too, and be reset then.
            self.listener.close()
        else:
            # A worker takes no second SIGTERM: see `Server.handle_exit`.
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
            if self._code is not None or not worker.answers or worker.stuck or worker.silent_s < HUNG_AFTER_S:
                continue
            worker.stuck = True
            log.error(
                "worker %d (process %d) has blocked its event loop for %.0f s; killing it; its stacks are on "
                "standard error", worker.number, worker.pid, HUNG_AFTER_S, extra={"what": "worker_killed"},
            )  # fmt: skip
            self._tell(worker, signal.SIGQUIT)  # it prints the stacks of its threads (`worker.py`)
            time.sleep(STACKS_S)
            self._tell(worker, signal.SIGKILL)

    def _tell(self, worker: Worker, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, number)

    # ── workers begin ─────────────────────────────────────────────────────────────────────────────────────────

    def _living(self) -> list[Worker]:
        both = (one for slot in self.slots for one in (slot.worker, slot.newcomer))
        return [one for one in both if one is not None]

    def _fill(self) -> None:
        """Start what is missing and may start now: the first alone, until one has answered."""
        if self._code is not None:
            return
        for slot in self.slots if self._announced else self.slots[:1]:
            if slot.worker is None and self.monotonic() >= slot.starts_at:
                slot.worker = self._begin(slot)
        self._renew()

    def _renew(self) -> None:
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
            os.close(said)
        # `_bury` reaps it with `waitpid`. Without a return code Popen would warn that it still runs.
        process.returncode = 0
        return Worker(slot.number, process.pid, beats, self.monotonic())

    def _hear_of(self, worker: Worker) -> None:
        beats = os.read(worker.beats, 4096)
        worker.silent_s = 0.0
        if not beats:  # it has ended, or it is about to
            os.close(worker.beats)
            worker.beats = -1
        elif not worker.answers:
            self._answers(worker)

    def _answers(self, worker: Worker) -> None:
        worker.answers = self._announced = True
        slot = self.slots[worker.number - 1]
        if slot.newcomer is worker and slot.worker is not None:
            slot.worker.retires = True
            self._tell(slot.worker, signal.SIGINT)  # its door is shut at once: the others have the same one
        if not self._all_answered and all(one.worker and one.worker.answers for one in self.slots):
            self._all_answered = True
            log.info(
                "%d workers are ready", self.count, extra={"what": "workers_answer", "count": self.count}
            )

    # ── workers end ───────────────────────────────────────────────────────────────────────────────────────────

    def _bury(self) -> None:
        """Take note of each process that has ended: as process 1 also of those that were adopted."""
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
        if slot.newcomer is worker:
            slot.newcomer = None
            self._to_renew.clear()
            if self._code is None:
                log.error(
                    "the new worker %d (process %d) %s before it answered: the workers that run are kept",
                    worker.number, worker.pid, how_it_ended(code), extra={"what": "worker_ended"},
                )  # fmt: skip
            return
        slot.worker, slot.newcomer = slot.newcomer, None
        if worker.retires and self._to_renew and self._to_renew[0] is slot:
            self._to_renew.popleft()
        if self._code is not None:
            self._code = self._code or int(code not in OBEYED)
        elif not self._announced:
            self._code = code if code > 0 else 1  # it has said why
            self.listener.close()
        elif not worker.retires:
            self._lost(slot, worker, code)

    def _lost(self, slot: Slot, worker: Worker, code: int) -> None:
        how = "was stuck and has been killed" if worker.stuck else how_it_ended(code)
        if code != 0 and self.monotonic() - worker.started_at < SHORT_LIFE_S:
            self._fail(slot, f"(process {worker.pid}) {how}")
            return
        slot.failed = 0
        log.log(
            logging.WARNING if code else logging.INFO,
            "worker %d (process %d) %s; another one takes its place", worker.number, worker.pid, how,
            extra={"what": "worker_ended"},
        )  # fmt: skip

    def _fail(self, slot: Slot, what: str) -> None:
        slot.failed += 1
        pause_s = min(PAUSE_S_MAX, 2.0 ** (slot.failed - 1))
        slot.starts_at = self.monotonic() + pause_s
        times = "" if slot.failed == 1 else f", for the {slot.failed}th time in a row"
        log.error(
            "worker %d %s less than %.0f s after its start%s; the next one starts in %.0f s",
            slot.number, what, SHORT_LIFE_S, times, pause_s, extra={"what": "worker_ended", "count": slot.failed},
        )  # fmt: skip


def how_it_ended(code: int) -> str:
    """An exit code, or below zero a signal, in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory}"


def interpreter() -> list[str]:
    """This interpreter with its own options. Modules are not looked for in the working directory: a folder `koo` that
    stands there by chance would be run in place of this package."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-P"]
