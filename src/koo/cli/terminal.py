"""How commands end and speak: exit codes, one sentence for an error, progress while waiting.

What a command is asked for goes to standard output, everything else to standard error, so that the one can be piped.
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
from koo.errors import CallerMistake, ConfigurationError, Kind, KooError

T = TypeVar("T")

PROGRESS_AFTER_S = 0.4
SECONDS_AFTER_S = 2.0


class Exit(IntEnum):
    """How a command ended; documented, so that scripts may rely on it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DEGRADED = 3
    UNHEALTHY = 4
    INTERRUPTED = 130


HEALTH_EXITS = {"healthy": Exit.OK, "degraded": Exit.DEGRADED, "unhealthy": Exit.UNHEALTHY}


class CommandFailed(Exception):
    """A command ends with this sentence and this code."""

    def __init__(self, sentence: str, code: Exit = Exit.FAILED, kind: str = "failed") -> None:
        super().__init__(sentence)
        self.code = code
        self.kind = kind


def code_of(error: KooError) -> Exit:
    """A mistake in what was asked for or configured, or a failure."""
    if isinstance(error, ConfigurationError):
        return Exit.USAGE
    wrong = isinstance(error, CallerMistake) and error.kind is not Kind.NOT_CONFIGURED
    return Exit.USAGE if wrong else Exit.FAILED


def say(sentence: str) -> None:
    """One line for the person, on standard error; an answer is not lost because this cannot be written."""
    with suppress(OSError):
        print(one_line(sentence), file=sys.stderr, flush=True)


def put(line: str) -> None:
    """One line of what was asked for, whatever strangers wrote into it."""
    put_whole(one_line(line) + "\n")


def put_whole(text: str) -> None:
    """What was asked for, unchanged in a pipe: an answer, or rows of CSV. A terminal shows it and does not obey it."""
    print(shown(text) if sys.stdout.isatty() else text, end="", flush=True)


def put_json(content: Any) -> None:
    """What was asked for, as one JSON document; with escapes where the other side reads no UTF-8."""
    plain = (sys.stdout.encoding or "ascii").lower().replace("-", "") not in ("utf8", "utf8sig")
    put_whole(json_text(json.dumps(content, ensure_ascii=plain, indent=2, default=str)) + "\n")


def put_error(kind: str, detail: str, **more: Any) -> None:
    """What went wrong, where a JSON document was asked for: the same shape for every command."""
    put_json({"error": {"kind": kind, "detail": detail, **more}})


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a new loop. Ctrl-C or SIGTERM cancels it, and what was begun is settled first."""
    try:
        return asyncio.run(_until_sigterm(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandFailed("interrupted", Exit.INTERRUPTED, "interrupted") from None


async def _until_sigterm(work: Coroutine[Any, Any, T]) -> T:
    """`timeout 30 koo query …` sends SIGTERM, whose default would end the process with its money held.

    It does not go through SIGINT, which is ignored in a script's background job.
    """
    task = asyncio.current_task()
    if task is not None and threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show on a terminal what is being waited for; `stop()` ends it early."""
    shown = Progress(what)
    try:
        yield shown
    finally:
        shown.stop()


class Progress:
    """A spinner on standard error, if that is a terminal, once the wait is long enough to be noticed.

    A longer wait says for how long it lasts.
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
        """Something else is being waited for now."""
        self._what = what

    def _show(self) -> None:
        from rich.console import Console

        self._status = Console(stderr=True).status(self)
        self._status.start()

    def __rich__(self) -> Any:
        """As text, each time it is drawn: a string would be read as markup, and names come from strangers."""
        from rich.text import Text

        lasts_s = time.monotonic() - self._began_at
        return Text(name(self._what) + (f" ({lasts_s:.0f} s)" if lasts_s >= SECONDS_AFTER_S else ""))

    def stop(self) -> None:
        """Take it away again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._status is not None:
            self._status.stop()
            self._status = None
