"""How the drivers beneath SQLAlchemy differ: in beginning early, cancelling, and cutting off.

*Begin early.* A driver sends BEGIN before the first statement. koo sends it when the scope is entered. That costs no
extra round trip, and it is the cheapest way to validate a connection: a dead one is found before any of the user's code
has run, while it can still be replaced silently.

*Cancel* asks the server, over a separate connection, to stop the statement. *Cut off* works without the server, so it
is what remains if the server does not respond. It must wake the task that waits on the socket, so it shuts the socket
down: closing it would pull it out from under the selector.

*Commit.* PostgreSQL responds to COMMIT with ROLLBACK if a statement of the transaction had failed, and no driver
reports that as an error. Only the driver can tell for certain: statements on its own connection bypass SQLAlchemy and
koo.

Some of this uses names that a driver does not document. Each is looked up when it is needed. If it no longer exists,
koo falls back: to BEGIN with the first statement, or from cancelling to cutting off.
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
    """Whether BEGIN is a round trip, so that its success shows that the server is healthy."""
    health_query: str
    """Returns one value: whether writes are refused, or NULL if only a write can show that."""

    def connect_args(self, options: DatabaseOptions, keep: Keep) -> dict[str, Any]:
        """The `connect_args` for SQLAlchemy. `keep` receives background work that must end before the event loop."""
        ...

    def begin(self, adapted: Any) -> Awaitable[Any] | None:
        """Start BEGIN, to be awaited; None leaves it to the first statement."""
        ...

    def commit(self, send: Callable[[Any], None], fairy: Any) -> bool:
        """COMMIT with `send(fairy)`. False: a statement had failed, so the server rolled back, or would have."""
        ...

    def is_in_transaction(self, connection: Any) -> bool:
        """Whether a transaction is open, according to the server's last response."""
        ...

    def has_ended(self, connection: Any) -> bool:
        """Whether the user's own COMMIT or ROLLBACK, sent as a statement, has ended the last transaction."""
        ...

    def error_of(self, adapted: Any, error: BaseException) -> Exception | None:
        """`error` as SQLAlchemy would raise it, if it comes from the driver or its socket; otherwise None."""
        ...

    def idle_limit_s(self, connection: Any) -> float:
        """After how many idle seconds the server ends a transaction; infinite if the driver reports that itself."""
        ...

    def is_closed(self, connection: Any) -> bool: ...

    def is_hung_up(self, connection: Any) -> bool:
        """Whether the server has closed an open connection, and the driver has not noticed yet."""
        ...

    def is_idle(self, connection: Any) -> bool:
        """Whether the driver can tell, without a round trip, that no transaction is open. False: SQLAlchemy decides."""
        ...

    async def cancel(self, connection: Any, within_s: float) -> None: ...

    def cut_off(self, connection: Any) -> None: ...

    def sever(self, connection: Any) -> None:
        """In a forked child: make sure that nothing done to the connection here affects the parent's."""
        ...


class MarkingDriver(Driver, Protocol):
    """A driver whose COMMIT can be lost."""

    def commit_marked(self, send: Callable[[Any], None], fairy: Any, marker: str) -> bool:
        """Like `commit`, with the statement `marker` before COMMIT in the same message: both happen, or neither."""
        ...


POSTGRESQL_HEALTH = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"


def read_numbers(options: dict[str, Any], numbers: Mapping[str, Callable[[str], Any]]) -> None:
    """Convert options that a URL contains as text to numbers. Raises TypeError, as drivers do for unknown options."""
    for name in numbers.keys() & options.keys():
        if isinstance(options[name], str):
            try:
                options[name] = numbers[name](options[name])
            except ValueError:
                raise TypeError(f"{name} is not a number") from None
