"""What `koo doctor` reports about the database: its health, its room for connections, and a pooler in between."""

from __future__ import annotations

from collections.abc import AsyncIterator

from koo.cli.check import Check
from koo.cli.words import latency
from koo.database.database import Database
from koo.database.server_facts import ServerFacts
from koo.errors import Kind, KooError
from koo.monitoring.shapes import DatabaseServer

PROBES = 2
"""Connections of a process in addition to its pool: the probe's, and briefly the one that replaces it."""
PAGE = "docs/postgresql.md"


ADVICE = {
    Kind.AUTH: "correct user or password in DATABASE_URL, or allow it: pg_hba.conf, GRANT CONNECT, the pooler's users",
    Kind.NOT_FOUND: "create it, or correct its name in DATABASE_URL",
    Kind.NOT_CONFIGURED: f"correct what follows the ? in DATABASE_URL: see {PAGE}",
    Kind.OVERLOADED: "close other clients' connections, lower the pool size of all processes, or raise max_connections",
}
"""What to do about a failed check, by kind. `WHERE` is the advice for all other kinds."""
WHERE = "is it running, and is DATABASE_URL right?"


async def database_itself(database: Database) -> Check:
    """One check of the database."""
    where = f"{database.driver_name}, {_server_words(database.get_health()['server'])}"
    try:
        health = await database.health_check()
    except KooError as error:
        return Check("database", "problem", f"{where}: {error.reason}")
    look = database.last_look
    if look is not None and look.error is not None:
        return Check(
            "database", "problem", f"{where}: {look.error.reason}", ADVICE.get(look.error.kind, WHERE)
        )
    if health["error"]:
        return Check("database", "problem", f"{where}: {health['error']}", WHERE)
    if health["conditions"]:
        conditions = ", ".join(condition.replace("_", " ") for condition in health["conditions"])
        return Check("database", "warning", f"{where}: {conditions}")
    return Check(
        "database", "ok", f"{where}: answers in {latency((health['response_time_ms'] or 0.0) / 1000)}"
    )


def _server_words(server: DatabaseServer) -> str:
    """Describe the server: "shop on db.example:5432", or a file's name."""
    place = server["host"] or ""
    if server["port"] is not None:
        place += f":{server['port']}"
    return " on ".join(filter(None, (server["name"], place))) or "the default server"


async def behind_database(database: Database, workers: int) -> AsyncIterator[Check]:
    """Yields nothing if the database is a file or does not respond: its own check reports that."""
    try:
        facts = await database.examine_server()
    except KooError:
        return
    if facts is None:
        return
    if facts.pooling:
        yield _pooler(facts, database)
    yield _room(facts, database, workers)
    if database.options.exactly_once == "marker":
        yield await _markers(database)


async def _markers(database: Database) -> Check:
    try:
        await database.check_exactly_once()
    except KooError as error:
        return Check("exactly once", "problem", error.reason, "until then, scopes that may write are refused")
    return Check("exactly once", "ok", "the table koo_markers exists and is complete")


def _room(facts: ServerFacts, database: Database, workers: int) -> Check:
    options = database.options
    each = options.pool_size + options.max_overflow + PROBES
    needed = workers * each
    processes = "1 process opens" if workers == 1 else f"{workers} processes open"
    found = (
        f"{processes} up to {needed} connections (pool {options.pool_size}, overflow {options.max_overflow},"
        f" {PROBES} for the probe); {facts.limit} leaves room for {facts.room}"
    )
    if facts.pooling:
        advice = f"what counts is the pooler's limit (PgBouncer: max_client_conn), see {PAGE}"
        return Check("connections", "note", found, advice)
    if needed > facts.room:
        advice = "lower DATABASE_POOL_SIZE or DATABASE_MAX_OVERFLOW, raise the limit, or use a pooler"
        return Check("connections", "warning", found, advice)
    return Check("connections", "ok", f"{found}: enough for {facts.room // each}")


def _pooler(facts: ServerFacts, database: Database) -> Check:
    if facts.pooling == "session":
        return Check("pooler", "ok", "koo connects through a pooler in session mode")
    found = "koo connects through a pooler in transaction mode"
    kept = f"SET, LISTEN, advisory locks and temporary tables end with the transaction: see {PAGE}"
    if database.options.prepared_statements:
        advice = (
            "set DATABASE_PREPARED_STATEMENTS=false, unless the pooler supports them"
            f" (PgBouncer from 1.21 with max_prepared_statements above 0); {kept}"
        )
        return Check("pooler", "warning", f"{found}, and statements are prepared", advice)
    return Check("pooler", "ok", f"{found}, and statements are not prepared", kept)
