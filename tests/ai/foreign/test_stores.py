"""The meaning of errors of clients of other stores and brokers: Redis, MongoDB, MySQL, Elasticsearch, Kafka, Slack."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from koo.ai.foreign.meaning import meaning_of
from koo.errors import Kind, RateLimited, ServiceFailed, ServiceTimeout
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED, Verdict


def of(module: str, *names: str, args: tuple[Any, ...] = ("no",), **attributes: Any) -> Exception:
    """An error of a client: its class and that one's bases, the most specific one first."""
    cls: type[Exception] = Exception
    for name in reversed(names):
        cls = type(name, (cls,), {"__module__": module})
    error = cls(*args)
    vars(error).update(attributes)
    return error


def redis(*names: str, text: str = "no") -> Exception:
    return of("redis.exceptions", *names, "RedisError", args=(text,))


def mongo(*names: str, **attributes: Any) -> Exception:
    return of("pymongo.errors", *names, "PyMongoError", **attributes)


def mysql(code: int, *names: str) -> Exception:
    return of("pymysql.err", *names, "DatabaseError", "Error", args=(code, "no"))


def kafka(*names: str, retriable: bool = False) -> Exception:
    return of("aiokafka.errors", *names, "KafkaError", retriable=retriable)


def command(code: int, **more: Any) -> Exception:
    return mongo("OperationFailure", code=code, **more)


class Answer:
    """Slack's response: its status is 200 for mistakes too."""

    status_code = 200

    def __init__(self, data: object) -> None:
        self.data = data


def slack(data: object) -> Exception:
    return of("slack_sdk.errors", "SlackApiError", "SlackClientError", response=Answer(data))


LOSSES = [
    redis("ConnectionError"),
    redis("BusyLoadingError", "ConnectionError"),
    redis("MasterDownError", "ClusterDownError", "ClusterError", "ResponseError"),
    redis("TimeoutError"),
    redis("ResponseError", text="BUSY Redis is busy running a script"),
    of("valkey.exceptions", "ConnectionError", "ValkeyError"),
    mongo("ServerSelectionTimeoutError", "AutoReconnect", "ConnectionFailure"),
    mongo("NotPrimaryError", "AutoReconnect", "ConnectionFailure"),
    mongo("NetworkTimeout", "AutoReconnect", "ConnectionFailure"),
    mongo("AutoReconnect", "ConnectionFailure", has_error_label=lambda label: True),
    mysql(2013, "OperationalError"),
    mysql(0, "InterfaceError"),
    mysql(1040, "OperationalError"),
    kafka("NotLeaderForPartitionError", "BrokerResponseError", retriable=True),
    kafka("KafkaTimeoutError"),
]
SATURATED = [
    redis("MaxConnectionsError", "ConnectionError"),
    redis("ConnectionError", text="No connection available."),
    mongo("WaitQueueTimeoutError", "ConnectionFailure"),
]
DUPLICATES = [
    mongo("DuplicateKeyError", "WriteError", "OperationFailure", code=11000),
    mongo("BulkWriteError", "OperationFailure", details={"writeErrors": [{"code": 11000}]}),
    mysql(1062, "IntegrityError"),
    of("django.db.utils", "IntegrityError", "DatabaseError", "Error"),
]
CONFLICTS = [
    redis("WatchError"),
    command(112),
    command(1, has_error_label=lambda label: label == "TransientTransactionError"),
    mysql(1213, "OperationalError"),
    OperationalError("UPDATE", {}, mysql(1205, "OperationalError")),
    of("psycopg2.errors", "DeadlockDetected", "OperationalError", "DatabaseError", "Error", pgcode="40P01"),
]
MISTAKES = [
    redis("ResponseError", text="WRONGTYPE Operation against a key holding the wrong kind of value"),
    redis("NoScriptError", "ResponseError"),
    redis("DataError"),
    mongo("InvalidOperation"),
    command(26),
    mongo("BulkWriteError", "OperationFailure", details={"writeErrors": [{"code": 121}]}),
    of("bson.errors", "InvalidId", "BSONError"),
    mysql(1064, "ProgrammingError"),
    kafka("MessageSizeTooLargeError", "BrokerResponseError"),
    of("elasticsearch.helpers.errors", "BulkIndexError", errors=[{"index": {"status": 400}}]),
    slack({"error": "not_found"}),
]  # fmt: skip
REFUSALS = [
    redis("AuthenticationError", "ConnectionError"),
    command(18),
    mysql(1045, "OperationalError"),
    kafka("SaslAuthenticationFailed", "BrokerResponseError"),
]
READ_ONLY = [
    redis("ReadOnlyError", "ResponseError"),
    redis("OutOfMemoryError", "ResponseError"),
    redis("ResponseError", text="MISCONF Redis is configured to save RDB snapshots"),
    mysql(1290, "OperationalError"),
]


def shown(error: Exception) -> str:
    return f"{type(error).__module__}.{type(error).__name__}{error.args}"


@pytest.mark.parametrize("error", LOSSES, ids=shown)
def test_a_lost_connection_to_a_store_is_a_failure_that_may_be_repeated(error: Exception) -> None:
    fault = meaning_of(error, "svc")
    assert (fault.verdict, fault.repeatable, fault.error) == (FAILURE, True, None)
    assert fault.kind in {Kind.CONNECTION, Kind.TIMEOUT, Kind.OVERLOADED}


@pytest.mark.parametrize(
    ("errors", "kind", "verdict", "repeatable"),
    [
        (SATURATED, Kind.SATURATED, NEUTRAL, False),
        (DUPLICATES, Kind.INTEGRITY, NEUTRAL, False),
        (CONFLICTS, Kind.CONTENTION, NEUTRAL, True),
        (MISTAKES, Kind.INVALID_REQUEST, NEUTRAL, False),
        (REFUSALS, Kind.AUTH, FAILURE, False),
        (READ_ONLY, Kind.READ_ONLY, NEUTRAL, False),
    ],
    ids=["full pool", "duplicate", "conflict", "mistake", "refused user", "read-only"],
)
def test_what_a_store_refuses_is_not_an_outage(
    errors: list[Exception], kind: Kind, verdict: Verdict, repeatable: bool
) -> None:
    for error in errors:
        fault = meaning_of(error, "svc")
        assert (fault.kind, fault.verdict, fault.repeatable) == (kind, verdict, repeatable), shown(error)
        assert fault.error is None, shown(error)


def test_an_unknown_error_of_a_store_is_a_failure() -> None:
    partly_lost = {"writeErrors": [{"code": 11000}], "writeConcernErrors": [{"code": 64}]}
    unknown = [
        redis("InvalidResponse"),
        mongo("ProtocolError"),
        command(8),
        mongo("BulkWriteError", "OperationFailure", details=partly_lost),
        mysql(3, "OperationalError"),
        kafka("ProducerFenced"),
        of("elasticsearch.helpers.errors", "BulkIndexError", errors=[{"index": {"status": 429}}]),
        slack("html"),
        of("shop.errors", "IntegrityError", "DatabaseError"),
    ]
    for error in unknown:
        fault = meaning_of(error, "svc")
        assert (fault.kind, fault.verdict, fault.repeatable) == (Kind.UNKNOWN, FAILURE, False), shown(error)


def test_a_limit_of_a_store_is_a_pause() -> None:
    assert meaning_of(command(16500)).verdict is THROTTLED
    fault = meaning_of(of("qdrant_client.common", "ResourceExhaustedResponse", retry_after_s=7), "svc")
    assert isinstance(fault.error, RateLimited) and fault.retry_after_s == 7


def test_a_broken_connection_to_a_search_engine_is_that_of_an_http_library() -> None:
    lost = of("elastic_transport", "ConnectionError", "TransportError")
    assert isinstance(meaning_of(lost, "svc").error, ServiceFailed)
    late = of("opensearchpy.exceptions", "ConnectionTimeout", "ConnectionError", "TransportError")
    assert isinstance(meaning_of(late, "svc").error, ServiceTimeout)
