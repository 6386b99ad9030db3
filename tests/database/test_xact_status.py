"""Why koo does not query `pg_xact_status` for the outcome of a COMMIT: after a crash it can be wrong.

A transaction's id is on disk only once something of the transaction was flushed. After a crash the server assigns the
same id to another transaction, and reports that one's status. This is PostgreSQL's own behaviour, tested here because a
decision depends on it (docs/decisions/0094). If a major version no longer behaves like this, the test fails and the
decision can be reconsidered.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest

from koo.testing.polling import wait_until
from koo.testing.postgres import PostgresServer
from koo.testing.processes import ServerFailed

UNRELATED = 8


@pytest.fixture
def unflushed(postgres: PostgresServer) -> Iterator[tuple[PostgresServer, str]]:
    """A server whose background writer does not flush uncommitted work while the test runs."""
    name = postgres.create_database()
    postgres.sql("ALTER SYSTEM SET wal_writer_delay = '10s'")
    postgres.sql("SELECT pg_reload_conf()")
    yield postgres, name
    wait_until(lambda: answers(postgres))
    postgres.sql("ALTER SYSTEM RESET wal_writer_delay")
    postgres.sql("SELECT pg_reload_conf()")
    postgres.drop_database(name)


def answers(server: PostgresServer) -> bool:
    with suppress(ServerFailed):
        return server.sql("SELECT 1") == "1"
    return False


def crash(server: PostgresServer, pid: int) -> None:
    """Kill one backend, and return once the postmaster has noticed it and ended the others to recover.

    The server may still answer between the kill and that moment, so an answer alone does not say that it has recovered.
    """
    with psycopg.connect(server.url(None, "postgres")) as bystander:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_lost(bystander))


def is_lost(connection: psycopg.Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.Error:
        return True
    return False


def test_after_a_crash_it_reports_a_lost_transaction_as_committed(
    unflushed: tuple[PostgresServer, str],
) -> None:
    server, name = unflushed
    server.sql("CREATE TABLE accounts (balance int); INSERT INTO accounts VALUES (100)", name)
    server.sql("CHECKPOINT")
    with psycopg.connect(server.url(None, name)) as connection:
        connection.execute("UPDATE accounts SET balance = 0")
        row = connection.execute("SELECT pg_current_xact_id()::text, pg_backend_pid()").fetchone()
        assert row is not None
        xid, pid = row
        crash(server, pid)
        connection.close()
    wait_until(lambda: answers(server))
    ask = f"SELECT pg_xact_status('{xid}'::xid8)"
    with pytest.raises(ServerFailed, match="is in the future"):
        server.sql(ask, name)
    for n in range(UNRELATED):
        server.sql(f"CREATE TABLE unrelated_{n} ()", name)
    assert server.sql(ask, name) == "committed"
    assert server.sql("SELECT balance FROM accounts", name) == "100", "although none of it was kept"
