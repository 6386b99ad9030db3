"""Measurements of databases: statements and phases from the samples that koo takes anyway, the pool on export.

A statement is measured up to a second after it ran, when its sample is sorted, so it pays nothing for this. For the
same reason there are no spans of statements and no exemplars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from koo.telemetry import names
from koo.telemetry.sdk import histogram

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

    from koo.database.database import Database
    from koo.monitoring.shapes import DatabaseServer

Attributes = dict[str, str | int]


class Pools:
    """Measures databases for one SDK. It holds them weakly, so each is dropped with its platform."""

    def __init__(self, meter: Meter) -> None:
        self._databases: list[ReferenceType[Database]] = []
        bounds = names.STATEMENT_DURATION_S
        self._statement = histogram(
            meter, names.STATEMENT_DURATION, "s", "How long a statement or COMMIT took", bounds
        )
        self._create = histogram(meter, names.CREATE_TIME, "s", "Opening a connection", bounds)
        self._wait = histogram(meter, names.WAIT_TIME, "s", "Waiting for a slot in the pool", bounds)
        self._use = histogram(meter, names.USE_TIME, "s", "How long a scope kept its connection", bounds)
        self._observe(meter)

    def _observe(self, meter: Meter) -> None:
        """Register the values that the SDK reads in its own thread when it exports. All are plain integers."""
        rows: tuple[tuple[str, str, Callable[[Database], Iterable[tuple[int, Attributes]]]], ...] = (
            (names.CONNECTIONS, "{connection}", _connections),
            (names.CONNECTIONS_MAX, "{connection}", lambda one: [(one.pool_queue.limit, {})]),
            (names.PENDING, "{request}", lambda one: [(one.pool_queue.waiting + one.gate.waiting, {})]),
        )
        for name, unit, read in rows:
            meter.create_observable_up_down_counter(name, [self._reader(read)], unit)
        meter.create_observable_counter(
            names.TIMEOUTS, [self._reader(lambda one: [(one.pool_queue.refused, {})])], "{timeout}"
        )

    def _reader(
        self, read: Callable[[Database], Iterable[tuple[int, Attributes]]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            from opentelemetry.metrics import Observation

            for known in tuple(self._databases):
                database = known()
                if database is not None:
                    for number, more in read(database):
                        yield Observation(number, {**_pool_of(database), **more})

        return observe

    def look(self, database: Database) -> None:
        """Measure the database from now on, and record the statements that failed since the last call."""
        if not any(known() is database for known in self._databases):
            self._databases = [known for known in self._databases if known() is not None] + [ref(database)]
            self._listen(database)
        failures = database.metrics.failures
        while failures:
            kind, took_s = failures.popleft()
            self._statement.record(took_s, {**_database_of(database), names.ERROR_TYPE: kind})

    def _listen(self, database: Database) -> None:
        metrics, of, pool = database.metrics, _database_of, _pool_of
        metrics.statement.listener = _recorder(self._statement, database, of)
        metrics.commit.listener = _recorder(self._statement, database, of, {names.STATEMENT: "COMMIT"})
        metrics.connect.listener = _recorder(self._create, database, pool)
        metrics.gate_wait.listener = _recorder(self._wait, database, pool)
        metrics.hold.listener = _recorder(self._use, database, pool)


def _recorder(
    instrument: Histogram,
    database: Database,
    of: Callable[[Database], Attributes],
    more: Attributes | None = None,
) -> Callable[[Sequence[float]], None]:
    """A listener for the samples of one phase. The attributes are read each time, because `rotate` may change the
    URL."""

    def record(samples: Sequence[float]) -> None:
        attributes = {**of(database), **(more or {})}
        for took_s in samples:
            instrument.record(took_s, attributes)

    return record


def _connections(database: Database) -> list[tuple[int, Attributes]]:
    """The pool's connections by state, with the same numbers as in `pool_status`."""
    connections, used = database.connections, database.pool_queue.used
    idle = max(0, len(connections.records) - used) if connections is not None else 0
    return [(used, {names.STATE: "used"}), (idle, {names.STATE: "idle"})]


def _server_of(database: Database) -> DatabaseServer:
    # This module is imported here because it imports SQLAlchemy, which is loaded only if there is a database.
    from koo.database.nameplate import server_of

    return server_of(database.url)


def _database_of(database: Database) -> Attributes:
    server = _server_of(database)
    said: dict[str, Any] = {
        names.SYSTEM: database.url.get_backend_name(),
        names.NAMESPACE: server["name"],
        names.ADDRESS: server["host"],
        names.PORT: server["port"],
    }
    return {name: value for name, value in said.items() if value is not None}


def _pool_of(database: Database) -> Attributes:
    server = _server_of(database)
    port = "" if server["port"] is None else f":{server['port']}"
    name = server["name"] or ""
    return {names.POOL: f"{server['host']}{port}/{name}" if server["host"] else name}
