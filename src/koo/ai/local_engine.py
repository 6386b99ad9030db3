"""A GGUF model in this process: loaded once, asked by anybody, stopped at once.

Theory of operation. llama.cpp computes in threads of its own and lets go of the GIL, but its one call blocks until the
answer is complete. So an `Engine` has worker threads (one for each *slot*), which take `Generation`s from a queue,
first come first served, and hand each chunk to whoever waits. It knows nothing of event loops: those come and go
(`asyncio.run` twice in a process), the engine stays. The first worker that gets work loads the model.

Stopping. llama.cpp asks us after every token, and after every batch of the prompt, whether to go on: an abandoned
generation says no. One that still waits in the queue leaves it. What cannot be stopped is cutting the prompt into
tokens (half a second a megabyte) and loading. And `xllamacpp` keeps the GIL while it loads, so that for this once
(0.3 s with the small model) the event loops stand still, too: who cannot have that calls `LocalProvider.load` before
he serves.

The end of the process. A worker that came back from llama.cpp into a Python that is gone would abort the process with
a message; a model that outlives `main` would race with the destructors of C++. So workers are daemons (Python would
wait for others before anybody could tell them to stop), and an `atexit` callback stops, joins and unloads, which takes
about one token's time.

Slots. On two cores, with two threads, four answers of 64 tokens took 2.9 s one after another, 2.2 s with two slots and
1.9 s with four; but with four, all four callers waited as long as the last one: the mean was 1.8 s either way. One slot
is the default: it costs the least memory (each slot has a context of its own), and an answer at temperature 0 does not
depend on who else is asking, because numbers are never added up in another order.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from koo.ai.local_llama import Setup, count_steps, open_server

Chunk = dict[str, Any]


class EngineFull(Exception):
    """The queue is full; `retry_after_s` is the mean time of an answer, None before the first."""

    def __init__(self, waiting: int, retry_after_s: float | None) -> None:
        super().__init__(f"{waiting} are waiting")
        self.waiting = waiting
        self.retry_after_s = retry_after_s


class EngineClosed(Exception):
    """The process is ending, or the model is being unloaded at this moment."""


class GenerationFailed(Exception):
    """llama.cpp raised in the middle; its message may hold parts of the prompt, so it is not kept."""


class Generation:
    """One answer in the making: what is asked, and where its chunks go.

    `deliver` is called on a worker thread with each chunk, then once with None or an exception; it returns False when
    nobody listens any more. A generation without a body only asks for the model to be loaded.
    """

    __slots__ = ("_deliver", "abandoned", "body")

    def __init__(self, body: Chunk | None, deliver: Callable[[Chunk | Exception | None], bool]) -> None:
        self.body = body
        self.abandoned = False
        self._deliver = deliver

    def take(self, chunk: Chunk) -> bool:
        """Hand a chunk on. True stops llama.cpp."""
        if not self.abandoned and not self._deliver(chunk):
            self.abandoned = True
        return self.abandoned

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come."""
        self._deliver(error)


class Engine:
    """One loaded model. All methods may be called from any thread, and return at once unless they say otherwise."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        # How often loading was begun.
        self.loads = 0
        self._server: Any = None
        self._loading = threading.Lock()
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._waiting: deque[Generation] = deque()
        self._running: set[Generation] = set()
        self._workers: list[threading.Thread] = []
        self._stopping = False
        self._mean_s: float | None = None

    def __repr__(self) -> str:
        state = "loaded" if self.loaded else "not loaded"
        return f"<Engine {self.setup.path.name!r} {state} | {len(self._running)} running, {len(self._waiting)} waiting>"

    @property
    def loaded(self) -> bool:
        """Is the model in memory?"""
        return self._server is not None

    def submit(self, generation: Generation, queue_max: int) -> None:
        """Queue a generation. Raises `EngineFull` where `queue_max` others wait for a slot, and `EngineClosed`."""
        with self._changed:
            if self._stopping:
                raise EngineClosed
            ahead = len(self._waiting) + len(self._running)
            if generation.body is not None and ahead >= self.setup.slots + queue_max:
                raise EngineFull(len(self._waiting), self._mean_s)
            self._waiting.append(generation)
            if len(self._workers) < self.setup.slots:
                self._start_worker()
            self._changed.notify()

    def abandon(self, generation: Generation) -> None:
        """Nobody wants this answer: it leaves the queue, or stops after the token at which it is."""
        generation.abandoned = True
        with self._changed:
            if generation in self._waiting:
                self._waiting.remove(generation)

    def steps(self) -> int:
        """How often llama.cpp has computed since the model was loaded: for each batch of a prompt, for each token.

        Its own count; waits for the step under way.
        """
        server = self._server
        return 0 if server is None else count_steps(server.handle_metrics())

    def unload(self, *, for_good: bool = False) -> None:
        """Stop what runs, end what waits, and give the memory back: waits for the token (or the loading) under way.

        The next `submit` loads the model again, unless it is `for_good`.
        """
        with self._changed:
            self._stopping = True
            workers, self._workers = self._workers, []
            waiting, self._waiting = list(self._waiting), deque()
            for generation in self._running:
                generation.abandoned = True
            self._changed.notify_all()
        for generation in waiting:
            generation.end()
        for worker in workers:
            worker.join()
        # Its destructor joins llama.cpp's own threads.
        self._server = None
        with self._changed:
            self._stopping = for_good

    def leak(self) -> None:
        """In the child of a fork: never destroy the model; its destructor would wait for the parent's threads."""
        if self._server is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))

    # ── the workers ───────────────────────────────────────────────────────────────────────────────────────────

    def _start_worker(self) -> None:
        name = f"koo-local-model-{len(self._workers)}"
        worker = threading.Thread(target=self._work, name=name, daemon=True)
        self._workers.append(worker)
        worker.start()

    def _work(self) -> None:
        while (generation := self._next()) is not None:
            began_at = time.monotonic()
            error: Exception | None = None
            try:
                self._run(generation)
            except Exception as failure:  # noqa: BLE001 - the caller gets it; a dead worker would leave him waiting
                error = failure
            finished = error is None and not generation.abandoned and generation.body is not None
            self._finish(generation, time.monotonic() - began_at if finished else None)
            generation.end(error)
            # A frame that keeps them would keep the caller's event loop alive while this worker sleeps.
            del generation, error

    def _next(self) -> Generation | None:
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return None
                self._changed.wait()
            if self._stopping:
                return None
            generation = self._waiting.popleft()
            self._running.add(generation)
            return generation

    def _finish(self, generation: Generation, took_s: float | None) -> None:
        with self._changed:
            self._running.discard(generation)
            if took_s is not None:
                self._mean_s = took_s if self._mean_s is None else 0.8 * self._mean_s + 0.2 * took_s

    def _run(self, generation: Generation) -> None:
        server = self._load()
        if generation.body is None or generation.abandoned:
            return
        try:
            server.handle_chat_completions(generation.body, generation.take)
        except RuntimeError:
            raise GenerationFailed from None

    def _load(self) -> Any:
        with self._loading:
            if self._server is None:
                self.loads += 1
                try:
                    self._server = open_server(self.setup)
                except Exception as failure:
                    self._fail_waiting(failure)
                    raise
            return self._server

    def _fail_waiting(self, failure: Exception) -> None:
        # Twenty callers behind a broken file should not each wait for twenty attempts to load it.
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        for generation in waiting:
            generation.end(failure)


# ── one for each process and file ─────────────────────────────────────────────────────────────────────────────────


class Engines:
    """The engines of this process: one for each file and setup, until the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[Setup, Engine] = {}
        self._hooked = False

    def get(self, setup: Setup) -> Engine:
        """The engine of this setup; makes it, and does not load it yet."""
        with self._lock:
            if not self._hooked:
                self._hooked = True
                atexit.register(self.unload, for_good=True)
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=self._forget)
            engine = self._engines.get(setup)
            if engine is None:
                engine = self._engines[setup] = Engine(setup)
            return engine

    def unload(self, *, for_good: bool = False) -> None:
        """Give back the memory of all models, as `Engine.unload` does."""
        for engine in list(self._engines.values()):
            engine.unload(for_good=for_good)

    def _forget(self) -> None:
        # A child of a fork has the models' memory and none of their threads.
        self._lock = threading.Lock()
        for engine in self._engines.values():
            engine.leak()
        self._engines.clear()


ENGINES = Engines()
