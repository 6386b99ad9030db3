"""With an SDK, koo's queries and statements become spans and measurements under the conventions' names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from koo import ExternalServiceError, Platform, Query
from koo.ai.watching import UNWATCHED
from koo.options import DatabaseOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.telemetry import names
from koo.telemetry.queries import MODELS_MAX
from koo.testing.providers import FakeAnthropic, answer, error, stream
from koo.upkeep import KeepTime

SECRET = "canary-of-the-prompt"
Points = dict[str, list[Any]]


@dataclass
class Sdk:
    """A real SDK that stores what it receives."""

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    def spans(self) -> list[ReadableSpan]:
        return [one for one in self.exporter.get_finished_spans() if _is_koos(one)]

    def points(self) -> Points:
        """The measurements, by instrument name."""
        found: Points = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "koo"
                for metric in scope.metrics:
                    found[metric.name] = list(metric.data.data_points)
        return found


def _is_koos(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == "koo"


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sdk]:
    kept = Sdk(InMemorySpanExporter(), InMemoryMetricReader())
    traces, meters = TracerProvider(), MeterProvider([kept.reader])
    traces.add_span_processor(SimpleSpanProcessor(kept.exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: traces)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)
    yield kept
    traces.shutdown()
    meters.shutdown()


def options_of(fake: FakeAnthropic, home: Path) -> PlatformOptions:
    claude = ServiceOptions(
        name="claude",
        kind="anthropic",
        api_key="test-key",
        base_url=fake.base_url,
        model="claude-x",
        retry=RetryOptions(attempts_max=2, base_s=0.001),
        input_price=Decimal(1),
        output_price=Decimal(1),
    )
    return PlatformOptions(
        home=home, services=(claude,), database=DatabaseOptions(url=f"sqlite:///{home}/app.db")
    )


def of(points: Points, name: str, **wanted: object) -> Any:
    """The single point of that instrument with these attributes."""
    keys = {key.replace("__", "."): value for key, value in wanted.items()}
    (found,) = [one for one in points[name] if keys.items() <= dict(one.attributes).items()]
    return found


def test_a_query_is_a_span_and_a_measurement_without_the_prompt(sdk: Sdk, tmp_path: Path) -> None:
    """This applies to whole and streamed queries. A repeated attempt is not an error of the query."""

    async def main() -> None:
        with FakeAnthropic(strict=False) as fake:
            async with Platform(options_of(fake, tmp_path)) as platform:
                fake.script(error(529, "overloaded_error"), answer("Paris.", input_tokens=7, output_tokens=3))
                await platform.query(Query(service="claude", prompt=SECRET, system=SECRET, tag=SECRET))
                fake.script(stream(["Par", "is."]))
                async with platform.stream(Query(service="claude", prompt=SECRET)) as pieces:
                    assert [str(piece) async for piece in pieces] == ["Par", "is."]

    asyncio.run(main())
    whole, streamed = sdk.spans()
    assert (whole.name, whole.kind, whole.status.status_code) == (
        "chat claude-x",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    said: Mapping[str, Any] = whole.attributes or {}
    assert said["gen_ai.operation.name"] == "chat" and said["gen_ai.provider.name"] == "anthropic"
    assert said["gen_ai.request.model"] == "claude-x" and said["gen_ai.response.model"]
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 3)
    assert (said["koo.service"], said["koo.attempts"]) == ("claude", 2) and said["koo.cost_usd"] > 0
    assert "error.type" not in said and "gen_ai.request.stream" not in said
    assert (streamed.attributes or {})["gen_ai.request.stream"] is True
    assert "gen_ai.response.time_to_first_chunk" in (streamed.attributes or {})
    points = sdk.points()
    took = of(points, "gen_ai.client.operation.duration", gen_ai__provider__name="anthropic")
    assert took.count == 2 and took.explicit_bounds[:3] == (0.01, 0.02, 0.04)
    read = of(points, "gen_ai.client.token.usage", gen_ai__token__type="input")
    assert read.explicit_bounds[:3] == (1, 4, 16) and read.count == 2
    assert of(points, "gen_ai.client.operation.time_to_first_chunk").count == 1
    everything = "".join(one.to_json() for one in sdk.spans()) + str(points)
    assert SECRET not in everything and "test-key" not in everything and "127.0.0.1" not in everything


def test_failed_and_refused_queries_have_their_kind_as_the_error_type(sdk: Sdk, tmp_path: Path) -> None:
    """A stream that breaks off has one too. A stream that its reader leaves is not an error."""

    async def main() -> None:
        with FakeAnthropic(strict=False) as fake:
            async with Platform(options_of(fake, tmp_path)) as platform:
                fake.default = error(401, "authentication_error")
                for _ in range(2):  # the second is koo's own refusal
                    with pytest.raises(ExternalServiceError):
                        await platform.query(Query(service="claude", prompt=SECRET))
                platform.services["claude"].reset()
                fake.default = stream(["Par", "is."])
                async with platform.stream(Query(service="claude", prompt=SECRET)) as pieces:
                    await anext(pieces)

    asyncio.run(main())
    failed, refused, left = sdk.spans()
    assert (failed.attributes or {})["error.type"] == "auth"
    assert (refused.attributes or {})["error.type"] == "key_refused"
    assert failed.status.status_code is StatusCode.ERROR and left.status.status_code is StatusCode.UNSET
    assert not failed.events, "an exception's text is not recorded"
    points = sdk.points()
    for kind in ("auth", "key_refused"):
        assert of(points, "gen_ai.client.operation.duration", error__type=kind).count == 1


def test_a_database_is_measured_from_the_samples_that_are_taken_anyway(sdk: Sdk, tmp_path: Path) -> None:
    async def main() -> Points:
        with FakeAnthropic() as fake:
            async with Platform(options_of(fake, tmp_path)) as platform:
                database = platform.database
                async with database.session_scope() as session:
                    await session.execute(text("CREATE TABLE t (x int)"))
                    await session.execute(text("INSERT INTO t VALUES (1)"))
                with pytest.raises(SQLAlchemyError):
                    async with database.session_scope() as session:
                        await session.execute(text(f"SELECT '{SECRET}' FROM nowhere"))
                KeepTime(platform.parts).tick()  # the work of one second
                async with database.session_scope():
                    return sdk.points()

    open_ = asyncio.run(main())
    assert of(open_, "db.client.connection.count", db__client__connection__state="used").value == 1
    assert of(open_, "db.client.connection.max").value == 30
    assert of(open_, "db.client.connection.pending_requests").value == 0
    closed = sdk.points()
    name = "db.client.operation.duration"
    (statements,) = [
        one for one in closed[name] if not {"error.type", "db.operation.name"} & set(one.attributes)
    ]
    assert dict(statements.attributes) == {"db.system.name": "sqlite", "db.namespace": "app.db"}
    assert statements.count == 2 and statements.explicit_bounds[0] == 0.001
    assert of(closed, name, db__operation__name="COMMIT").count >= 1
    assert of(closed, name, error__type="invalid_request").count == 1
    pool = {"db.client.connection.pool.name": "app.db"}
    for phase in ("create_time", "wait_time", "use_time"):
        assert dict(of(closed, f"db.client.connection.{phase}").attributes) == pool
    assert SECRET not in str(closed)


def test_invented_model_names_do_not_create_an_unlimited_number_of_series(sdk: Sdk, tmp_path: Path) -> None:
    async def main() -> None:
        with FakeAnthropic(strict=False) as fake:
            async with Platform(options_of(fake, tmp_path)) as platform:
                watch = platform.parts.gateway.watch
                for number in range(MODELS_MAX + 5):
                    watch.model(f"m{number}")  # type: ignore[attr-defined]
                with pytest.raises(ExternalServiceError):  # it does not know that model
                    await platform.query(Query(service="claude", prompt="hi", model="one-more"))

    asyncio.run(main())
    assert (sdk.spans()[0].attributes or {})["gen_ai.request.model"] == "_OTHER"


def test_without_an_sdk_nothing_is_watched(tmp_path: Path) -> None:
    async def main() -> None:
        with FakeAnthropic() as fake:
            async with Platform(options_of(fake, tmp_path)) as platform:
                assert platform.parts.gateway.watch is UNWATCHED
                async with platform.database.session_scope() as session:
                    await session.execute(text("SELECT 1"))
                assert platform.database.metrics.statement.listener is None

    asyncio.run(main())


def test_each_span_and_measurement_name_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "opentelemetry.md").read_text()
    values = [value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)]
    dotted = [value for value in values if "." in value and "/" not in value]
    assert len(dotted) > 30 and [value for value in dotted if f"`{value}`" not in page] == []
