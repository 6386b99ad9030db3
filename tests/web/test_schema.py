"""The API description: the committed one is current, and the server behaves as described."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from docs.generate_openapi import DESCRIPTION, description, look_of, record
from koo.testing.providers import FakeAnthropic
from koo.web import create_app
from koo.web.examples import DATABASE, DATABASE_STATUS, RECORDED, SERVICE
from tests.web.serving import claude, platform, served


def test_the_committed_description_is_current() -> None:
    assert DESCRIPTION.read_text(encoding="utf-8") == description(), (
        "the API has changed; if intended: make docs"
    )


def test_the_examples_are_what_a_server_responds_now() -> None:
    """The test records the examples again, and finds an example with a key, type or value that no response has."""
    fresh = asyncio.run(record())
    assert RECORDED.keys() == fresh.keys(), "run: make docs"
    assert {name: look_of(one) for name, one in RECORDED.items()} == {
        name: look_of(one) for name, one in fresh.items()
    }, "run: make docs"


def test_the_examples_of_views_have_the_keys_that_python_returns(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeAnthropic() as fake, platform(tmp_path, claude(fake)) as koo:
            assert DATABASE.keys() == (await koo.database.health_check()).keys()
            assert DATABASE_STATUS.keys() == (await koo.database.get_detailed_status()).keys()
            assert SERVICE.keys() == koo.service_health("claude").keys()

    asyncio.run(main())


@contextmanager
def in_a_thread(folder: Path) -> Iterator[str]:
    """A server on its own loop, because schemathesis is synchronous."""
    ready, over, urls = threading.Event(), asyncio.Event(), []

    async def main() -> None:
        async with FakeAnthropic() as fake, served(create_app(platform(folder, claude(fake)))) as client:
            urls.append(client.url)
            loops.append(asyncio.get_running_loop())
            ready.set()
            await over.wait()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield urls[0]
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join()


def test_every_request_gets_a_described_response(tmp_path: Path) -> None:
    """No 500, no status or media type that is not described, no body that violates its schema."""
    with in_a_thread(tmp_path) as url:
        schema = schemathesis.openapi.from_dict(json.loads(description()))
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            if operation.path.endswith("/live"):
                continue  # it does not end

            @hypothesis.settings(
                max_examples=8,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.seed(4711)
            @hypothesis.given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                # OpenAPI cannot express that only one of two parameters may be given, or that a time must be in the
                # future.
                hard = any(
                    part in case.path for part in ("/ai/spend", "/monitoring/alerts/", "/monitoring/history")
                )
                rules_out = [positive_data_acceptance] if hard else []
                case.call_and_validate(base_url=url, excluded_checks=rules_out)

            ask()
