"""Each service with the variables that users set: its key, or two lines in `.env` for their own server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from koo.ai.pricing import TABLE_NAMES
from koo.configuration.variables import BUILT_IN
from koo.testing.providers import (
    FakeAnthropic,
    FakeCompatible,
    FakeGemini,
    FakeOpenAI,
    FakePerplexity,
    FakeProvider,
    error,
)
from koo.web import create_app
from tests.cli.running import command, environment
from tests.web.serving import served

KEYS: dict[str, tuple[type[FakeProvider], str]] = {
    "claude": (FakeAnthropic, "ANTHROPIC_API_KEY"),
    "openai": (FakeOpenAI, "OPENAI_API_KEY"),
    "gemini": (FakeGemini, "GEMINI_API_KEY"),
    "perplexity": (FakePerplexity, "PERPLEXITY_API_KEY"),
}


@pytest.fixture
def ollama(fake: FakeAnthropic, tmp_path: Path) -> Iterator[FakeCompatible]:
    """A server with OpenAI's format, declared by two lines."""
    with FakeCompatible() as server:
        (tmp_path / ".env").write_text(
            f"AI_SERVICES__OLLAMA__BASE_URL={server.base_url}\nAI_SERVICES__OLLAMA__MODEL=llama3.3\n"
        )
        yield server


@pytest.mark.parametrize("service", KEYS)
def test_a_hosted_service_needs_only_a_key(
    service: str, fake: FakeAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service has the table's model at the price of the price data. A vendor outside of the price data also needs
    prices.
    """
    make, variable = KEYS[service]
    if BUILT_IN[service][0] not in TABLE_NAMES:
        for price in ("INPUT_PRICE", "OUTPUT_PRICE"):
            monkeypatch.setenv(f"AI_SERVICES__{service.upper()}__{price}", "1")
    with make() as server:
        monkeypatch.setenv(variable, "test-key")
        monkeypatch.setenv(f"AI_SERVICES__{service.upper()}__BASE_URL", server.base_url)
        if service == "claude":
            monkeypatch.delenv("AI_SERVICES__CLAUDE__INPUT_PRICE")
            monkeypatch.delenv("AI_SERVICES__CLAUDE__OUTPUT_PRICE")

        async def main() -> None:
            from koo.ai.models import DEFAULT_MODELS
            from services.hybrid_ai_manager import (
                get_ai_service_health,
                perform_ai_health_check,
                query_ai,
                stream_ai,
            )

            answer = await query_ai(service, "Hello?")
            assert answer.service == service and str(answer) and answer.cost_usd > 0
            assert answer.cost_usd <= Decimal("0.05") and answer.usage.output_tokens > 0
            assert "".join([str(piece) async for piece in stream_ai(service, "Hello?")]) == answer.text
            assert get_ai_service_health(service)["configuration"]["model"] == DEFAULT_MODELS[service]
            asked = len(server.queries)
            checked = (await perform_ai_health_check(service))[service]
            assert checked["healthy"] is True and len(server.queries) == asked == 2, "a check sends no query"

        asyncio.run(main())


def test_each_service_reads_its_key_from_its_own_variable(fake: FakeAnthropic) -> None:
    from koo.ai.models import KEY_VARIABLES

    assert {name: key.upper() for name, (_, key) in BUILT_IN.items() if key} == KEY_VARIABLES
    assert {name: variable for name, (_, variable) in KEYS.items()} == KEY_VARIABLES


def test_two_lines_declare_a_server_as_a_service(ollama: FakeCompatible) -> None:
    async def main() -> None:
        from services.hybrid_ai_manager import get_ai_service_health, query_ai, stream_ai

        answer = await query_ai("ollama", "Hello?")
        assert (answer.service, answer.cost_usd, answer.attempts) == ("ollama", Decimal(0), 1) and answer.text
        assert "".join([str(piece) async for piece in stream_ai("ollama", "Hello?")]) == answer.text
        assert [asked.body["model"] for asked in ollama.queries] == ["llama3.3"] * 2
        view = get_ai_service_health("ollama")
        assert (view["configured"], view["state"], view["metrics"]["successful_requests"]) == (
            True,
            "healthy",
            2,
        )

    asyncio.run(main())


def test_a_declared_server_is_available_over_http(ollama: FakeCompatible) -> None:
    async def main() -> None:
        from core.platform import platform

        async with served(create_app(platform)) as client:
            body = {"service": "ollama", "prompt": "Hello?"}
            reply = await client.post("/api/v1/ai/query", json=body)
            assert (reply.status, reply.body["service"], reply.body["cost"]) == (200, "ollama", "0")
            assert (await client.get("/api/v1/ai/services/ollama/health")).status == 200
            ollama.script(error(503, "unavailable"))
            refused = await client.post("/api/v1/ai/query", json=body)
            assert refused.status in (502, 503) and refused.body["service"] == "ollama"
            assert (await client.post("/api/v1/ai/services/ollama/reset-errors")).status == 200
            assert 'service="ollama"' in (await client.get("/metrics")).text

    asyncio.run(main())


def test_a_declared_server_is_available_on_the_command_line(ollama: FakeCompatible, tmp_path: Path) -> None:
    async def main() -> Any:
        process = await asyncio.create_subprocess_exec(
            *command("query", "ollama", "Hello?"),
            env=environment(tmp_path),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return process.returncode, *(await process.communicate())

    _, out, err = asyncio.run(main())
    assert out.strip() and b"Traceback" not in err and len(ollama.queries) == 1, err


def test_one_of_five_concurrent_services_fails(
    ollama: FakeCompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are not affected, and the totals are right."""
    with FakeOpenAI() as openai, FakeGemini() as gemini, FakePerplexity() as perplexity:
        for name, server in (("openai", openai), ("gemini", gemini), ("perplexity", perplexity)):
            monkeypatch.setenv(KEYS[name][1], "test-key")
            monkeypatch.setenv(f"AI_SERVICES__{name.upper()}__BASE_URL", server.base_url)
        gemini.fails(500)
        names = ["claude", "openai", "gemini", "perplexity", "ollama"]

        async def main() -> None:
            from api.monitoring import get_monitoring_dashboard
            from services.hybrid_ai_manager import get_all_ai_services_health, query_multiple_ai

            asked: list[dict[str, Any]] = [{"service": names[n % 5], "prompt": f"{n}?"} for n in range(50)]
            results = await query_multiple_ai(asked)
            assert [one["success"] for one in results] == [names[n % 5] != "gemini" for n in range(50)]
            for _ in range(5):
                await query_multiple_ai([{"service": "gemini", "prompt": "again?"}])
            overview = get_all_ai_services_health()
            states = {name: overview["services"][name]["state"] for name in names}
            assert states == {name: "circuit_open" if name == "gemini" else "healthy" for name in names}
            # `local` is the sixth.
            assert (overview["healthy_services"], overview["total_services"]) == (5, 6)
            assert overview["overall_health"] == "degraded"
            dashboard = await get_monitoring_dashboard()
            assert dashboard["summary"]["ai_services_healthy"] == "5/6"
            assert dashboard["summary"]["circuit_breakers_open"] == 1

        asyncio.run(main())
