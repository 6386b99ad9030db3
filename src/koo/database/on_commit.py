"""Hooks that run once a transaction is known to be committed: send a mail, publish a message, clear a cache.

    on_commit(session, lambda: send_receipt(order))

Each hook runs once, in the order of registration, after the COMMIT and after the connection and the permit have been
returned. A lost COMMIT counts if its marker proves that it happened. Hooks do not run after a rollback or if the
outcome is unknown. A hook registered inside a savepoint that is rolled back, or during an attempt that is repeated, is
dropped. Hooks of a function that joined an outer one run when the outermost function has committed.

A hook cannot undo the transaction. So a hook that fails is logged and passed to the event loop's exception handler, the
other hooks run, and the scope does not fail. If the caller is cancelled, its hooks run in the background.
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
    """The hooks of one scope. `is_deaf`: the rollback is koo's own, so no hook is dropped."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: list[tuple[Hook, SessionTransaction | None]] = []
        self._due: list[Hook] = []
        self.is_deaf = False
        event.listen(session, "after_commit", self._on_commit)
        event.listen(session, "after_soft_rollback", self._on_rollback)

    def add(self, hook: Hook) -> None:
        """Run the hook after the next COMMIT."""
        # The savepoint is remembered with the hook: rolling back to it undoes the work that the hook was about.
        self._waiting.append((hook, self._session.get_nested_transaction()))

    def _on_commit(self, session: Session) -> None:
        # SQLAlchemy fires this event for RELEASE SAVEPOINT too, when nothing is committed yet.
        if not session.in_nested_transaction():
            self._due += [hook for hook, _ in self._waiting]
            self._waiting = []

    def _on_rollback(self, session: Session, ended: SessionTransaction) -> None:
        # Rolling back a savepoint drops the hooks registered in it or in savepoints inside it. Rolling back the whole
        # transaction drops all that wait, but not those due from an earlier commit of the same block.
        if not self.is_deaf:
            self._waiting = [one for one in self._waiting if ended.nested and not _is_within(one[1], ended)]

    async def run(self) -> None:
        """Run the hooks that are due, each once. On a cancellation the remaining ones stay due."""
        # A hook is removed before it runs: after a cancellation in the middle of a hook, the rest runs in the
        # background, and a hook that has begun must not run twice.
        while self._due:
            hook = self._due.pop(0)
            try:
                result = hook()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001 - any error: the transaction is committed
                _report(hook, error)

    @property
    def is_due(self) -> bool:
        """Whether any hook is due."""
        return bool(self._due)


class _Hooked(Protocol):
    hooks: CommitHooks | None


def on_commit(session: AsyncSession, hook: Hook) -> None:
    """Call `hook()` once the transaction of `session` is known to be committed. If it returns an awaitable, await it.

    `session` must belong to an open scope or to a function under `transactional_with_retry`. A hook that fails is
    logged and does not affect the transaction. Raises `DatabaseError` for any other session, and TypeError if `hook`
    cannot be called.
    """
    if not callable(hook):
        raise TypeError(f"on_commit takes a function to call later, not {type(hook).__name__}")
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
    said = [f"{name} raised {type(error).__name__}", "the transaction stays committed"]
    Line(logging.ERROR, SERVICE, "a hook after a COMMIT failed", said, {"what": "on_commit"}).write()
    asyncio.get_running_loop().call_exception_handler(
        {"message": f"koo: a hook of on_commit failed: {name}", "exception": error}
    )
