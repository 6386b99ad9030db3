"""An application may add attributes to all log records (`logging.setLogRecordFactory`), under names that koo uses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from koo.logs.lines import FACTS
from koo.testing.providers import FakeAnthropic, error
from koo.web import create_app
from koo.web.logs import OF_ACTS, OF_REQUESTS
from tests.web.serving import claude, platform, served

NAMES = {*FACTS, *OF_ACTS, *OF_REQUESTS}


@pytest.fixture
def _own_factory() -> Iterator[None]:
    before = logging.getLogRecordFactory()

    def factory(*given: object, **more: object) -> logging.LogRecord:
        record = before(*given, **more)
        vars(record).update(dict.fromkeys(NAMES, "the application's"))
        return record

    logging.setLogRecordFactory(factory)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("_own_factory")
def test_a_record_factory_that_uses_koos_names_breaks_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with FakeAnthropic() as fake:
            fake.script(error(500))
            app = create_app(platform(tmp_path, claude(fake)))

            @app.get("/broken")
            async def broken() -> None:
                raise RuntimeError

            async with served(app) as client:
                query = {"service": "claude", "prompt": "hello"}
                assert (await client.post("/api/v1/ai/query", json=query)).status == 502
                assert (await client.post("/api/v1/ai/services/reset-all-errors")).status == 200
                assert (await client.get("/broken")).status == 500

    with caplog.at_level(logging.INFO, "koo"):
        asyncio.run(main())
    failed = next(one for one in caplog.records if vars(one)["what"] == "call_failed")
    assert vars(failed)["service"] == "claude"
    assert next(one for one in caplog.records if one.exc_info).funcName == "__call__"


def test_a_record_factory_that_fails_is_reported_and_breaks_no_call(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object, **__: object) -> logging.LogRecord:
        raise RuntimeError

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(fail)
    try:
        logging.getLogger("koo").warning("the %s", "line", extra={"what": "x"})
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.messages == ["a log record factory failed", "the line"]
    assert vars(caplog.records[-1])["what"] == "x"
