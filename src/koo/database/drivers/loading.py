"""Which drivers there are. Each is loaded when a URL names it, because importing them takes longer than koo itself."""

from __future__ import annotations

from koo.database.drivers.base import Driver

DRIVERS = ("psycopg", "asyncpg", "aiosqlite")


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
