"""koo's own server next to an application without an event loop: the same platform and the same access rules."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import koo
from koo.errors import ConfigurationError
from koo.testing.polling import wait_until
from koo.testing.providers import FakeAnthropic, hang
from koo.web import serve_beside
from tests.platform.test_platform import QUESTION
from tests.web.serving import claude, platform


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    asked = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def health(url: str) -> Any:
    return json.loads(get(f"{url}/api/v1/monitoring/health")[1])


def test_the_page_shows_the_applications_platform_while_its_threads_are_blocked(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads, ExitStack() as ends:
        fake = ends.enter_context(FakeAnthropic(strict=False))
        shop = platform(tmp_path, claude(fake))
        with serve_beside(shop, port=0) as beside:
            assert koo.run(shop.query(QUESTION)).text
            fake.script(hang(), hang())
            stuck = [threads.submit(koo.run, shop.query(QUESTION), timeout_s=600) for _ in range(2)]
            wait_until(lambda: len(fake.queries) == 3)
            status, page = get(f"{beside.url}/dashboard/")
            assert status == 200 and b"<html" in page.lower()
            (model,) = health(beside.url)["ai_services"]["services"]["claude"]["models"].values()
            assert model["running"] == 2
            ends.close()  # hanging requests are cancelled
            assert all(one.exception() for one in stuck)
        koo.run(shop.close())


def test_the_background_server_has_the_access_rules_of_koo_serve(tmp_path: Path) -> None:
    shop = platform(tmp_path)
    with serve_beside(shop, port=0) as beside:
        reset = f"{beside.url}/api/v1/ai/services/reset-all-errors"
        assert get(reset, "POST", Origin="https://evil.example")[0] == 403
        assert get(f"{beside.url}/api/v1/monitoring/health", Host="evil.example")[0] == 403
        assert get(reset, "POST")[0] == 200
        assert get(f"{beside.url}/readyz")[0] == 200


def test_a_port_in_use_is_reported_and_a_closed_server_frees_its_port(tmp_path: Path) -> None:
    shop = platform(tmp_path)
    with serve_beside(shop, port=0) as beside:
        port = int(beside.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1 port {port}"):
            serve_beside(shop, port=port)
    with serve_beside(shop, port=port) as again:
        assert get(f"{again.url}/livez")[0] == 200


def test_inside_a_running_loop_serve_beside_refuses_and_names_mount(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="mount"):
            serve_beside(platform(tmp_path), port=0)

    asyncio.run(main())
