"""`ValkeyServer`: started, killed, frozen and restarted like the database's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from koo.testing.valkey import ValkeyServer


@pytest.fixture
def own() -> Iterator[ValkeyServer]:
    with ValkeyServer(password="a secret", persist=True) as server:
        yield server


def client(server: ValkeyServer) -> redis.Redis:
    return redis.Redis(
        port=server.port, password=server.password, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)
    )


def test_a_client_of_redis_talks_to_it(valkey: ValkeyServer) -> None:
    with redis.Redis.from_url(valkey.url()) as shared:
        assert shared.ping()


def test_a_write_survives_a_kill_when_it_is_asked_to(own: ValkeyServer) -> None:
    with client(own) as writer:
        writer.set("answer", 42)
    own.kill()
    with client(own) as refused, pytest.raises(redis.ConnectionError):
        refused.ping()
    own.start()
    with client(own) as reader:
        assert reader.get("answer") == b"42"


def test_a_paused_server_is_silent_until_it_is_resumed(own: ValkeyServer) -> None:
    own.pause()
    with client(own) as waiting, pytest.raises(redis.TimeoutError):
        waiting.ping()
    own.resume()
    with client(own) as again:
        assert again.ping()


def test_without_persistence_a_restart_forgets(valkey: ValkeyServer) -> None:
    with redis.Redis.from_url(valkey.url()) as before:
        before.set("answer", 42)
    valkey.restart()
    with redis.Redis.from_url(valkey.url()) as after:
        assert after.get("answer") is None
