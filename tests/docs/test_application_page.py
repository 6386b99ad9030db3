"""Each shop of docs/application.md, assembled from the page alone, runs, survives an outage and is monitored."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from koo.testing.providers import FakeAnthropic, FakeCompatible
from tests.docs.markdown import ROOT, Block, blocks
from tests.docs.test_snippets import environment

PAGE = ROOT / "docs" / "application.md"
PROGRAMS = {
    name: next(one for one in blocks(PAGE) if one.language == "python" and f"app = {name}(" in one.text)
    for name in ("FastAPI", "Flask")
}
STEPS = """
from shop import app
{client}
assert client.post("/articles/boots?pieces=2").status_code in (200, 201)
one = client.post("/orders", json={{"article": "boots"}})
assert {json} == {{"ordered": True, "left": 1, "parcel": "a parcel with boots is on its way"}}, {json}
one = client.post("/orders", json={{"article": "boots", "pieces": 9}})
assert {json} == {{"ordered": False}}
one = client.get("/suggestions?article=boots")
assert {json}["by"] == "lab" and {json}["cost_usd"] == "0", {json}
one = client.get("{health}")
assert {json}["database"]["healthy"]
assert {json}["ai_services"]["services"]["parcels"]["metrics"]["successful_requests"] == 1
assert {json}["ai_services"]["services"]["claude"]["state"] == "circuit_open"
assert b'koo_service_state{{' in {body}(client.get("/metrics"))
print("done")
"""
CLIENTS = {
    "FastAPI": {
        "client": "from fastapi.testclient import TestClient\n"
        'client = TestClient(app, base_url="http://localhost", client=("127.0.0.1", 5000)).__enter__()',
        "json": "one.json()",
        "health": "/api/v1/monitoring/health",
        "body": "(lambda answer: answer.content)",
    },
    "Flask": {
        "client": "client = app.test_client()",
        "json": "one.get_json()",
        "health": "/monitoring/health",
        "body": "(lambda answer: answer.data)",
    },
}


@pytest.mark.parametrize("kind", ["FastAPI", "Flask"])
def test_the_pages_shop_serves_survives_an_outage_and_is_monitored(kind: str, tmp_path: Path) -> None:
    shop: Block = PROGRAMS[kind]
    end = "\nclient.__exit__(None, None, None)\n" if kind == "FastAPI" else ""
    (tmp_path / "shop.py").write_text(shop.text.replace('fallback=["local"]', 'fallback=["lab"]'))
    (tmp_path / "try_it.py").write_text(STEPS.format(**CLIENTS[kind]) + end)
    with FakeAnthropic(key="another-key", strict=False) as claude, FakeCompatible(key=None) as lab:
        providers = {
            "ANTHROPIC_API_KEY": "test-key",
            "AI_SERVICES__CLAUDE__BASE_URL": claude.base_url,
            "AI_SERVICES__LAB__BASE_URL": lab.base_url,
            "AI_SERVICES__LAB__MODEL": "qwen3:8b",
        }
        done = subprocess.run(
            [sys.executable, "try_it.py"],
            cwd=tmp_path,
            env=environment(tmp_path, providers),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "done\n"


@pytest.mark.parametrize("package", ["sqlalchemy", "psycopg", "asyncpg"])
def test_the_supported_versions_begin_with_the_lower_bound_in_pyproject(package: str) -> None:
    (bound,) = re.findall(
        rf'^  "{package}(?:\[\w+\])?>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    table = PAGE.read_text().split("## Supported versions")[1].split("\n## ")[0]
    assert re.search(rf"(?i){package}.* from {re.escape(bound)}\b", table)
