"""Incidents and breakers over HTTP: the export is Markdown, and a read token changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from koo.platform import Platform
from koo.testing.providers import FakeAnthropic
from koo.web import create_app
from tests.platform.test_platform import options, run
from tests.web.serving import served

TOKEN, READ_TOKEN = "t" * 32, "r" * 32
BODY = {"by": "ada", "reason": "it answers *nonsense* | <b>"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_an_incident_is_exported_as_markdown_and_a_read_token_cannot_act(tmp_path: Path) -> None:
    async def test(server: FakeAnthropic) -> None:
        koo = Platform(replace(options(tmp_path, server), token=TOKEN, read_token=READ_TOKEN))
        async with served(create_app(koo)) as client:
            base = "/api/v1/monitoring"
            for act in ("trip", "shadow", "reset"):
                path = f"{base}/breakers/claude/{act}"
                assert (await client.post(path, json=BODY, headers=bearer(READ_TOKEN))).status == 403
                assert (await client.post(path, json={"by": "ada"}, headers=bearer(TOKEN))).status == 422
            assert koo.breakers.statuses("claude")[0]["state"] == "closed"
            tripped = await client.post(
                f"{base}/breakers/{koo.breakers.statuses()[0]['name']}/trip", json=BODY, headers=bearer(TOKEN)
            )
            (status,) = tripped.body["breakers"]
            assert status["operator"] == "ada: it answers *nonsense* | <b>; until it is reset"
            reply = await client.get(f"{base}/incidents/{status['incident']}.md", headers=bearer(READ_TOKEN))
            assert reply.headers["Content-Type"] == "text/markdown; charset=utf-8"
            assert r"it answers \*nonsense\* \| \<b\>" in reply.text
            audit = await client.get(f"{base}/audit", headers=bearer(READ_TOKEN))
            assert any(
                one["what"].endswith("/trip") and one["status"] == 200 for one in audit.body["entries"]
            )
            assert (await client.get(f"{base}/incidents/nothing.md", headers=bearer(TOKEN))).status == 404
            assert (
                await client.post(f"{base}/breakers/no/trip", json=BODY, headers=bearer(TOKEN))
            ).status == 404

    run(test)
