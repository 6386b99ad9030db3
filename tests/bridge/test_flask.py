"""Flask with real threads: those of its own server and of gunicorn workers, with and without preloading."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import flask
import pytest

import koo
from koo import Platform
from koo.settings import Settings
from koo.testing.providers import FakeAnthropic, error, stream
from tests.cli.running import settings_of
from tests.platform.test_platform import QUESTION, options

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SERVERS = {
    "flask": ["-m", "flask", "--app", str(EXAMPLES / "flask_app.py"), "run", "--with-threads", "--port", "{port}"],
    "gunicorn": ["-m", "gunicorn", "--chdir", str(EXAMPLES), "--workers", "2", "--threads", "8",
                 "--bind", "127.0.0.1:{port}", "flask_app:app"],
    "gunicorn-preload": ["-m", "gunicorn", "--preload", "--chdir", str(EXAMPLES), "--workers", "2", "--threads", "8",
                         "--bind", "127.0.0.1:{port}", "flask_app:app"],
}  # fmt: skip


@contextmanager
def serving(kind: str, home: Path, fake: FakeAnthropic) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the example on a server of this kind; yields its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environ = (
        kept | settings_of(fake, KOO_HOME=str(home)) | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'backend'}"}
    )
    command = [sys.executable, *(part.format(port=port) for part in SERVERS[kind])]
    log = home / "server.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=home, env=environ, stdout=out, stderr=out) as process,
    ):
        try:
            ends_at = time.monotonic() + 60
            while _status(f"http://127.0.0.1:{port}/health") != 200:
                assert process.poll() is None and time.monotonic() < ends_at, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return refusal.code
    except OSError:
        return 0


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        body = answer.read()
        return json.loads(body) if "json" in answer.headers["content-type"] else body.decode()


def test_views_in_many_threads_share_one_koo(tmp_path: Path) -> None:
    with FakeAnthropic(latency_s=0.1) as fake:
        platform, app = Platform(options(tmp_path, fake)), flask.Flask(__name__)

        @app.get("/ask")
        def ask() -> str:
            return koo.run(platform.query(QUESTION)).text

        with ThreadPoolExecutor(6) as pool:
            seen = list(pool.map(lambda _: app.test_client().get("/ask").status_code, range(6)))
            assert seen == [200] * 6
        assert platform.service_health("claude")["metrics"]["total_requests"] == len(fake.queries) == 6
        koo.run(platform.close())


@pytest.mark.parametrize("kind", SERVERS)
def test_many_threads_are_served_at_the_same_time_and_the_end_books_what_was_spent(
    kind: str, tmp_path: Path
) -> None:
    with FakeAnthropic(latency_s=0.3) as fake:
        with serving(kind, tmp_path, fake) as (url, _), ThreadPoolExecutor(12) as pool:
            asked = [f"{url}/ask?service=claude&q=Capital+{number}" for number in range(12)]
            halves = [f"{url}/half/{number}" for number in range(0, 24, 2)]
            answers = list(pool.map(get, asked))
            assert [one["service"] for one in answers] == ["claude"] * 12
            assert [one["half"] for one in pool.map(get, halves)] == list(range(12))
            fake.script(stream(["Par", "is."]), error(400))
            assert get(f"{url}/stream?service=claude&q=Capital") == "Paris."
            assert _status(f"{url}/ask?service=claude&q=x") == 503
        spent = _booked(tmp_path)
        assert spent == fake.billed_usd > 0


def _booked(home: Path) -> Decimal:
    """The amount in the state store after the last process has ended."""

    async def main() -> Decimal:
        platform = Platform(Settings(environ={"KOO_HOME": str(home)}).platform_options())
        async with platform:
            return Decimal((await platform.spend())["amount"])

    return asyncio.run(main())
