"""Dial: which server a database's connections are opened to, and with which password, when that changes during use.

An engine keeps the parameters of the URL that it was made with, and engines, with their hooks and sessions, live as
long as their loop. So after `rotate` the new URL's parameters replace the old ones on the way to the driver, for each
connection opened from then on. A password may be a function: it is called for each connection, because cloud providers'
tokens are valid for a quarter of an hour.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from koo.hidden import HIDDEN, hide

T = TypeVar("T")

Password = Callable[[], str | Awaitable[str]]
OF_SQLALCHEMY = ("prepared_statement_cache_size", "prepared_statement_name_func")
"""Parameters of a URL that SQLAlchemy takes out before it asks the driver."""


def unshown(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a connection with passwords hidden from tracebacks."""
    return {name: hide(value) if "password" in name else value for name, value in parameters.items()}


class Dial:
    """`parameters` replace the first URL's; None: the first URL holds."""

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
        """`connect(*args, **kwargs)` with the current parameters. `own`: those that did not come from the URL."""
        if self.parameters is not None:
            kept = {name: value for name, value in kwargs.items() if name in own}
            kwargs = {name: value for name, value in self.parameters.items() if name not in OF_SQLALCHEMY}
            kwargs = unshown(kwargs | kept)
        if self.password is not None:
            password = self.password()
            kwargs["password"] = hide(await password if inspect.isawaitable(password) else password)
            password = HIDDEN
        return await connect(*args, **kwargs)
