"""Which of a server's processes this one is: set by `koo serve --workers`, or seen in how it was started."""

from __future__ import annotations

import os
import sys

_told: list[str] = []


def be_worker(name: str) -> None:
    """From now on this process is this worker of its parent."""
    _told[:] = [name]


def worker_name() -> str:
    """As the server that started it calls this process; empty where that has no names, and where it is alone."""
    if _told:
        return _told[0]
    # One that `multiprocessing` has started has loaded it; to load it for its name alone would take milliseconds.
    started_by = sys.modules.get("multiprocessing.process")
    name: str = started_by.current_process().name if started_by is not None else "MainProcess"
    return "" if name == "MainProcess" else name


def parent_of_workers() -> int | None:
    """The process whose children serve together; None where this one serves alone.

    gunicorn forks its workers without a name; uvicorn's are `multiprocessing`'s.
    """
    is_worker = worker_name() or "gunicorn.arbiter" in sys.modules
    return os.getppid() if is_worker else None
