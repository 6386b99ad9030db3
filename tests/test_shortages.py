"""Shortages of descriptors, memory and threads are our own: described, neutral, an alert, and soon over."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import httpx2
import openai
import pytest

from koo import (
    ExternalServiceError,
    LimitOptions,
    Platform,
    PlatformOptions,
    Query,
    RetryOptions,
    ServiceOptions,
    ServiceRefused,
)
from koo.ai.foreign.meaning import meaning_of
from koo.alerts.channels.base import Message, NotTaken
from koo.alerts.channels.mail import Mail
from koo.bridge import Bridge, Until
from koo.errors import Kind
from koo.host import HostWatch, count_descriptors
from koo.network_options import NetworkOptions
from koo.policies.verdict import NEUTRAL
from koo.shortages import NO_DESCRIPTOR, NO_MEMORY, NO_THREAD, SHORTAGES, no_descriptor, shortage_in
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore
from koo.testing.polling import until
from koo.testing.providers import FakeCompatible
from koo.web.log_writer import LineWriter
from tests.scarce import no_descriptors, no_threads

EMFILE = OSError(errno.EMFILE, "Too many open files")


def raised_from(error: Exception, cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception as one:
            raise error from one
    except Exception as both:
        return both


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (EMFILE, NO_DESCRIPTOR),
        (OSError(errno.ENFILE, "x"), "this machine has no file descriptor left"),
        (OSError(errno.ENOMEM, "x"), NO_MEMORY),
        (MemoryError(), NO_MEMORY),
        (RuntimeError("can't start new thread"), NO_THREAD),
        (raised_from(httpx2.ConnectError("All connection attempts failed"), EMFILE), NO_DESCRIPTOR),
        (OSError(errno.ECONNREFUSED, "refused"), None),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), None),
        (RuntimeError("x"), None),
        (ValueError("x"), None),
    ],
    ids=repr,
)
def test_a_shortage_is_described_in_one_sentence(error: Exception, sentence: str | None) -> None:
    before = SHORTAGES.count
    assert shortage_in(error) == sentence
    assert SHORTAGES.count == before + (sentence is not None)


def test_a_descriptor_shortage_is_found_by_opening_one() -> None:
    assert no_descriptor() is None
    with no_descriptors():
        missing = no_descriptor()
    assert missing is not None and missing.errno == errno.EMFILE


def descriptors_used() -> int:
    found = count_descriptors()
    assert found is not None
    return found.used


# ── services ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def platform(home: Path, base_url: str = "http://127.0.0.1:1/v1") -> AsyncIterator[Platform]:
    lab = ServiceOptions(
        name="lab", kind="openai_compatible", model="m", base_url=base_url, declared=True, limits=LimitOptions(),
        retry=RetryOptions(attempts_max=1),
    )  # fmt: skip
    async with Platform(
        PlatformOptions(home=home, state_url=f"sqlite:///{home}/s.db", services=(lab,))
    ) as koo:
        yield koo


def test_a_call_without_a_descriptor_does_not_count_for_the_breaker_and_the_next_one_succeeds(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        with FakeCompatible(key=None, models=("m",)) as server:
            async with platform(tmp_path, server.base_url) as koo:
                health = koo.service_health("lab")["health"]
                with no_descriptors(), pytest.raises(ServiceRefused, match=re.escape(NO_DESCRIPTOR)):
                    await koo.query(
                        Query(service="lab", prompt="hi", max_tokens=5)
                    )  # not even for the price table
                await koo.query(Query(service="lab", prompt="hi", max_tokens=5))
                used = descriptors_used()
                await koo.parts.http.close()  # this also closes the kept connection
                # The other end belongs to the fake server in this process: closed later, it would free a descriptor.
                await until(lambda: descriptors_used() <= used - 2)
                with no_descriptors():
                    for _ in range(7):  # more than enough to open a breaker
                        with pytest.raises(ServiceRefused) as caught:
                            await koo.query(Query(service="lab", prompt="hi", max_tokens=5))
                        error = caught.value
                        assert (error.kind, error.reason) == (Kind.OUT_OF_RESOURCES, NO_DESCRIPTOR)
                    # A check that could not send its request says nothing about the service either.
                    await koo.check_services("lab")
                health = koo.service_health("lab")["health"]
                assert health["circuit_breaker_state"] == "closed" and health["consecutive_failures"] == 0
                assert koo.service_health("lab")["state"] == "healthy"
                await koo.query(Query(service="lab", prompt="hi", max_tokens=5))
                await until(lambda: "out_of_resources" in {one["kind"] for one in koo.active_alerts()})

    asyncio.run(main())


def test_a_shortage_in_an_own_operation_is_not_a_failure_of_its_service(tmp_path: Path) -> None:
    async def main() -> None:
        async with platform(tmp_path) as koo:
            koo.register_service("reports")

            async def operation() -> None:
                raise OSError(errno.EMFILE, "Too many open files")

            for _ in range(7):
                with pytest.raises(OSError, match="Too many"):
                    await koo.execute("reports", operation)
            assert koo.service_health("reports")["health"]["circuit_breaker_state"] == "closed"

    asyncio.run(main())


def test_an_sdks_connection_error_for_lack_of_a_descriptor_becomes_koos_shortage() -> None:
    connect = raised_from(httpx2.ConnectError("[Errno 24] Too many open files"), EMFILE)
    error = raised_from(
        openai.APIConnectionError(request=httpx2.Request("POST", "http://a.example")), connect
    )
    fault = meaning_of(error, "reports")
    assert (fault.verdict, fault.kind) == (NEUTRAL, Kind.OUT_OF_RESOURCES)
    assert isinstance(fault.error, ServiceRefused) and fault.error.reason == NO_DESCRIPTOR


def test_an_operation_for_which_no_thread_can_start_fails_with_a_clear_message_and_the_next_one_runs(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with platform(tmp_path) as koo:
            koo.register_service("reports", in_thread=True)
            with no_threads("koo reports"):
                for _ in range(7):
                    with pytest.raises(ServiceRefused) as caught:
                        await koo.execute("reports", int)
                    assert caught.value.kind is Kind.OUT_OF_RESOURCES
            assert await koo.execute("reports", int) == 0
            health = koo.service_health("reports")["health"]
            assert health["circuit_breaker_state"] == "closed"

    asyncio.run(main())


def test_a_long_prompt_whose_cost_no_thread_can_measure_fails_and_the_next_one_passes(tmp_path: Path) -> None:
    async def main() -> None:
        with FakeCompatible(key=None, models=("m",)) as server:
            paid = ServiceOptions(
                name="lab", kind="openai_compatible", model="m", base_url=server.base_url, declared=True,
                limits=LimitOptions(), input_price=Decimal(1), output_price=Decimal(1),
            )  # fmt: skip
            options = PlatformOptions(home=tmp_path, state_url=f"sqlite:///{tmp_path}/s.db", services=(paid,))
            async with Platform(options) as koo:
                long = Query(service="lab", prompt="ü" * 300_000, max_tokens=5)
                with no_threads("asyncio_"), pytest.raises(ExternalServiceError) as caught:
                    await koo.query(long)
                assert caught.value.kind is Kind.OUT_OF_RESOURCES
                await koo.query(long)

    asyncio.run(main())


# ── the state store, and other users of threads ───────────────────────────────────────────────────────────────────────


def test_a_state_store_without_a_descriptor_or_thread_reports_it_and_recovers(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqlStore(f"sqlite:///{tmp_path}/s.db")

        async def ask() -> object:
            return await store.executor.run(lambda tx: tx.rows("SELECT 1"))

        with no_threads("koo state store"):
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match=re.escape(NO_THREAD)):
                    await ask()
        assert not store.executor.is_open
        with no_descriptors(), pytest.raises(StoreUnavailable, match="no file descriptor"):
            await ask()
        await until(lambda: store.executor.trouble is None)
        assert await ask() == [(1,)]
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("missing", ["koo loop", "koo end"])
def test_the_bridge_without_one_of_its_threads_works_with_the_next_call(missing: str) -> None:
    async def work() -> int:
        return 7

    before = set(threading.enumerate())
    bridge = Bridge()
    with no_threads(missing), pytest.raises(OSError, match=re.escape(NO_THREAD)):
        bridge.call(work(), Until(None))
    assert bridge.call(work(), Until(None)) == 7
    assert sum(one.name == "koo loop" for one in set(threading.enumerate()) - before) <= 2


def test_the_bridge_without_a_descriptor_for_its_loop_does_not_wait_forever() -> None:
    async def work() -> int:
        return 7

    def no_loop() -> asyncio.AbstractEventLoop:
        raise EMFILE

    bridge = Bridge()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", no_loop)
        with pytest.raises(OSError) as caught:
            bridge.call(work(), Until(None))
    assert caught.value.errno == errno.EMFILE
    assert bridge.call(work(), Until(None)) == 7


def test_a_disk_reading_for_which_no_thread_can_start_is_made_a_second_later(tmp_path: Path) -> None:
    watch = HostWatch({"home": tmp_path})
    with no_threads("koo host"):
        watch.step(0.0)
    assert watch.last is None
    watch.step(1.0)
    while watch.last is None:
        os.sched_yield()


def test_log_lines_wait_until_their_thread_can_start() -> None:
    written: list[bytes] = []
    writer = LineWriter(written.append, str)
    with no_threads("koo log"):
        writer.put("one")
    writer.put("two")
    writer.close(20.0)
    assert b"".join(written) == b"one\ntwo\n"


def test_a_mail_for_which_no_thread_can_start_is_sent_later() -> None:
    async def main() -> None:
        channel = Mail(
            "smtp://127.0.0.1:1", ("a@example.com",), "b@example.com", NetworkOptions(), lambda: 0.0
        )
        message = Message(key="k", thread="t", subject="s", text="t", document={})
        with no_threads("koo mail"), pytest.raises(NotTaken, match=re.escape(NO_THREAD)):
            await channel.send(message)
        with no_threads("koo lookup"), pytest.raises(NotTaken, match=re.escape(NO_THREAD)):
            await channel.send(message)

    asyncio.run(main())
