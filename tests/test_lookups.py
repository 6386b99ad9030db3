"""Name lookups: one per name at a time, in koo's own threads, so that a hanging name blocks nothing else."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from koo.http.client import HttpClient
from koo.http.connector import ShortHere, TransportError
from koo.lookups import NAMES_MAX, Address, Lookups, _tell
from tests.scarce import no_descriptors, no_threads

ADDRESS = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 0))


class Resolver:
    """Replaces the system's resolver; names that begin with "hang" get no result before `released` is set."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.released = threading.Event()
        self.threads: set[str] = set()

    def getaddrinfo(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked[host] += 1
        self.threads.add(threading.current_thread().name)
        if host.startswith("hang"):
            self.released.wait(60)
        if "nowhere" in host:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [ADDRESS]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    one = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", one.getaddrinfo)
    yield one
    one.released.set()


def test_later_callers_join_the_running_lookup_and_each_gets_its_own_port(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups()
        asked = [asyncio.ensure_future(lookups.find("hang.example", port)) for port in (80, 443, 80)]
        await asyncio.sleep(0)
        resolver.released.set()
        found = await asyncio.gather(*asked)
        assert [one[0][4] for one in found] == [("127.0.0.1", 80), ("127.0.0.1", 443), ("127.0.0.1", 80)]
        assert resolver.asked == {"hang.example": 1}
        await lookups.find("hang.example", 1)
        assert resolver.asked == {"hang.example": 2}, "after its end a lookup is made again"

    asyncio.run(main())


def test_hanging_names_delay_no_other_name_and_use_no_thread_of_the_application(
    resolver: Resolver,
) -> None:
    async def main() -> None:
        lookups = Lookups()
        hanging = [asyncio.ensure_future(lookups.find(f"hang{n % 40}.example", 1)) for n in range(400)]
        await lookups.find("other.example", 1)
        # With the default executor all of its threads (at most 32) would be waiting for a name.
        assert await asyncio.to_thread(int) == 0
        assert sum(resolver.asked.values()) == 41
        assert resolver.threads == {"koo lookup"}
        resolver.released.set()
        await asyncio.gather(*hanging)

    asyncio.run(main())


def test_a_cancelled_caller_does_not_affect_the_others(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups()
        leaves, stays = (asyncio.ensure_future(lookups.find("hang.example", 1)) for _ in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        resolver.released.set()
        assert (await stays)[0][4] == ("127.0.0.1", 1)

    asyncio.run(main())


def test_each_loop_gets_its_result_and_a_closed_loop_does_no_harm(resolver: Resolver) -> None:
    lookups, answers = Lookups(), []

    async def leave_at_once() -> None:
        asked = asyncio.ensure_future(lookups.find("hang.example", 1))
        await asyncio.sleep(0)
        asked.cancel()

    asyncio.run(leave_at_once())

    async def main() -> None:
        asked = asyncio.ensure_future(lookups.find("hang.example", 2))
        await asyncio.sleep(0)
        resolver.released.set()
        answers.append(await asked)

    others = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for one in others:
        one.start()
    for one in others:
        one.join(20)
    assert [one[0][4] for one in answers] == [("127.0.0.1", 2)] * 2
    assert resolver.asked["hang.example"] <= 2


def test_an_unknown_name_raises_a_separate_error_for_each_caller(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups()
        asked = [asyncio.ensure_future(lookups.find("hang.nowhere", 1)) for _ in range(2)]
        await asyncio.sleep(0)
        resolver.released.set()
        first, second = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, socket.gaierror) and first.errno == socket.EAI_NONAME
        assert isinstance(second, socket.gaierror) and first is not second

    asyncio.run(main())


def test_an_invalid_host_name_is_reported_as_unknown() -> None:
    async def main() -> None:
        with pytest.raises(socket.gaierror):
            await Lookups().find(f"{'a' * 64}.example", 1)

    asyncio.run(main())


def test_the_number_of_lookup_threads_is_bounded(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups()
        hanging = [asyncio.ensure_future(lookups.find(f"hang{n}", 1)) for n in range(NAMES_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(OSError, match=f"{NAMES_MAX} name lookups are already running"):
            await lookups.find("other.example", 1)
        resolver.released.set()
        await asyncio.gather(*hanging)

    asyncio.run(main())


def test_a_lookup_without_a_thread_fails_and_the_next_one_works(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups()
        with no_threads(), pytest.raises(OSError, match="cannot start more threads"):
            await lookups.find("one.example", 1)
        assert (await lookups.find("one.example", 1))[0][4] == ("127.0.0.1", 1)

    asyncio.run(main())


def test_without_a_descriptor_a_name_is_not_reported_as_unknown() -> None:
    async def main() -> None:
        with no_descriptors(), pytest.raises(OSError) as caught:
            await Lookups().find("localhost", 1)
        assert caught.value.errno == errno.EMFILE

    asyncio.run(main())


def test_the_http_client_names_the_shortage_behind_a_failed_lookup(resolver: Resolver) -> None:
    async def main() -> None:
        http = HttpClient()
        with no_threads("koo lookup"), pytest.raises(ShortHere, match="cannot start more threads") as caught:
            await http.request("POST", "http://one.example/", body=b"x")
        assert caught.value.stage == "connect"
        with pytest.raises(TransportError) as missed:
            await http.request("POST", "http://nowhere.example/", body=b"x")
        assert not isinstance(missed.value, ShortHere)
        await http.close()

    asyncio.run(main())


@pytest.mark.parametrize("found", [[], OSError("gone")], ids=["found", "failed"])
def test_a_cancelled_caller_receives_no_result(found: list[Address] | OSError) -> None:
    async def main() -> None:
        future: asyncio.Future[list[Address]] = asyncio.get_running_loop().create_future()
        future.cancel()
        _tell(future, found)
        assert future.cancelled()

    asyncio.run(main())
