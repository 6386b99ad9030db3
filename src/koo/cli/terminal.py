"""How commands end and print: exit codes, one sentence for an error, progress while waiting.

A command's result goes to standard output and everything else to standard error, so that the result can be piped.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, TypeVar

from koo.cli.text import json_text, name, one_line, shown
from koo.cli.words import duration
from koo.errors import CallerMistake, ConfigurationError, Kind, KooError

T = TypeVar("T")

PROGRESS_AFTER_S = 0.4
SECONDS_AFTER_S = 2.0
FOR_S_MAX = 30 * 86_400.0
"""The longest `--for` that the server accepts."""


class Exit(IntEnum):
    """A command's exit code. Documented, so scripts may rely on it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DEGRADED = 3
    UNHEALTHY = 4
    INTERRUPTED = 130


HEALTH_EXITS = {"healthy": Exit.OK, "degraded": Exit.DEGRADED, "unhealthy": Exit.UNHEALTHY}


class CommandFailed(Exception):
    """Ends a command with this sentence and this code."""

    def __init__(self, sentence: str, code: Exit = Exit.FAILED, kind: str = "failed") -> None:
        super().__init__(sentence)
        self.code = code
        self.kind = kind


def for_s(long: str) -> float:
    """The seconds of `--for`. Raises `CommandFailed` for what is not a duration, or longer than the server accepts."""
    seconds = duration(long)
    if seconds is None or not 0 < seconds <= FOR_S_MAX:
        sentence = f"--for is {long!r}; give a duration such as 10m, 2h or 1d, at most 30d"
        raise CommandFailed(sentence, Exit.USAGE, "usage")
    return seconds


def code_of(error: KooError) -> Exit:
    """Return the exit code for a usage or configuration error, or for a failure."""
    if isinstance(error, ConfigurationError):
        return Exit.USAGE
    wrong = isinstance(error, CallerMistake) and error.kind is not Kind.NOT_CONFIGURED
    return Exit.USAGE if wrong else Exit.FAILED


def say(sentence: str) -> None:
    """Print one line for the user to standard error. If that fails, the command's result is still printed."""
    with suppress(OSError):
        print(one_line(sentence), file=sys.stderr, flush=True)


def put(line: str) -> None:
    """Print one line of the result, safe for a terminal whatever it contains."""
    put_whole(one_line(line) + "\n")


def put_whole(text: str) -> None:
    """Print a result unchanged in a pipe: a response, or CSV. On a terminal, control characters are replaced."""
    print(shown(text) if sys.stdout.isatty() else text, end="", flush=True)


def put_json(content: Any) -> None:
    """Print a result as one JSON document, with escapes if the reader does not use UTF-8."""
    plain = (sys.stdout.encoding or "ascii").lower().replace("-", "") not in ("utf8", "utf8sig")
    put_whole(json_text(json.dumps(content, ensure_ascii=plain, indent=2, default=str)) + "\n")


def put_error(kind: str, detail: str, **more: Any) -> None:
    """Print an error as a JSON document, with the same shape for every command."""
    put_json({"error": {"kind": kind, "detail": detail, **more}})


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new event loop. Ctrl-C or SIGTERM cancels it, and what has begun is settled first."""
    try:
        return asyncio.run(_until_sigterm(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandFailed("interrupted", Exit.INTERRUPTED, "interrupted") from None


async def _until_sigterm(work: Coroutine[Any, Any, T]) -> T:
    """`timeout 30 koo query …` sends SIGTERM, which by default would end the process with its money still held.

    This does not use SIGINT, which is ignored in a script's background job.
    """
    task = asyncio.current_task()
    if task is not None and threading.current_thread() is threading.main_thread():
        # Only the main thread may install signal handlers. Commands also run in other threads, in tests for example.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show on a terminal what the command is waiting for; `stop()` ends it early."""
    shown = Progress(what)
    try:
        yield shown
    finally:
        shown.stop()


class Progress:
    """A spinner on standard error, if that is a terminal, once the wait is long enough to be noticed.

    For a longer wait it also shows how long it has lasted.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_at = time.monotonic()
        self._status: Any = None
        self._timer: asyncio.TimerHandle | None = None
        if not sys.stderr.isatty():
            return
        try:
            self._timer = asyncio.get_running_loop().call_later(PROGRESS_AFTER_S, self._show)
        except RuntimeError:
            self._show()

    def tell(self, what: str) -> None:
        """Change what is being waited for."""
        self._what = what

    def _show(self) -> None:
        from rich.console import Console

        self._status = Console(stderr=True).status(self)
        self._status.start()

    def __rich__(self) -> Any:
        """Return text each time it is drawn: a string would be read as markup, and names may come from anyone."""
        from rich.text import Text

        lasts_s = time.monotonic() - self._began_at
        return Text(name(self._what) + (f" ({lasts_s:.0f} s)" if lasts_s >= SECONDS_AFTER_S else ""))

    def stop(self) -> None:
        """Remove it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._status is not None:
            self._status.stop()
            self._status = None
