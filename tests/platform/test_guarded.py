"""`@guarded`: a function keeps its kind and type, and runs under the guard that its definition names."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import singledispatch
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

import koo
from koo import CircuitOpen, ConfigurationError, Platform
from koo.ai.operation_stream import OperationStream
from koo.policies.verdict import FAILURE, Fault
from koo.residence import SECOND
from koo.web import mount
from tests.platform.test_platform import options


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A platform that is closed at the end, wherever it was opened."""
    made = Platform(options(tmp_path))
    yield made
    koo.run(made.close())


# ── kinds of functions ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_guarded_async_function_is_awaited_as_before(platform: Platform) -> None:
    @platform.guarded("parcels", idempotent=True)
    async def find(number: str, *, loudly: bool = False) -> str:
        """Find a parcel."""
        return f"{number} is on its way{'!' * loudly}"

    async def main() -> str:
        answer = await find("4711", loudly=True)
        await platform.close()
        return answer

    assert asyncio.run(main()) == "4711 is on its way!"
    assert platform.service_health("parcels")["metrics"]["total_requests"] == 1
    assert inspect.iscoroutinefunction(find)
    assert (find.__name__, find.__doc__) == ("find", "Find a parcel.")


def test_a_failure_is_repeated_if_the_decorator_declares_it_idempotent(
    platform: Platform,
) -> None:
    tries = []

    @platform.guarded("parcels", idempotent=True, retry_base_delay=0.001, retry_max_delay=0.001)
    async def find() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("away")
        return len(tries)

    async def main() -> int:
        answer = await find()
        await platform.close()
        return answer

    assert asyncio.run(main()) == 3


def test_a_circuit_opens_and_refuses_before_the_function_is_called(platform: Platform) -> None:
    tries = []

    @platform.guarded("parcels", failure_threshold=2)
    async def find() -> None:
        tries.append(1)
        raise ConnectionError("away")

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await find()
        with pytest.raises(CircuitOpen):
            await find()
        await platform.close()

    asyncio.run(main())
    assert len(tries) == 2


def test_an_asynchronous_generator_becomes_a_guarded_stream(platform: Platform) -> None:
    @platform.guarded("words")
    async def count(end: int) -> AsyncIterator[str]:
        for number in range(end):
            yield str(number)

    async def main() -> list[str]:
        stream = count(3)
        assert isinstance(stream, OperationStream)
        pieces = [piece async for piece in stream]
        await platform.close()
        return pieces

    assert asyncio.run(main()) == ["0", "1", "2"]
    assert platform.service_health("words")["metrics"]["total_requests"] == 1


def test_a_blocking_function_stays_blocking_and_runs_in_one_of_koos_threads(platform: Platform) -> None:
    @platform.guarded("disk")
    def read(path: str) -> tuple[str, str]:
        return path, threading.current_thread().name

    path, thread = read("/srv/a")
    assert path == "/srv/a"
    assert thread != threading.current_thread().name
    assert platform.service_health("disk")["metrics"]["total_requests"] == 1


def test_a_blocking_function_is_refused_inside_an_event_loop_before_it_is_called(platform: Platform) -> None:
    async def main() -> None:
        called = []

        @platform.guarded("disk")
        def read() -> None:
            called.append(1)

        with pytest.raises(
            RuntimeError, match=r"read blocks, .* decorate it with in_thread=True and await it"
        ):
            read()
        assert not called
        await asyncio.to_thread(read)
        assert called
        await platform.close()

    asyncio.run(main())


def test_in_thread_makes_a_blocking_function_awaitable(platform: Platform) -> None:
    async def main() -> None:
        @platform.guarded("disk", in_thread=True)
        def read() -> str:
            return threading.current_thread().name

        reading: Any = read()
        assert await reading != threading.current_thread().name
        await platform.close()

    asyncio.run(main())


def test_methods_are_guarded_with_their_object(platform: Platform) -> None:
    async def main() -> None:
        class Shop:
            def __init__(self, name: str) -> None:
                self.name = name

            @platform.guarded("stock")
            async def count(self, article: str) -> str:
                return f"{self.name}: {article}"

            @classmethod
            @platform.guarded("stock")
            async def kinds(cls) -> str:
                return cls.__name__

        assert await Shop("Berlin").count("boots") == "Berlin: boots"
        assert await Shop.kinds() == "Shop"
        await platform.close()

    asyncio.run(main())


def test_a_guarded_dependency_with_yield_ends_with_its_request(platform: Platform) -> None:
    app, ended = FastAPI(), []

    @platform.guarded("sessions")
    async def session(number: str) -> AsyncIterator[str]:
        try:
            yield number
        except HTTPException as error:
            ended.append(error.status_code)
            raise
        finally:
            ended.append(0)

    opened_session = Depends(session)

    @app.get("/parcels")
    async def find(opened: str = opened_session) -> str:
        if opened == "none":
            raise HTTPException(404)
        return opened

    with TestClient(app) as client:
        assert client.get("/parcels?number=4711").json() == "4711" and ended == [0]
        assert client.get("/parcels?number=none").status_code == 404 and ended == [0, 404, 0]
    metrics = platform.service_health("sessions")["metrics"]
    assert (metrics["successful_requests"], metrics["failed_requests"]) == (1, 0)


def test_a_standard_librarys_wrapper_keeps_the_kind_of_what_it_wraps(platform: Platform) -> None:
    class Shop:
        @platform.guarded("shop")
        @classmethod
        async def kinds(cls) -> str:
            return cls.__name__

        @platform.guarded("shop")
        @staticmethod
        async def count(of: str) -> str:
            return of

    @platform.guarded("shop")
    @asynccontextmanager
    async def opened() -> AsyncIterator[str]:
        yield "open"

    @platform.guarded("shop")
    @singledispatch
    async def find(number: object) -> str:
        return f"no {number}"

    async def main() -> None:
        assert await Shop.kinds() == "Shop" and await Shop().count("boots") == "boots"
        assert await find(4711) == "no 4711"
        async with opened() as shop:
            assert repr(shop) == "<guarded 'open'>"
        await platform.close()

    asyncio.run(main())

    @contextmanager
    def opened_blocking() -> Iterator[str]:
        yield "open"

    guarded: Any = platform.guarded("shop")
    with pytest.raises(TypeError, match="generator that blocks"):
        guarded(opened_blocking)


def test_decorating_anything_but_a_function_is_refused_and_registers_no_service(
    platform: Platform,
) -> None:
    def generate() -> Iterator[int]:
        yield 1

    guarded: Any = platform.guarded("odd")
    with pytest.raises(TypeError, match='@guarded\\("odd"\\) is for functions and methods, not type'):
        guarded(Path)
    with pytest.raises(TypeError, match="generator that blocks"):
        guarded(generate)
    with pytest.raises(TypeError, match="in_thread=False leaves it no thread"):
        platform.guarded("odd", in_thread=False)(lambda: 1)
    assert "odd" not in platform.services_status()


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_decorating_reads_no_settings_and_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOO_PORT", "no number")
    unread = Platform()

    @unread.guarded("parcels")
    async def find() -> None: ...

    with pytest.raises(ConfigurationError, match="KOO_PORT"):
        asyncio.run(find())


def test_a_wrong_option_is_refused_when_the_function_is_defined(platform: Platform) -> None:
    with pytest.raises(ConfigurationError, match="unknown option 'idempotant'"):
        platform.guarded("parcels", idempotant=True)
    with pytest.raises(ConfigurationError, match="a service name is"):
        platform.guarded("a/b")


def test_the_service_is_known_before_the_first_call(platform: Platform) -> None:
    @platform.guarded("parcels")
    async def find() -> None: ...

    assert platform.service_health("parcels")["state"] == "healthy"


def test_functions_with_the_same_name_share_a_guard_and_one_sets_the_options(platform: Platform) -> None:
    @platform.guarded("parcels")
    async def first() -> None: ...

    @platform.guarded("parcels", concurrency_max=7)
    async def second() -> None: ...

    @platform.guarded("parcels")
    async def third() -> None: ...

    assert platform.parts.services["parcels"].options.concurrency_max == 7
    with pytest.raises(
        ConfigurationError, match=r"'parcels' has different options at .*second and at .*fourth"
    ):

        @platform.guarded("parcels", concurrency_max=8)
        async def fourth() -> None: ...


def test_a_redefined_function_may_change_its_options(platform: Platform) -> None:
    def define(slots: int) -> None:
        @platform.guarded("parcels", concurrency_max=slots)
        async def find() -> None: ...

    define(7)
    assert platform.parts.services["parcels"].options.concurrency_max == 7
    define(8)
    assert platform.parts.services["parcels"].options.concurrency_max == 8


def test_a_function_that_is_defined_in_each_call_keeps_its_breaker_and_limits(platform: Platform) -> None:
    def define(tenant: str) -> None:
        @platform.guarded("parcels", requests_per_minute=5, classify=lambda error: None)
        async def find() -> str:
            return tenant

    define("a")
    known = platform.parts.services["parcels"]
    define("b")
    assert platform.parts.services["parcels"] is known


@pytest.mark.parametrize(
    ("first", "second", "is_kept"),
    [
        ({"daily_budget": 1, "max_cost_usd": "0.1"}, {"daily_budget": 1, "max_cost_usd": "0.1"}, True),
        ({"queue_max": 1}, {"queue_max": 2}, False),
        ({"queue_max": 1}, {"queue_max": 1, "idempotent": True}, False),
        ({"classify": lambda _: None}, {"classify": lambda error: error}, False),
        ({"classify": lambda _, sign=1: sign}, {"classify": lambda _, sign=2: sign}, False),
    ],
)
def test_only_a_registration_with_other_options_makes_a_new_guard(
    platform: Platform, first: dict[str, Any], second: dict[str, Any], is_kept: bool
) -> None:
    platform.register_service("parcels", **first)
    known = platform.parts.services["parcels"]
    platform.register_service("parcels", **second)
    assert (platform.parts.services["parcels"] is known) is is_kept


def test_functions_with_state_of_their_own_are_not_the_same_option(platform: Platform) -> None:
    def cost(amount: str) -> dict[str, Any]:
        return {"max_cost_usd": 1, "cost_usd": lambda _: amount}

    platform.register_service("parcels", **cost("0.1"))
    known = platform.parts.services["parcels"]
    platform.register_service("parcels", **cost("0.2"))
    assert platform.parts.services["parcels"] is not known


@pytest.mark.parametrize(
    "classify",
    [
        lambda error: 1 / 0,
        lambda error: "failure",
        lambda error: FAILURE,
        lambda error: Fault(verdict="failure"),  # type: ignore[arg-type]
        lambda error: Fault(verdict=FAILURE, kind="weird"),  # type: ignore[arg-type]
        lambda error: Fault(verdict=FAILURE, retry_after_s="5"),  # type: ignore[arg-type]
        lambda error: Fault(verdict=FAILURE, retry_after_s=float("nan")),
        lambda error: Fault(verdict=FAILURE, error=ValueError),  # type: ignore[arg-type]
        lambda error: Fault(verdict=FAILURE, reach="host"),  # type: ignore[arg-type]
    ],
    ids=[
        "raises",
        "text",
        "verdict",
        "verdict text",
        "kind text",
        "wait text",
        "wait NaN",
        "error class",
        "reach",
    ],
)
def test_the_table_decides_if_classify_fails_or_returns_an_invalid_fault(
    platform: Platform, caplog: pytest.LogCaptureFixture, classify: Any
) -> None:
    @platform.guarded("parcels", failure_threshold=2, classify=classify)
    async def find() -> None:
        raise ConnectionResetError

    async def main() -> list[str]:
        seen = []
        for _ in range(3):
            try:
                await find()
            except Exception as error:
                seen.append(type(error).__name__)
        await platform.close()
        return seen

    assert asyncio.run(main()) == ["ConnectionResetError", "ConnectionResetError", "CircuitOpen"]
    assert platform.service_health("parcels")["metrics"]["error_counts"] == {"connection": 2}
    assert caplog.text.count("parcels: classify ") == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("requests_per_minute", float("inf"), r"must be a whole number, not inf \(None: no limit\)"),
        ("requests_per_day", 0.5, "must be a whole number, not 0.5"),
        ("failure_threshold", 1.5, "must be a whole number, not 1.5"),
        ("queue_max", float("inf"), "must be a whole number, not inf"),
        ("requests_per_minute", -1, "is -1; expected at least 0"),
        ("recovery_timeout", 0, "is 0; expected above 0"),
        ("retry_base_delay", float("nan"), "is nan; expected above 0"),
        ("max_retries", -1, "must be a whole number, 0 to 99"),
        ("max_retries", 100, "must be a whole number, 0 to 99"),
    ],
)
def test_an_invalid_option_is_refused_under_the_name_that_was_written(
    platform: Platform, name: str, value: float, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"register_service: {name} {words}"):
        platform.register_service("parcels", **{name: value})


def test_a_registered_or_built_in_name_is_used_unchanged(platform: Platform) -> None:
    platform.register_service("parcels", concurrency_max=7)
    known = platform.parts.services["parcels"]

    @platform.guarded("parcels")
    async def find() -> None: ...

    @platform.guarded("claude")
    async def ask() -> None: ...

    assert platform.parts.services["parcels"] is known
    with pytest.raises(ConfigurationError, match="'claude' is a built-in service"):
        platform.guarded("claude", timeout_s=3)(ask)


# ── one platform ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_platform_with_the_same_settings_is_logged_as_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        caplog.set_level(logging.WARNING, "koo")
        async with Platform(options(tmp_path)):
            assert SECOND not in caplog.messages
            async with Platform(options(tmp_path)):
                assert caplog.messages.count(SECOND) == 1

    asyncio.run(main())


def test_a_later_platform_or_one_with_other_settings_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        caplog.set_level(logging.WARNING, "koo")
        async with Platform(options(tmp_path)):
            pass
        (tmp_path / "other").mkdir()
        async with Platform(options(tmp_path)), Platform(options(tmp_path / "other")):
            assert SECOND not in caplog.messages

    asyncio.run(main())


def test_mounting_without_a_platform_uses_the_processs_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = Platform(options(tmp_path))
    monkeypatch.setattr(koo, "platform", mine, raising=False)

    @mine.guarded("parcels")
    async def find() -> None: ...

    app = FastAPI()
    mount(app, hosts=["testserver"])
    with TestClient(app, client=("127.0.0.1", 5000)) as client:
        shown = client.get("/api/v1/monitoring/health").json()["ai_services"]["services"]
    assert "parcels" in shown
