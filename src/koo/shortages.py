"""What this process or its machine has run out of: file descriptors, memory, threads.

Such a shortage is local: neither a provider nor a database has failed, so it does not count for any breaker, and the
error names what is missing. The system reports it as an errno, Python as `MemoryError` or as the text of a
RuntimeError. Without a free descriptor a name lookup reports "unknown name", and SQLite "cannot open the file". After
such an error, `shortage_now` checks for the real cause.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator, Mapping

NO_MEMORY = "this machine has no more memory for this process"
NO_THREAD = "this machine cannot start more threads for this process (its limit: ulimit -u)"
NO_DESCRIPTOR = "this process has no file descriptor left (its limit: ulimit -n)"
SENTENCES: Mapping[int, str] = {
    errno.EMFILE: NO_DESCRIPTOR,
    errno.ENFILE: "this machine has no file descriptor left",
    errno.ENOMEM: NO_MEMORY,
}
_WORDS: Mapping[str, str] = {os.strerror(number): sentence for number, sentence in SENTENCES.items()}
"""The C library's texts, for errors that no longer carry the number."""
_OF_THREADS = "can't start new thread"
CAUSES_MAX = 8


class Shortages:
    """How many shortages this process has had, and the last one."""

    def __init__(self) -> None:
        self.count = 0
        self.last = ""

    def note(self, sentence: str) -> str:
        """Record a shortage; returns the sentence."""
        self.count += 1
        self.last = sentence
        return sentence


SHORTAGES = Shortages()
"""One for the whole process, because a shortage affects all of it."""


def shortage_in(error: BaseException) -> str | None:
    """The shortage behind this error or one of its causes, as a sentence; None if there is none. Records it."""
    for one in _chain(error):
        sentence = _said_by(one)
        if sentence is not None:
            return SHORTAGES.note(sentence)
    return None


def shortage_in_words(text: str) -> str | None:
    """The shortage behind an error's text, which must come from a library in this process, not a server. Records it."""
    sentence = next((sentence for words, sentence in _WORDS.items() if words in text), None)
    return None if sentence is None else SHORTAGES.note(sentence)


def shortage_now() -> str | None:
    """The shortage right now, found by trying to open a descriptor; for errors that may hide one. Records it."""
    missing = no_descriptor()
    return None if missing is None else shortage_in(missing)


def no_descriptor() -> OSError | None:
    """The error if no descriptor can be opened now; None if one can."""
    # Opening one is the only reliable test. Counting this process's own would miss the limit of the whole machine
    # (ENFILE).
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno in SENTENCES else None
    return None


def start(thread: threading.Thread) -> None:
    """Start the thread. Raises `OSError` (EAGAIN, with a clear text) if the system cannot start one."""
    try:
        thread.start()
    except RuntimeError as error:
        if _OF_THREADS not in str(error):
            raise
        raise NoThread from None


class NoThread(OSError):
    """The system cannot start a thread."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, NO_THREAD)


def _said_by(error: BaseException) -> str | None:
    if isinstance(error, socket.gaierror):
        missing = no_descriptor()
        return None if missing is None else SENTENCES.get(missing.errno or 0)
    if isinstance(error, OSError):
        return NO_THREAD if isinstance(error, NoThread) else SENTENCES.get(error.errno or 0)
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, RuntimeError) and _OF_THREADS in str(error):
        return NO_THREAD
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if one is None:
            return
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
