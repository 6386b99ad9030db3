"""Which of a server's worker processes this is: set by `koo serve --workers`, or derived from how it was started."""

from __future__ import annotations

import os
import sys

_told: list[str] = []


def be_worker(name: str) -> None:
    """Set the name of this worker process."""
    _told[:] = [name]


def worker_name() -> str:
    """The name that the server gave this process; empty if it has no names or only one process."""
    if _told:
        return _told[0]
    # A process started by `multiprocessing` has already imported it. Importing it just for the name takes milliseconds.
    started_by = sys.modules.get("multiprocessing.process")
    name: str = started_by.current_process().name if started_by is not None else "MainProcess"
    return "" if name == "MainProcess" else name


def parent_of_workers() -> int | None:
    """The id of the process whose children serve together; None if this one serves alone.

    gunicorn forks its workers without names; uvicorn's are `multiprocessing` processes.
    """
    is_worker = worker_name() or "gunicorn.arbiter" in sys.modules
    return os.getppid() if is_worker else None
