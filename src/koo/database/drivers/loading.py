"""The supported drivers. Only the one in the URL is imported: importing all of them takes longer than koo itself."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from koo.database.drivers.base import Driver
from koo.database_urls import check_host, check_place, with_hidden_password
from koo.errors import ConfigurationError
from koo.sqlite_url import check_sqlite_url

DRIVERS = ("psycopg", "asyncpg", "aiosqlite")
DIALECTS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "sqlite": "sqlite+aiosqlite",
}


LEAVES_QUOTED = make_url("sqlite:///%20").database == "%20"
"""SQLAlchemy 2.0 uses the database name as written; 2.1 decodes `%20` in it to a space."""


def load_driver(name: str) -> Driver:
    """The driver called `name`, one of `DRIVERS`."""
    match name:
        case "psycopg":
            from koo.database.drivers.psycopg import Psycopg

            return Psycopg()
        case "asyncpg":
            from koo.database.drivers.asyncpg import Asyncpg

            return Asyncpg()
        case "aiosqlite":
            from koo.database.drivers.aiosqlite import Aiosqlite

            return Aiosqlite()
    raise KeyError(name)


def _parsed(given: str | URL) -> URL | None:
    """The parsed URL, or None. SQLAlchemy's errors contain the URL with its password, so they are not passed on."""
    with suppress(ArgumentError, ValueError):
        url: URL = with_hidden_password(make_url(given))
        return url
    return None


def read_url(given: str | URL) -> URL:
    """The URL with its driver named. Raises `ConfigurationError`, whose text never contains the password."""
    try:
        if isinstance(given, str) and not given.startswith("sqlite"):
            check_place(given.partition("://")[2])
        url = _parsed(given)
        if url is not None:
            check_host(url.host, url.port)
    except ValueError as error:
        raise ConfigurationError("", f"DATABASE_URL is not valid: {error}") from None
    if url is None:
        raise ConfigurationError(
            "", "DATABASE_URL is not a URL; it has the form driver://user:password@host/name"
        )
    if LEAVES_QUOTED and isinstance(given, str) and url.database is not None:
        url = url.set(database=unquote(url.database))
    if url.password == "***":
        raise ConfigurationError(
            "",
            "the database's URL has its password hidden: use engine.url itself,"
            " or engine.url.render_as_string(hide_password=False), instead of str(engine.url)",
        )
    url = url.set(drivername=DIALECTS.get(url.drivername, url.drivername))
    backend, _, driver = url.drivername.partition("+")
    if backend not in ("postgresql", "sqlite") or driver not in DRIVERS:
        raise ConfigurationError(
            "",
            f"DATABASE_URL begins with {url.drivername!r}; expected sqlite, postgresql (psycopg)"
            " or postgresql+asyncpg",
        )
    if backend == "sqlite":
        try:
            check_sqlite_url(url.database or "", url.query)
        except ValueError as error:
            raise ConfigurationError("", f"DATABASE_URL is not valid: {error}") from None
    return url
