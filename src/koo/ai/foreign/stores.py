"""Classify errors of clients of other data stores and brokers: Redis, Valkey, MongoDB, MySQL, Kafka.

Most of their errors derive only from `Exception`, even those for a lost connection. Without these tables, five
duplicate keys or a client's own full pool would open the breaker of a healthy server, and an operation that may be
repeated would not be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from koo.ai.foreign.peek import names_of, peek
from koo.errors import Kind
from koo.policies.verdict import FAILURE, NEUTRAL, THROTTLED
from koo.sqlstates import (
    CONTENDED,
    DISK_FULL,
    EXHAUSTED,
    FAILED,
    FORBIDDEN,
    FULL,
    LATE,
    LOCKED,
    LOST,
    MISSING,
    READ_ONLY,
    REFUSED,
    SATURATED,
    STARTING,
    STOPPED,
    VIOLATED,
    Meaning,
)
from koo.sqlstates import MISTAKEN as WRONG_STATEMENT

MISTAKEN = WRONG_STATEMENT.saying("the request is invalid")
NO_SERVER = LOST.saying("no server can be reached")
BUSY = Meaning(Kind.OVERLOADED, FAILURE, repeatable=True, says="the server is busy")

REDIS: dict[str, Meaning] = {
    "AuthenticationError": REFUSED,
    "AuthorizationError": REFUSED,
    "BusyLoadingError": STARTING,
    "ClusterDownError": NO_SERVER,
    "ConnectionError": LOST,
    "DataError": MISTAKEN,
    "MaxConnectionsError": SATURATED,
    "NoPermissionError": FORBIDDEN,
    "OutOfMemoryError": DISK_FULL.saying("its memory is full: writes fail, reads succeed"),
    "ReadOnlyError": READ_ONLY,
    "ResponseError": MISTAKEN,
    "TimeoutError": LATE,
    "TryAgainError": CONTENDED,
    "WatchError": CONTENDED.saying("a watched key was changed"),
}
REDIS_REPLIES: dict[str, Meaning] = {
    "BUSY": BUSY.saying("the server is running a script"),
    "MISCONF": DISK_FULL.saying("the server cannot save its data: writes fail, reads succeed"),
    "NOREPLICAS": FAILED.saying("too few replicas are connected for a write"),
}
"""Redis: replies about the server that have no class of their own, by their first word."""

MONGO: dict[str, Meaning] = {
    "BSONError": MISTAKEN,
    "CollectionInvalid": MISTAKEN,
    "ConfigurationError": MISTAKEN,
    "ConnectionFailure": LOST,
    "CursorNotFound": MISTAKEN,
    "DuplicateKeyError": VIOLATED,
    "ExecutionTimeout": STOPPED,
    "InvalidName": MISTAKEN,
    "InvalidOperation": MISTAKEN,
    "NetworkTimeout": LATE,
    "NoFile": MISTAKEN,
    "ServerSelectionTimeoutError": NO_SERVER,
    "WaitQueueTimeoutError": SATURATED,
    "WriteError": MISTAKEN,
}
MONGO_CODES: dict[int, Meaning] = {
    **dict.fromkeys((2, 9, 14, 26, 27, 48, 59, 66, 85, 86, 115, 121), MISTAKEN),
    **dict.fromkeys((24, 112, 225, 251), CONTENDED),
    13: FORBIDDEN,
    18: REFUSED,
    11000: VIOLATED,
    # Azure Cosmos DB, when its request units are used up.
    16500: Meaning(Kind.THROTTLED, THROTTLED, repeatable=True, says="its rate limit was reached"),
}
"""MongoDB: what a command can be refused for. Any other code stays a failure."""

MYSQL_CODES: dict[int, Meaning] = {
    0: LOST,  # what its drivers raise for a connection that was closed earlier
    **dict.fromkeys((1205, 1213), CONTENDED),
    3572: LOCKED,
    **dict.fromkeys((1040, 1203), FULL),
    **dict.fromkeys((1044, 1045, 1698), REFUSED),
    1049: MISSING,
    1053: STARTING,
    **dict.fromkeys((2002, 2003, 2005), NO_SERVER),
    **dict.fromkeys((1927, 2006, 2013, 2055), LOST),
    **dict.fromkeys((1317, 1969, 3024), STOPPED),
    **dict.fromkeys((1290, 1792, 1836), READ_ONLY),
    **dict.fromkeys((1021, 1114), DISK_FULL),
    **dict.fromkeys((1037, 1041), EXHAUSTED),
    1142: FORBIDDEN,
}
"""MySQL and MariaDB."""
BY_STANDARD: dict[str, Meaning] = {
    "DataError": WRONG_STATEMENT,
    "IntegrityError": VIOLATED,
    "NotSupportedError": WRONG_STATEMENT,
    "ProgrammingError": WRONG_STATEMENT,
}
"""Any driver: the classes that PEP 249 defines, apart from those that may mean anything."""

_REBALANCED = LOCKED.saying("the consumer group is being rebalanced")
KAFKA: dict[str, Meaning] = {
    "AuthenticationFailedError": REFUSED,
    "ClusterAuthorizationFailedError": FORBIDDEN,
    "CommitFailedError": _REBALANCED,
    "ConsumerStoppedError": MISTAKEN,
    "GroupAuthorizationFailedError": FORBIDDEN,
    "IllegalArgumentError": MISTAKEN,
    "IllegalGenerationError": _REBALANCED,
    "IllegalOperation": MISTAKEN,
    "IllegalStateError": MISTAKEN,
    "InvalidTopicError": MISTAKEN,
    "KafkaTimeoutError": LATE,
    "MessageSizeTooLargeError": MISTAKEN,
    "NoOffsetForPartitionError": MISTAKEN,
    "OffsetOutOfRangeError": MISTAKEN,
    "ProducerClosed": MISTAKEN,
    "RebalanceInProgressError": _REBALANCED,
    "RecordListTooLargeError": MISTAKEN,
    "RecordTooLargeError": MISTAKEN,
    "RequestTimedOutError": LATE,
    "SaslAuthenticationFailed": REFUSED,
    "TopicAlreadyExistsError": VIOLATED,
    "TopicAuthorizationFailedError": FORBIDDEN,
    # The brokers also report this for a moment after the topic was created.
    "UnknownTopicOrPartitionError": Meaning(
        Kind.NOT_FOUND, NEUTRAL, repeatable=True, says="the topic does not exist"
    ),
    "UnsupportedVersionError": MISTAKEN,
}


def of_store(error: BaseException) -> Meaning | None:
    """The meaning of an error of one of these clients; None for any other error."""
    for module, names in names_of(type(error)).items():
        judge = STORES.get(module)
        if judge is not None:
            return judge(error)
        # An application's own `IntegrityError` is not a driver's: PEP 249 also requires these two.
        if {"Error", "DatabaseError"} <= names:
            return _by_name(error, BY_STANDARD)
    return None


def _by_name(error: BaseException, table: Mapping[str, Meaning]) -> Meaning | None:
    """By the most specific class that the table has."""
    return next((table[base.__name__] for base in type(error).__mro__ if base.__name__ in table), None)


def _of_redis(error: BaseException) -> Meaning | None:
    if (
        str(error) == "No connection available."
    ):  # its `BlockingConnectionPool` raises a plain `ConnectionError`
        return SATURATED
    reply = REDIS_REPLIES.get(str(error).partition(" ")[0])
    return reply or _by_name(error, REDIS)


def _of_mongo(error: BaseException) -> Meaning | None:
    labelled = peek(error, "has_error_label")
    if callable(labelled) and labelled("TransientTransactionError"):
        return LOST if peek(error, "code") is None else CONTENDED
    details = peek(error, "details")
    if isinstance(details, dict) and details.get("writeErrors") and not details.get("writeConcernErrors"):
        duplicates = all(one["code"] == 11000 for one in details["writeErrors"])
        return VIOLATED if duplicates else MISTAKEN
    code = peek(error, "code")
    by_code = MONGO_CODES.get(code) if isinstance(code, int) else None
    return by_code or _by_name(error, MONGO)


def _of_mysql(error: BaseException) -> Meaning | None:
    code = error.args[0] if error.args else None
    by_code = MYSQL_CODES.get(code) if isinstance(code, int) else None
    return by_code or _by_name(error, BY_STANDARD)


def _of_kafka(error: BaseException) -> Meaning | None:
    # The brokers' protocol says which errors pass by themselves, and both clients keep that in `retriable`.
    return _by_name(error, KAFKA) or (NO_SERVER if peek(error, "retriable") is True else None)


STORES: dict[str, Callable[[BaseException], Meaning | None]] = {
    "redis": _of_redis,
    "valkey": _of_redis,
    "pymongo": _of_mongo,
    "bson": _of_mongo,
    "gridfs": _of_mongo,
    "MySQLdb": _of_mysql,
    "aiomysql": _of_mysql,
    "asyncmy": _of_mysql,
    "mysql": _of_mysql,
    "pymysql": _of_mysql,
    "aiokafka": _of_kafka,
    "kafka": _of_kafka,
}
"""The classifiers by the top-level module of an error's class."""
