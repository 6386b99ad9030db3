"""Dial: the server and the password for new connections, which may change while the database is in use.

An engine keeps the parameters of the URL that it was created with, and it lives, with its hooks and sessions, as long
as its loop. So after `rotate` the new URL's parameters replace the old ones on their way to the driver, for each
connection that is opened from then on. A password may be a function, which is called for each connection: tokens of
cloud providers expire after a quarter of an hour.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from sqlalchemy import URL

from koo.hidden import HIDDEN, hide

T = TypeVar("T")

Password = Callable[[], str | Awaitable[str]]
OF_SQLALCHEMY = ("prepared_statement_cache_size", "prepared_statement_name_func")
"""Parameters in a URL that SQLAlchemy uses itself and does not pass to the driver."""


def unshown(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a connection with passwords hidden from tracebacks."""
    return {name: hide(value) if "password" in name else value for name, value in parameters.items()}


def password_of(url: URL) -> dict[str, Any]:
    """The URL's password as an argument of the driver, hidden from tracebacks."""
    # SQLAlchemy turns the password in a URL into plain text, but leaves an argument as it is.
    return {"password": hide(url.password)} if url.password else {}


class Dial:
    """`parameters` replace those of the first URL; None: the first URL is used."""

    __slots__ = ("parameters", "password")

    def __init__(self, parameters: dict[str, Any] | None = None, password: Password | None = None) -> None:
        self.parameters = parameters
        self.password = password

    def take(self, other: Dial) -> None:
        """Use the other's parameters from now on."""
        self.parameters, self.password = other.parameters, other.password

    async def call(
        self, own: Collection[str], connect: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> T:
        """Call `connect(*args, **kwargs)` with the current parameters. `own`: the names of the parameters that do not
        come from the URL."""
        # The old URL's parameters are dropped, not merged: an option that only the old URL has must not survive a
        # rotation.
        if self.parameters is not None:
            kept = {name: value for name, value in kwargs.items() if name in own}
            kwargs = {name: value for name, value in self.parameters.items() if name not in OF_SQLALCHEMY}
            kwargs = unshown(kwargs | kept)
        if self.password is not None:
            password = self.password()
            kwargs["password"] = hide(await password if inspect.isawaitable(password) else password)
            password = HIDDEN  # a traceback with local variables (Sentry) would show it
        return await connect(*args, **kwargs)
