"""Operations that happen once per idempotency key, even if several processes send them repeatedly.

    INSERT INTO koo_markers (key, fingerprint) … ON CONFLICT DO NOTHING      the transaction's first statement
        a row      the key is new: run the operation, write its result into the row; one COMMIT covers all of it
        no row     it was done before: return the stored result, and write nothing

Two concurrent operations with one key meet in the unique index. The second waits until the first has ended. It then
finds the result, or runs itself if the first was rolled back. So the row also fences a lost COMMIT, with or without
markers: running the operation again shows whether it was committed.

The fingerprint identifies the operation: reusing a key for a different operation is a mistake of the client, and is
refused. Results are JSON because they outlive the process. Every caller gets the stored form, including the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from sqlalchemy import TextClause, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from koo.database.faults import AGAIN_IN_S, SERVICE
from koo.database.marker_keys import OF_OPERATION, Place
from koo.errors import DatabaseError, IdempotencyKeyInUse, IdempotencyKeyReused, Kind
from koo.sqlstates import sqlstate_of

KEY_MAX = 255
"""The header `Idempotency-Key` usually contains a UUID; much longer keys would slow the index down."""
TRIES_MAX = 3
"""Attempts to take a key whose row keeps disappearing between INSERT and SELECT: once is already rare."""
LOCK_NOT_AVAILABLE = "55P03"


class _Begun(Protocol):
    """The scope of a session."""

    async def find_markers(self) -> Place: ...

    @property
    def is_leaving(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """What an operation returned when it was done. `created_at` is ISO 8601, by the database's clock."""

    result: Any
    created_at: str


class Operation:
    """One operation. `begin` comes first in its transaction and `finish` last; `run` does both around a function.

    `key`: the client's, 1 to 255 printable characters; `fingerprint`: text that differs between operations (it is
    hashed). `wait_s`: how long to wait for another transaction with the same key; None: until the scope's deadline. On
    SQLite the operation waits in the writers' queue. Raises ValueError for an invalid key.
    """

    def __init__(self, key: str, fingerprint: str = "", *, wait_s: float | None = None) -> None:
        if not 1 <= len(key) <= KEY_MAX or not key.isprintable():
            raise ValueError(f"an idempotency key has 1 to {KEY_MAX} printable characters")
        self.key = key
        self._fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()
        self._wait_s = wait_s
        self._values = {"key": OF_OPERATION + key, "fingerprint": self._fingerprint}

    async def begin(self, session: AsyncSession) -> Stored | None:
        """Take the key for this transaction; or, if the operation was done before, return its stored result.

        Raises `IdempotencyKeyReused`, `IdempotencyKeyInUse` after `wait_s`, and `DatabaseError` if the markers table
        cannot be used or the session does not belong to a scope.
        """
        scope = cast("_Begun | None", getattr(session.sync_session, "scope", None))
        if scope is None:
            reason = "an idempotency key needs the session of an open scope"
            raise DatabaseError(SERVICE, reason, kind=Kind.INVALID_REQUEST)
        place = await scope.find_markers()
        # The clean-up may delete an old row between the INSERT that meets it and the SELECT that reads it. The key is
        # then free again, and the loop inserts it.
        for _ in range(TRIES_MAX):
            if await self._insert(session, place):
                _forbid_commits(session.sync_session, scope)
                return None
            select = f"SELECT fingerprint, result, created_at FROM {place.table} WHERE key = :key"
            row = (await session.execute(text(select), self._values)).one_or_none()
            if row is not None:
                return self._read(*row)
        raise self._in_use()

    def _read(self, fingerprint: str | None, result: str | None, created_at: Any) -> Stored:
        if fingerprint != self._fingerprint:
            raise IdempotencyKeyReused(
                SERVICE,
                "this idempotency key was used for another operation, or with other arguments: make a new key",
            )
        if result is None:
            raise DatabaseError(
                SERVICE,
                "an earlier operation with this idempotency key committed part of its work and did not finish:"
                " check what it did, then delete its row",
                kind=Kind.OUTCOME_UNKNOWN,
            )
        at = created_at if isinstance(created_at, str) else created_at.isoformat()
        return Stored(json.loads(result), at)

    async def _insert(self, session: AsyncSession, place: Place) -> bool:
        insert = text(
            f"INSERT INTO {place.table} (key, fingerprint) VALUES (:key, :fingerprint)"
            " ON CONFLICT (key) DO NOTHING RETURNING key"
        )
        try:
            return (await self._bounded(session, insert, place)).one_or_none() is not None
        except DBAPIError as error:
            if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
                raise self._in_use() from error
            raise

    async def _bounded(self, session: AsyncSession, insert: TextClause, place: Place) -> Any:
        """Run the INSERT with a limit on its own wait."""
        # `lock_timeout` is put back afterwards: left in place, it would make the operation's own statements fail on
        # locks that they could wait for. If the INSERT fails, the transaction rolls back, and the setting with it.
        if self._wait_s is None or place.is_sqlite:
            return await session.execute(insert, self._values)
        before = (await session.execute(text("SELECT current_setting('lock_timeout')"))).scalar_one()
        await _set_lock_timeout(session, f"{max(1, int(self._wait_s * 1000))}ms")
        result = await session.execute(insert, self._values)
        await _set_lock_timeout(session, before)
        return result

    def _in_use(self) -> IdempotencyKeyInUse:
        return IdempotencyKeyInUse(
            SERVICE, "an operation with this idempotency key is still running", AGAIN_IN_S
        )

    async def finish(self, session: AsyncSession, result: Any) -> Any:
        """Store the result in the same transaction; returns it in its stored form.

        Raises TypeError or ValueError for a result that JSON cannot represent, and `DatabaseError` if the block rolled
        back, because that also removed the key.
        """
        stored = json.dumps(result, allow_nan=False)
        scope = cast("_Begun", cast("Any", session.sync_session).scope)
        place = await scope.find_markers()
        update = text(f"UPDATE {place.table} SET result = :result WHERE key = :key AND result IS NULL")
        done: Any = await session.execute(update, {**self._values, "result": stored})
        if done.rowcount != 1:
            raise DatabaseError(
                SERVICE,
                "the transaction of this idempotency key was rolled back inside the function: let the error propagate,"
                " or put what may fail into session.begin_nested()",
                kind=Kind.INVALID_REQUEST,
            )
        return json.loads(stored)

    async def run(
        self, call: Callable[[AsyncSession], Awaitable[Any]], session: AsyncSession, *, joined: bool = False
    ) -> Any:
        """The result of `call(session)`, or the stored one. `joined`: the transaction belongs to an outer function."""
        if joined:
            # The outer function may catch this one's error and commit. Without a savepoint the key would then be
            # committed without a result, and every later call with it would fail.
            async with session.begin_nested():
                return await self.run(call, session)
        stored = await self.begin(session)
        if stored is not None:
            return stored.result
        return await self.finish(session, await call(session))


async def _set_lock_timeout(session: AsyncSession, value: str) -> None:
    await session.execute(text("SELECT set_config('lock_timeout', :value, true)"), {"value": value})


def _forbid_commits(session: Session, scope: _Begun) -> None:
    def refuse(session: Session) -> None:
        if not scope.is_leaving and not session.in_nested_transaction():
            raise DatabaseError(
                SERVICE,
                "a function with an idempotency key is one transaction: it must not commit part of it",
                kind=Kind.INVALID_REQUEST,
            )

    event.listen(session, "before_commit", refuse)


def operation_of(
    key: str | None, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Operation | None:
    """The operation for this call, or None without a key."""
    return None if key is None else Operation(key, fingerprint_of(fn, args, kwargs))


def fingerprint_of(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Text that identifies a call: the function's name and its arguments, as far as JSON can represent them."""
    name = f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"
    try:
        return json.dumps([name, list(args), kwargs], sort_keys=True, default=_words)
    except (TypeError, ValueError):  # dictionary keys that JSON cannot sort or represent
        return repr((name, args, sorted(kwargs.items())))


def _words(value: object) -> object:
    """Text for a value that JSON cannot represent: class name and `repr`, unless `repr` differs in each process."""
    # The default `repr` contains the object's address, and the order of a set depends on the process's hash seed. With
    # either, a repeat from another process would be refused as a different operation.
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    of_class = type(value)
    return (
        of_class.__qualname__
        if of_class.__repr__ is object.__repr__
        else f"{of_class.__qualname__} {value!r}"
    )
