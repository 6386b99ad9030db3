"""Hooks: what is to happen once a transaction is known to be committed. A mail, a message, a cache.

    on_commit(session, lambda: send_receipt(order))

They run after the COMMIT, also after one that was lost and is known by its marker, when connection and permit are back:
in the order in which they were given, each once. They do not run after a rollback, nor where the outcome is unknown.
What was given inside a savepoint that is rolled back, or by a run of a function that is repeated, is forgotten. A
function that joined an outer one has its hooks run with the outermost.

The transaction is done by then. So a hook that fails is logged, and handed to the event loop's exception handler, but
makes no failure of it; the others run all the same. Those of a caller that is cancelled run without it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol, cast

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from koo.database.faults import SERVICE
from koo.errors import DatabaseError, Kind
from koo.logs.lines import Line

Hook = Callable[[], object]


class CommitHooks:
    """Of one scope. `is_deaf`: a rollback is koo's own, and nothing is to be forgotten."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: list[tuple[Hook, SessionTransaction | None]] = []
        self._due: list[Hook] = []
        self.is_deaf = False
        event.listen(session, "after_commit", self._on_commit)
        event.listen(session, "after_soft_rollback", self._on_rollback)

    def add(self, hook: Hook) -> None:
        """Run it after the COMMIT to come."""
        self._waiting.append((hook, self._session.get_nested_transaction()))

    def _on_commit(self, session: Session) -> None:
        if not session.in_nested_transaction():  # the release of a savepoint commits nothing yet
            self._due += [hook for hook, _ in self._waiting]
            self._waiting = []

    def _on_rollback(self, session: Session, ended: SessionTransaction) -> None:
        if not self.is_deaf:
            self._waiting = [one for one in self._waiting if ended.nested and not _is_within(one[1], ended)]

    async def run(self) -> None:
        """Those that are due, each once. What is left when it is cancelled stays due."""
        while self._due:
            hook = self._due.pop(0)
            try:
                result = hook()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001 - whatever it is, the transaction is committed
                _report(hook, error)

    @property
    def is_due(self) -> bool:
        """Whether there is something to run."""
        return bool(self._due)


class _Hooked(Protocol):
    hooks: CommitHooks | None


def on_commit(session: AsyncSession, hook: Hook) -> None:
    """Call `hook()` once the transaction of `session` is known to be committed, and await what it returns if it can be.

    `session` is one of an open scope, or of a function under `transactional_with_retry`. A hook that fails is logged,
    and changes nothing about the transaction. Raises `DatabaseError` for any other session, TypeError for no function.
    """
    if not callable(hook):
        raise TypeError(f"on_commit takes a function to call later, and not {type(hook).__name__}")
    sync: Any = session.sync_session
    scope = cast("_Hooked | None", getattr(sync, "scope", None))
    if scope is None:
        reason = "on_commit needs the session of an open scope"
        raise DatabaseError(SERVICE, reason, kind=Kind.INVALID_REQUEST)
    if scope.hooks is None:
        scope.hooks = CommitHooks(sync)
    scope.hooks.add(hook)


def _is_within(one: SessionTransaction | None, ended: SessionTransaction) -> bool:
    while one is not None:
        if one is ended:
            return True
        one = one.parent
    return False


def _report(hook: Hook, error: Exception) -> None:
    name = getattr(hook, "__qualname__", type(hook).__name__)
    said = [f"{name} raised {type(error).__name__}", "the transaction is committed all the same"]
    Line(logging.ERROR, SERVICE, "a hook after a COMMIT failed", said, {"what": "on_commit"}).write()
    asyncio.get_running_loop().call_exception_handler(
        {"message": f"koo: a hook of on_commit failed: {name}", "exception": error}
    )
