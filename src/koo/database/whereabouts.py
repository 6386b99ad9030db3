"""Finds where in the program a scope was opened. Computed only on request: an open scope records nothing.

A scope has its task and its session. A waiting task is a chain of coroutines, each awaiting the next, and one of their
frames has the session in a local variable. The outermost such frame outside koo is the function that opened the scope
or received its session; the line is that of its `async with`, if it has one. If no frame has the session (because it is
an attribute of an object), the outermost frame of the application is the best guess. In FastAPI the chain also contains
the route of the request.

Only the first words of a statement are ever shown. They end before anything that could be a value: a literal, a
parameter, a number, a comment. Values are the data of the application's users, and these words reach logs.
"""

from __future__ import annotations

import asyncio
import dis
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

WORDS_MAX = 6
SETTING_WORDS_MAX = 2
"""For statements such as `SET role TO alice`, where a later word may be a value."""
FRAMES_MAX = 200
MANY = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "COPY", "CREATE", "ALTER", "DROP"})

_COMMENT = re.compile(r"\s*(?:/\*.*?\*/|--[^\n]*\n)", re.DOTALL)
_WORD = re.compile(r"(?:[A-Za-z_][\w$]*(?:\.[A-Za-z_][\w$]*)*|\*),?")
_KOO = str(Path(__file__).parent.parent)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class Whereabouts(NamedTuple):
    """`at`: "app.orders:41", `route`: "GET /orders/{id}" or "", `task`: the task's name."""

    at: str
    route: str
    task: str

    def __str__(self) -> str:
        if self.at:
            return f"{self.route} ({self.at})" if self.route else self.at
        return self.route or f"task {self.task!r}"


def find(task: asyncio.Task[Any] | None, session: object) -> Whereabouts:
    """Where in its task the scope with this session was opened, as far as that can be found. Never raises."""
    if task is None:
        return Whereabouts("", "", "none")
    frames = list(_frames(task))[:FRAMES_MAX]
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith(_KOO)]
    name = task.get_name() + (", which has ended" if task.done() else "")
    for frame in own:
        # This is a copy, because this may run in another thread while the task changes its local variables.
        names = [name for name, value in dict(frame.f_locals).items() if value is session]
        if names:
            line = _opened_at(frame.f_code, frame.f_lasti, names[0]) or frame.f_lineno
            return Whereabouts(_place(frame, line), _route(frames), name)
    theirs = [frame for frame in own if not frame.f_code.co_filename.startswith(_LIBRARIES)]
    at = _place(theirs[0], theirs[0].f_lineno) if theirs else ""
    return Whereabouts(at, _route(frames), name)


def _frames(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """The frames of a task, outermost first."""
    # `current_task` raises in a thread without a loop (a WSGI application that reads metrics).
    if asyncio._get_running_loop() is not None and task is asyncio.current_task():
        # A running coroutine has no `cr_await`, so the chain is read from the interpreter's stack instead. It starts at
        # `find`'s caller: a frame stored in one of its own local variables would be a cycle, which keeps all its values
        # alive until the garbage collector runs.
        outermost = getattr(task.get_coro(), "cr_frame", None)
        yield from reversed(list(_callers(sys._getframe(2), outermost)))
        return
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _callers(frame: FrameType | None, outermost: FrameType | None) -> Iterator[FrameType]:
    """The frames from this one outward to the task's outermost one; beyond that are the event loop and what started
    it."""
    while frame is not None:
        yield frame
        frame = None if frame is outermost else frame.f_back


def _place(frame: FrameType, line: int) -> str:
    module = frame.f_globals.get("__name__") or Path(frame.f_code.co_filename).stem
    return f"{module}:{line}"


@lru_cache(maxsize=256)
def _opened_at(code: CodeType, at: int, name: str) -> int | None:
    """The line of the `async with … as name` whose block contains an instruction of a function."""
    # A waiting frame's own line is the statement that waits, which changes. The `async with` is found in the bytecode:
    # the last one before the instruction whose result is stored under this name.
    line = entering = None
    for instruction in dis.get_instructions(code):
        if instruction.offset > at:
            break
        if instruction.opname == "BEFORE_ASYNC_WITH" or instruction.argrepr == "__aenter__":
            entering = instruction.positions.lineno if instruction.positions is not None else None
        elif instruction.opname.startswith("STORE_") and instruction.argval == name and entering is not None:
            line, entering = entering, None
    return line


def _route(frames: list[FrameType]) -> str:
    """The route of the request that a task serves: its pattern, never the actual path, which contains values."""
    for frame in reversed(frames):
        scope = frame.f_locals.get("scope")
        if isinstance(scope, dict) and scope.get("type") == "http":
            pattern = getattr(scope.get("route"), "path", None)
            if isinstance(pattern, str):
                return f"{scope.get('method', '')} {pattern}".strip()
    return ""


def first_words(statement: str | None) -> str:
    """The first words of a statement, up to the first that may be a value: "UPDATE accounts SET balance"."""
    text = statement or ""
    while (comment := _COMMENT.match(text)) is not None:
        text = text[comment.end() :]
    words: list[str] = []
    for word in text[:400].split():
        if _WORD.fullmatch(word) is None:
            break
        words.append(word)
        if len(words) == (WORDS_MAX if words[0].upper() in MANY else SETTING_WORDS_MAX):
            break
    return " ".join(words).rstrip(",")
