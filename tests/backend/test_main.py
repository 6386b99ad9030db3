"""`backend/main.py` is the same server as `koo serve`, on the process's own platform."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from koo import Platform
from koo.configuration.variables import BUILT_IN
from koo.testing.providers import FakeAnthropic
from koo.web import create_app
from tests.backend.conftest import BACKEND
from tests.cli.running import environment, settings_of
from tests.log_lines import strange_lines
from tests.web.serving import served

FROM_THE_README = {
    "session scope": """
        import asyncio
        from sqlalchemy import text
        from core.database import db_manager
        async def main():
            async with db_manager.session_scope() as session:
                await session.execute(text("CREATE TABLE IF NOT EXISTS visits (name TEXT)"))
                await session.execute(text("INSERT INTO visits (name) VALUES (:name)"), {"name": "Ada"})
            async with db_manager.session_scope() as session:
                print(await session.scalar(text("SELECT count(*) FROM visits")), "visit")
        asyncio.run(main())
        """,
    "query": """
        import asyncio
        from services.hybrid_ai_manager import ExternalServiceError, query_ai
        async def main():
            try:
                response = await query_ai("claude", "What is the capital of France?", max_tokens=100)
            except ExternalServiceError as error:
                print(f"no answer: {error}")
            else:
                print(response, response.service, response.cost_usd > 0)
            try:
                await query_ai("openai", "What is the capital of France?")
            except ExternalServiceError as error:
                print(error.kind, error.retry_after_s, error.attempts)
        asyncio.run(main())
        """,
    "health": """
        import asyncio
        from api.monitoring import get_system_health
        health = asyncio.run(get_system_health())
        print(health["overall_health"], health["database"]["state"], len(health["ai_services"]["services"]))
        """,
    "status and reset": """
        from services.hybrid_ai_manager import get_ai_service_health, reset_ai_service_errors
        status = get_ai_service_health("claude")
        print(status["state"], status["health"]["circuit_breaker_state"], reset_ai_service_errors("claude"))
        """,
    "pool metrics": """
        from core.database import db_manager
        pool = db_manager.get_pool_metrics()["pool_status"]
        print(pool["active_connections"], "of", pool["max_connections"], pool["waiting"])
        """,
}
SAID = {
    "session scope": "1 visit\n",
    "query": "Paris. claude True\nnot_configured None 0\n",
    "health": f"healthy healthy {len(BUILT_IN)}\n",
    "status and reset": "healthy closed True\n",
    "pool metrics": "0 of 30 0\n",
}


@pytest.mark.parametrize("name", FROM_THE_README)
def test_the_documented_scripts_run_from_any_directory(name: str, tmp_path: Path) -> None:
    """Each runs as a separate script: no server is needed, and the process ends cleanly without help."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = elsewhere / "script.py"
    script.write_text(re.sub(r"(?m)^ {8}", "", FROM_THE_README[name]))
    with FakeAnthropic() as fake:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            env=_environment(tmp_path, **settings_of(fake)),
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, strange_lines(done.stderr)) == (0, SAID[name], [])


def _environment(home: Path, **more: str) -> dict[str, str]:
    given = environment(home, **more)
    return {**given, "PYTHONPATH": f"{BACKEND}:{given['PYTHONPATH']}"}


@pytest.mark.usefixtures("fake")
def test_both_servers_describe_the_same_api() -> None:
    import main

    assert main.app.openapi() == create_app(Platform()).openapi()


@pytest.mark.usefixtures("fake")
def test_the_backend_serves_the_platform_of_the_bound_names() -> None:
    import main
    from core.ai_error_handling import ai_error_handler

    async def ask() -> None:
        ai_error_handler.register_service("search")
        async with served(main.app) as client:
            overview = (await client.get("/api/v1/ai/services/health")).body
            assert "search" in overview["services"]

    asyncio.run(ask())


@pytest.mark.usefixtures("fake")
def test_the_backends_routers_can_be_included_in_another_application() -> None:
    from fastapi import FastAPI

    from api.ai import router as ai
    from api.monitoring import router as monitoring

    async def ask() -> None:
        app = FastAPI()
        app.include_router(ai, prefix="/api/v1")
        app.include_router(monitoring, prefix="/api/v1")
        async with served(app) as client:
            assert (await client.get("/api/v1/monitoring/health")).body["overall_health"] == "healthy"
            asked = {"service": "claude", "prompt": "Capital of France?"}
            assert (await client.post("/api/v1/ai/query", json=asked)).body["response"] == "Paris."
            assert (await client.get("/api/v1/ai/services/nobody/health")).body["kind"] == "unknown_service"

    asyncio.run(ask())


def test_the_backend_runs_as_a_script(tmp_path: Path) -> None:
    with FakeAnthropic() as fake:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(BACKEND / "main.py")],
            env=_environment(tmp_path, **settings_of(fake), KOO_PORT="0"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert "koo is ready on http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err


def test_a_wrong_setting_stops_the_backend_with_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BACKEND / "main.py")],
        env=_environment(tmp_path, DATABASE_POOL_SIZE="0"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("koo: DATABASE_POOL_SIZE is") and done.stderr.count("\n") == 1
