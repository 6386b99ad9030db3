"""The names of a database's servers are resolved in koo's own threads; what the drivers receive."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from koo.database.drivers.lookup_loop import LookupLoop
from koo.database.drivers.names import Server, as_libpq, find_servers, time_of_each
from koo.errors import DatabaseUnavailable, Kind
from koo.options import RetryOptions
from tests.database.conftest import Place
from tests.database.support import ONE, opened

KNOWN = {"a.example": ["10.0.0.1", "10.0.0.2"], "b.example": ["10.0.0.3"]}


def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
    if host not in KNOWN:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in KNOWN[host]]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"host": "a.example"}, {"host": "a.example,a.example", "hostaddr": "10.0.0.1,10.0.0.2"}),
        (
            {"host": "a.example,b.example", "port": "1,2"},
            {
                "host": "a.example,a.example,b.example",
                "hostaddr": "10.0.0.1,10.0.0.2,10.0.0.3",
                "port": "1,1,2",
            },
        ),
        (
            {"host": "b.example,10.1.1.1,/run/pg", "port": 5433},
            {
                "host": "b.example,10.1.1.1,/run/pg",
                "hostaddr": "10.0.0.3,10.1.1.1,",
                "port": "5433,5433,5433",
            },
        ),
        # An unknown name is left out, as the driver would leave it out.
        ({"host": "gone.example,b.example"}, {"host": "b.example", "hostaddr": "10.0.0.3"}),
        ({"host": ["b.example"]}, {"host": "b.example", "hostaddr": "10.0.0.3"}),
        # Nothing to resolve.
        ({"host": "10.0.0.9"}, {}),
        ({"host": "::1"}, {}),
        ({"host": "/run/postgresql"}, {}),
        ({}, {}),
        ({"host": "a.example", "hostaddr": "10.9.9.9"}, {}),
    ],
    ids=repr,
)
def test_libpq_tries_every_address(
    parameters: dict[str, Any], told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def main() -> None:
        assert as_libpq(await find_servers(parameters), parameters) == told

    asyncio.run(main())


def test_the_lookup_fails_if_no_name_can_be_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def main() -> None:
        assert await find_servers({"host": "b.example"}) == [Server("b.example", "", ("10.0.0.3",))]
        with pytest.raises(socket.gaierror):
            await find_servers({"host": "gone.example,away.example"})

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_name_lookup_that_hangs_takes_no_thread_of_the_application(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, asked = threading.Event(), []

    def hang(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(threading.current_thread().name)
        released.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def main() -> None:
        url = f"postgresql+{driver}://u@hang.example/d"
        async with opened(url, pool_timeout_s=0.05, retry=RetryOptions(attempts_max=1)) as database:

            async def ask() -> None:
                async with database.session_scope():
                    pass

            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await ask()
            assert asked == ["koo lookup"], "callers and the probe share one lookup"
            assert await asyncio.to_thread(int) == 0
            released.set()

    try:
        asyncio.run(main())
    finally:
        released.set()


def test_a_server_is_reached_by_its_name_and_an_unknown_name_is_reported(pg: Place) -> None:
    async def main() -> None:
        async with (
            opened(pg.url.replace(pg.server.host, "localhost")) as database,
            database.session_scope() as session,
        ):
            assert (await session.execute(ONE)).scalar() == 1
        url = pg.url.replace(pg.server.host, "nowhere.invalid")
        async with opened(url, retry=RetryOptions(attempts_max=1)) as database:
            with pytest.raises(DatabaseUnavailable, match="the host name cannot be resolved") as caught:
                async with database.session_scope():
                    pass
            assert caught.value.kind is Kind.CONNECTION

    asyncio.run(main())


def test_a_driver_resolves_names_only_in_koos_threads(pg: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    real = socket.getaddrinfo

    def note(host: str, *given: Any, **more: Any) -> Any:
        asked.append((host, threading.current_thread().name))
        return real(host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", note)
    named = pg.url.replace(pg.server.host, "localhost")

    async def main() -> None:
        async with opened(named) as database, database.session_scope() as session:
            assert await session.scalar(ONE) == 1

    asyncio.run(main())
    assert {thread for host, thread in asked if host == "localhost"} == {"koo lookup"}


def test_asyncpgs_loop_tries_each_address_and_passes_the_name_to_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    tried: list[tuple[Any, ...]] = []

    class Loop(asyncio.SelectorEventLoop):
        async def create_connection(  # type: ignore[override]
            self, factory: Any, host: Any, port: Any, **more: Any
        ) -> Any:
            tried.append((host, port, more))
            if host == "10.0.0.1" or more.get("ssl") == "refused":
                raise ConnectionRefusedError(host)
            return "transport", factory()

    async def main() -> None:
        loop = LookupLoop(asyncio.get_running_loop())
        assert await loop.create_connection(lambda: "protocol", "a.example", 5432) == (
            "transport",
            "protocol",
        )
        await loop.create_connection(lambda: 1, "b.example", 1, ssl="context")
        with pytest.raises(ConnectionRefusedError, match=r"10\.0\.0\.1"):
            await loop.create_connection(lambda: 1, "a.example", 2, ssl="refused")
        with pytest.raises(socket.gaierror):
            await loop.create_connection(lambda: 1, "gone.example", 3)
        assert loop.get_debug() is asyncio.get_running_loop().get_debug()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    named = {"ssl": "refused", "server_hostname": "a.example"}
    assert tried == [
        ("10.0.0.1", 5432, {}),
        ("10.0.0.2", 5432, {}),
        ("10.0.0.3", 1, {"ssl": "context", "server_hostname": "b.example"}),
        ("10.0.0.1", 2, named),
        ("10.0.0.2", 2, named),
    ]


def test_a_dead_machine_leaves_time_for_the_other_addresses_and_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It drops packets instead of refusing a connection, so only a share of the time ends the wait for it."""
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    dead: set[str] = {"10.0.0.1", "10.0.0.3"}

    class Loop(asyncio.SelectorEventLoop):
        async def create_connection(  # type: ignore[override]
            self, factory: Any, host: Any, port: Any, **more: Any
        ) -> Any:
            if host in dead:
                await asyncio.Event().wait()
            return host, factory()

    async def main() -> None:
        real = asyncio.get_running_loop()
        assert await LookupLoop(real, 1, 0.02).create_connection(str, "a.example", 1) == ("10.0.0.2", "")
        loop = LookupLoop(real, 2, 0.02)
        with pytest.raises(TimeoutError):
            await loop.create_connection(str, "b.example", 1)
        assert await loop.create_connection(str, "10.0.0.9", 1) == ("10.0.0.9", "")
        dead.add("10.0.0.9")
        with pytest.raises(TimeoutError):  # only the caller's own timeout ends the wait for the last one
            async with asyncio.timeout(0.1) as limit:
                await LookupLoop(real, 1, 0.001).create_connection(str, "10.0.0.9", 1)
        assert limit.expired()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("host", "more", "expected"),
    [
        ("a,b", {}, 4),
        ("a,b,c", {}, 3),
        ("a,b,c,d,e,f,g", {}, 2),
        ("a,b", {"connect_timeout": "7"}, None),
        ("a", {}, None),
        (None, {}, None),
    ],
)
def test_psycopgs_hosts_share_the_time_for_a_connection(
    host: str | None, more: dict[str, str], expected: int | None
) -> None:
    assert time_of_each({"host": host, **more}, 10.0).get("connect_timeout") == expected
