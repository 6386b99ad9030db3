"""Log lines are written by a separate thread, so that a log that is not read never blocks the server.

A log goes to a pipe or a terminal, whose reader may stop: a log driver hangs, someone presses Ctrl-S. A write then
blocks, and would block the event loop with it. Therefore logging only puts the line into a queue. While nothing is
read, the queue fills, and lines that do not fit are counted; when reading resumes, a line reports how many are
missing. At exit, queued lines have a moment to be written. A log that is not read does not keep the process alive.
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
"""Some 20,000 lines: enough for minutes of heavy logging, and little of a server's memory."""
# The size of one write: few system calls, and no copy of the whole queue.
CHUNK_BYTES = 64 * 1024
SHARED_CHUNK_BYTES: int = getattr(select, "PIPE_BUF", 4096)  # Windows has none
"""The most that a pipe accepts atomically. With larger writes, lines of several processes could be interleaved."""
# Enough to write a full queue to a pipe that is being read.
LAST_LINES_S = 1.0

Write = Callable[[bytes], object]


class LineWriter:
    """Lines on their way to `write`, which may block. `missing(count)` returns the line that reports lost lines."""

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
        """In a forked child there is no thread, and the queued lines are the parent's to write."""
        self._thread = None
        # The condition is replaced too. Another thread of the parent may have held its lock during the fork; in the
        # child no thread would ever release it, and the first log line would deadlock.
        self._begin()

    def put(self, line: str) -> None:
        """Queue a line without waiting. A line that does not fit is counted."""
        data = line.encode(errors="backslashreplace") + b"\n"
        # The only lock that logging code takes. The writer thread holds it just to swap the list, never during a
        # write, so `put` cannot be blocked by a full pipe.
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
            return  # the lines stay queued, and the next one tries again
        self._thread = thread

    def close(self, within_s: float = LAST_LINES_S) -> None:
        """Let queued lines be written, but wait no longer than `within_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        # The thread is a daemon: if it is still blocked in a write after this, the interpreter ends without it.
        if self._thread is not None:
            self._thread.join(within_s)

    def _run(self) -> None:
        while lines := self._take():
            for chunk in _chunks(lines, self._chunk_bytes):
                try:
                    self._write(chunk)
                except (OSError, ValueError):  # the reader is gone, and there is nowhere else to report that
                    break

    def _take(self) -> list[bytes]:
        """Return the queued lines, plus one that reports how many are missing; empty at the end."""
        with self._changed:
            while not (self._lines or self._closing):
                self._changed.wait()
            # Lines and count are taken together, under the lock. Lines are only lost while the queue is full, so all
            # lost lines come after those in the queue: the report belongs at the end of this list.
            lines, lost = list(self._lines), self._lost
            self._lines.clear()
            self._bytes = self._lost = 0
        if lost:
            lines.append(self._missing(lost).encode(errors="backslashreplace") + b"\n")
        return lines


def _chunks(lines: list[bytes], bytes_max: int) -> list[bytes]:
    """Join the lines into chunks: one write per line would be slow, one for all would double the memory."""
    chunks, chunk = [], bytearray()
    for line in lines:
        if chunk and len(chunk) + len(line) > bytes_max:
            chunks.append(bytes(chunk))
            chunk = bytearray()
        chunk += line
    return [*chunks, bytes(chunk)] if chunk else chunks


class ThreadHandler(logging.Handler):
    """A handler whose lines are written by a `LineWriter`. `is_shared`: other processes write to the same log."""

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
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not stop the code that logged it
            self._writer.put(f"a log record of {record.pathname}:{record.lineno} cannot be formatted")

    def close(self) -> None:
        """Write the queued lines."""
        self._writer.close()
        super().close()

    def _missing(self, count: int) -> str:
        record = logging.LogRecord(
            "koo", logging.WARNING, __file__, 0, "%d log lines are missing here: the log was not read", (count,), None
        )  # fmt: skip
        record.what, record.count = "log_lines_missing", count
        return self.format(record)


def writer_to(stream: TextIO) -> Write:
    """Return a function that writes to the stream's file, or to the stream itself if it has no file.

    It bypasses the stream's buffer: a thread that blocks while writing to the buffer holds the lock that the
    interpreter needs for its own last flush, so the process could not exit.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return _to_text(stream)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            # Another program on the same terminal has made it non-blocking. Wait until it accepts more, or a second.
            except BlockingIOError:
                select.select([], [descriptor], [], 1.0)

    return write


def _to_text(stream: Any) -> Write:
    def write(data: bytes) -> None:
        stream.write(data.decode())
        stream.flush()

    return write
