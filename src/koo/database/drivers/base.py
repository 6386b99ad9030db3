"""How the drivers beneath SQLAlchemy differ: how to begin at once, to cancel, and to cut off.

*Begin at once.* A driver sends BEGIN with the first statement. koo sends it when the scope is entered: that needs no
extra round trip, and is the cheapest validation there is. A dead connection is found before any of the user's code has
run, while it can still be replaced silently.

*Cancel* asks the server, over a connection of its own, to stop the statement. *Cut off* needs no answer: it remains
when the other side is a black hole. It must wake the task that waits on the socket, so it shuts the socket down instead
of closing it under the selector.

*Commit.* PostgreSQL answers COMMIT with ROLLBACK if a statement of the transaction had failed, and no driver reports
that as an error. Only the driver knows for certain: statements on its own connection bypass SQLAlchemy and koo.

Some of this uses names that a driver does not document. Each is looked up when needed, and if it is gone koo falls
back: to beginning with the first statement, or from cancelling to cutting off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from koo.options import DatabaseOptions

Keep = Callable[[asyncio.Future[Any] | None], None]


class Driver(Protocol):
    """One driver. `connection` is the driver's own; `adapted` is SQLAlchemy's wrapper around it."""

    answers_begin: bool
    """Whether BEGIN is a round trip, so that its success shows that the server is well."""
    health_query: str
    """Its one value says whether writes are refused; NULL if only a write can show that."""

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        """For SQLAlchemy. `keep` receives background work that must end before the event loop does."""
        ...

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        """Start BEGIN, to be awaited; None leaves it to the first statement."""
        ...

    def commit(self, send: Callable[[Any], None], fairy: Any) -> bool:
        """COMMIT by `send(fairy)`. False: a statement had failed, so the server answers with ROLLBACK, or would."""
        ...

    def is_in_transaction(self, connection: Any) -> bool:
        """Whether a transaction is open, by the other side's last answer."""
        ...

    def has_ended(self, connection: Any) -> bool:
        """Whether the user's own COMMIT or ROLLBACK, sent as a statement, ended the transaction begun last."""
        ...

    def error_of(self, adapted: Any, error: BaseException) -> Exception | None:
        """`error` as SQLAlchemy would raise it, if it is the driver's own or its socket's; else None."""
        ...

    def is_closed(self, connection: Any) -> bool: ...

    def is_idle(self, connection: Any) -> bool:
        """Whether it is known without asking that no transaction is open; False leaves that to SQLAlchemy."""
        ...

    async def cancel(self, connection: Any, within_s: float) -> None: ...

    def cut_off(self, connection: Any) -> None: ...

    def sever(self, connection: Any) -> None:
        """In a forked child: make sure that nothing done to it here reaches the parent's connection."""
        ...


class MarkingDriver(Driver, Protocol):
    """A driver whose COMMIT can be lost."""

    def commit_marked(self, send: Callable[[Any], None], fairy: Any, marker: str) -> bool:
        """As `commit`, with the statement `marker` before COMMIT in one message; both happen, or neither."""
        ...


POSTGRESQL_HEALTH = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"


def read_numbers(options: dict[str, Any], numbers: Mapping[str, Callable[[str], Any]]) -> None:
    """Read numbers that a URL holds as text. Raises TypeError, as drivers do for an unknown option."""
    for name in numbers.keys() & options.keys():
        if isinstance(options[name], str):
            try:
                options[name] = numbers[name](options[name])
            except ValueError:
                raise TypeError(f"{name} is not a number") from None
