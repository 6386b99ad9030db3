"""The description of the API: the committed one is the true one, and what is described is what happens."""

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

from koo.platform import Platform
from koo.testing.providers import FakeAnthropic
from koo.web import create_app
from tests.web.serving import claude, platform, served

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
UPDATE = "python -m tests.web.test_schema"


def describe() -> str:
    """`openapi.json` as it is committed; the version in it is the package's, and would differ in a source tree."""
    schema = create_app(Platform()).openapi()
    schema["info"]["version"] = "…"
    return json.dumps(schema, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def test_the_committed_description_is_the_true_one() -> None:
    assert COMMITTED.read_text() == describe(), f"the API has changed; if that is meant: {UPDATE}"


@contextmanager
def in_a_thread(folder: Path) -> Iterator[str]:
    """A server on a loop of its own, because schemathesis is synchronous."""
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


def test_whatever_is_asked_the_answer_is_a_described_one(tmp_path: Path) -> None:
    """No 500, no status and no media type that is not described, no body that is not of its schema."""
    with in_a_thread(tmp_path) as url:
        schema = schemathesis.openapi.from_dict(json.loads(describe()))
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()

            @hypothesis.settings(
                max_examples=15,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.seed(4711)
            @hypothesis.given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                case.call_and_validate(base_url=url)

            ask()


if __name__ == "__main__":
    COMMITTED.write_text(describe())
