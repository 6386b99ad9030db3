"""What this process, or its machine, has run out of: file descriptors, memory, threads.

That is our own shortage: neither a provider nor a database has failed, so it moves no breaker, and the error says what
is missing. The system reports it by a number, Python by `MemoryError` and by one RuntimeError's words. Name lookups and
SQLite report "unknown name" and "cannot open the file" when they lack a descriptor: after such an error `shortage_now`
looks.
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
"""A C library's words for it, in errors that have lost the number."""
_OF_THREADS = "can't start new thread"
CAUSES_MAX = 8


class Shortages:
    """How often something was missing in this process, and what it was last."""

    def __init__(self) -> None:
        self.count = 0
        self.last = ""

    def note(self, sentence: str) -> str:
        """Something is missing; returns the sentence."""
        self.count += 1
        self.last = sentence
        return sentence


SHORTAGES = Shortages()
"""For the whole process: what is missing is missing everywhere in it."""


def shortage_in(error: BaseException) -> str | None:
    """What was missing, as a sentence, by this error or one of its causes; None: nothing of ours. Recorded."""
    for one in _chain(error):
        sentence = _said_by(one)
        if sentence is not None:
            return SHORTAGES.note(sentence)
    return None


def shortage_in_words(text: str) -> str | None:
    """The same from an error's text, if a library of this process wrote it, not the other side. Recorded."""
    sentence = next((sentence for words, sentence in _WORDS.items() if words in text), None)
    return None if sentence is None else SHORTAGES.note(sentence)


def shortage_now() -> str | None:
    """What is missing now, for an error that may hide it: tries to open a descriptor. Recorded."""
    missing = no_descriptor()
    return None if missing is None else shortage_in(missing)


def no_descriptor() -> OSError | None:
    """The error if no descriptor can be opened now; None if one can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno in SENTENCES else None
    return None


def start(thread: threading.Thread) -> None:
    """Start it. Raises `OSError` (EAGAIN, with words that say so) if the system cannot start a thread."""
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
