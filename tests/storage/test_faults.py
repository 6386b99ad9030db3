"""What a driver's error says about the store's connection."""

from __future__ import annotations

import psycopg.errors
import pytest

from koo.storage.faults import lost


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.CrashShutdown(), True),
        (psycopg.errors.ReadOnlySqlTransaction(), False),
        (psycopg.errors.UniqueViolation(), False),
        (psycopg.errors.QueryCanceled(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_servers_word_that_it_ends_a_connection_is_heard(error: Exception, ended: bool) -> None:
    """It may arrive before the connection ends. Taken for a fault of the store, an idle one would be an outage."""
    assert lost(error) is ended
