"""Log lines are written by a separate thread, so that a reader that has stopped holds nothing else up.

A log goes to a pipe or a terminal, whose reader may stop: a log driver that hangs, Ctrl-S. A write then blocks, and
would block the event loop with it. So logging only puts the line into a queue. While nothing flows, the queue fills,
and lines that find no room are counted; when it flows again, a line says how many are missing.
At the end what is queued has a moment to be written; a log that is not read does not keep the process alive.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from koo.forks import forget_in_child
from koo.shortages import NoThread, start

QUEUE_BYTES_MAX = 4 * 2**20
"""Some 20,000 lines: minutes of a storm, and not much of a server's memory."""
CHUNK_BYTES = 64 * 1024
SHARED_CHUNK_BYTES: int = getattr(select, "PIPE_BUF", 4096)  # Windows has none
"""What a pipe takes in one piece, however many processes write to it: lines of several would else be mixed."""
LAST_LINES_S = 1.0

Write = Callable[[bytes], object]


class LineWriter:
    """Lines on their way to `write`, which may block. `missing(count)` is the line that says how many were lost."""

    def __init__(
        self,
        write: Write,
        missing: Callable[[int], str],
        bytes_max: int = QUEUE_BYTES_MAX,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._write = write
        self._chunk_bytes = chunk_bytes
        self._missing = missing
        self._bytes_max = bytes_max
        self._thread: threading.Thread | None = None
        self._begin()
        forget_in_child(self)

    def _begin(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._lines: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self._closing = False

    def forget_parent(self) -> None:
        """In a forked child there is no thread, and the lines are the parent's to write."""
        self._thread = None
        self._begin()

    def put(self, line: str) -> None:
        """Queue a line; never waits. One that finds no room is counted."""
        data = line.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if self._bytes + len(data) > self._bytes_max:
                self._lost += 1
                return
            self._lines.append(data)
            self._bytes += len(data)
            if self._thread is None and not self._closing:
                self._start()
            self._changed.notify()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="koo log", daemon=True)
        try:
            start(thread)
        except NoThread:
            return  # The lines are kept, and the next one tries again.
        self._thread = thread

    def close(self, within_s: float = LAST_LINES_S) -> None:
        """Let what is queued be written, but wait no longer than the given time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(within_s)

    def _run(self) -> None:
        while lines := self._take():
            for chunk in _chunks(lines, self._chunk_bytes):
                try:
                    self._write(chunk)
                except (OSError, ValueError):  # the reader has gone, and there is nowhere else to report it
                    break

    def _take(self) -> list[bytes]:
        """What is queued, and how many are missing behind it; nothing at the end."""
        with self._changed:
            while not (self._lines or self._closing):
                self._changed.wait()
            lines, lost = list(self._lines), self._lost
            self._lines.clear()
            self._bytes = self._lost = 0
        if lost:
            lines.append(self._missing(lost).encode(errors="backslashreplace") + b"\n")
        return lines


def _chunks(lines: list[bytes], bytes_max: int) -> list[bytes]:
    """The lines in pieces of some size: a write for each would be slow, and all in one would double the memory."""
    chunks, chunk = [], bytearray()
    for line in lines:
        if chunk and len(chunk) + len(line) > bytes_max:
            chunks.append(bytes(chunk))
            chunk = bytearray()
        chunk += line
    return [*chunks, bytes(chunk)] if chunk else chunks


class ThreadHandler(logging.Handler):
    """A handler whose lines are written by a `LineWriter`; `is_shared`: other processes write to the same log."""

    def __init__(
        self,
        write: Write,
        formatter: logging.Formatter,
        bytes_max: int = QUEUE_BYTES_MAX,
        *,
        is_shared: bool = False,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        chunk_bytes = SHARED_CHUNK_BYTES if is_shared else CHUNK_BYTES
        self._writer = LineWriter(write, self._missing, bytes_max, chunk_bytes)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line."""
        try:
            self._writer.put(self.format(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not end what logged it
            self._writer.put(f"a log record of {record.pathname}:{record.lineno} cannot be formatted")

    def close(self) -> None:
        """Write what is queued."""
        self._writer.close()
        super().close()

    def _missing(self, count: int) -> str:
        record = logging.LogRecord(
            "koo", logging.WARNING, __file__, 0, "%d log lines are missing here: the log was not read", (count,), None
        )  # fmt: skip
        record.what, record.count = "log_lines_missing", count
        return self.format(record)


def writer_to(stream: TextIO) -> Write:
    """Writes to the stream's file, past its buffer: a thread that waits there would hold the lock of the interpreter's
    own last flush. Without a file, to the stream itself."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return _to_text(stream)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:  # another program has made the terminal that we share non-blocking
                select.select([], [descriptor], [], 1.0)

    return write


def _to_text(stream: Any) -> Write:
    def write(data: bytes) -> None:
        stream.write(data.decode())
        stream.flush()

    return write
