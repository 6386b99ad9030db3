"""An event loop in a separate thread, where servers run for tests that have no loop or block their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Backstage:
    """Call `start()`, then `run(coroutine)` from any other thread, then `stop()`, which cancels the remaining tasks."""

    def __init__(self, name: str = "koo.testing") -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the thread and wait for its result. Raises the exception of `work`, such as OSError for a taken
        port."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        """Cancel all tasks, wait for them, and end the thread."""
        self.run(_end_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _end_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def on_loop(loop: asyncio.AbstractEventLoop, act: Callable[[], T]) -> T:
    """Call `act` on `loop`, in whichever thread that runs, and return its result. Raises `act`'s exception."""
    # On this thread's own loop, or one that does not run, it is called directly: waiting for that loop would be a
    # deadlock.
    if asyncio._get_running_loop() is loop or not loop.is_running():
        return act()

    async def work() -> T:
        return act()

    return asyncio.run_coroutine_threadsafe(work(), loop).result()
