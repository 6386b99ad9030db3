"""With OpenTelemetry set up, no span of koo contains a query string or a secret URL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry import trace
from starlette.testclient import TestClient

from koo import Platform
from koo.http.client import HttpClient
from koo.options import PlatformOptions
from koo.testing.providers import FakeCompatible
from koo.web import create_app

SPANS: list[Mapping[str, Any]] = []


class Tracer(trace.NoOpTracer):
    def start_span(self, name: str, *args: Any, **options: Any) -> trace.Span:
        SPANS.append(dict(options.get("attributes") or {}))
        return trace.INVALID_SPAN

    @contextmanager
    def start_as_current_span(self, name: str, *args: Any, **options: Any) -> Iterator[trace.Span]:  # type: ignore[override]
        yield self.start_span(name, *args, **options)


class Provider(trace.TracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return Tracer()


@pytest.mark.skipif(
    not any(one.startswith("opentelemetry-api") for one in requires("fastapi") or ()),
    reason="the oldest supported FastAPI starts no spans",
)
def test_a_request_has_its_query_string_and_its_span_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    SPANS.clear()
    app = create_app(Platform(PlatformOptions(home=tmp_path, services=())), hosts=["testserver"])
    with TestClient(app) as client:
        answer = client.get("/api/v1/monitoring/health?token=canary")
        assert answer.status_code == 200
        assert client.get("/api/v1/ai/spend?days=nonsense").status_code == 422  # it is read all the same
    paths = [span["url.path"] for span in SPANS if "url.path" in span]
    assert {"/api/v1/monitoring/health", "/api/v1/ai/spend"} <= set(paths)
    assert [span for span in SPANS if "url.query" in span or "canary" in str(span)] == []


def test_instrumentation_of_all_clients_sees_no_url_of_koo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instrument aiohttp like OpenTelemetry, which adds a trace configuration to each session."""
    seen: list[str] = []

    async def on_start(_: object, __: object, parameters: aiohttp.TraceRequestStartParams) -> None:
        seen.append(str(parameters.url))

    plain = aiohttp.ClientSession.__init__

    def instrumented(session: aiohttp.ClientSession, **options: Any) -> None:
        config = aiohttp.TraceConfig()
        config.on_request_start.append(on_start)
        plain(session, **options, trace_configs=[config])

    async def main() -> None:
        async with FakeCompatible(strict=False) as server:
            # A GET, and any request through a proxy. The direct path of a POST does not use sessions at all.
            http = HttpClient()
            assert (await http.request("GET", f"{server.base_url}/canary?key=canary")).status == 404
            await http.close()
            assert seen == []
            async with aiohttp.ClientSession() as theirs, theirs.get(server.base_url):
                assert len(seen) == 1

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", instrumented)
    asyncio.run(main())
