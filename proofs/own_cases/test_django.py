"""A Django application under ASGI and WSGI: every kind of view, in many threads, in any order."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from koo.testing.providers import FakeAnthropic
from tests.bridge.test_flask import ROOT, _status, get
from tests.cli.running import settings_of

SITE = "proofs.own_cases.django_site"
SERVERS = {
    "uvicorn": ["-m", "uvicorn", f"{SITE}:application", "--port", "{port}", "--lifespan", "off"],
    "daphne": ["-m", "daphne", "-p", "{port}", f"{SITE}:application"],
    "gunicorn": ["-m", "gunicorn", "--threads", "8", "--bind", "127.0.0.1:{port}", f"{SITE}:wsgi"],
}
VIEWS = ("bridged", "by-asgiref", "awaited")
SAID = {"query": "Paris.", "operation": "SHOES", "stream": "Paris.", "transaction": "42"}


@contextmanager
def serving(kind: str, home: Path, fake: FakeAnthropic) -> Iterator[str]:
    """Serve the application with `kind`; returns its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | settings_of(
        fake, KOO_HOME=str(home)
    )
    command = [sys.executable, *(part.format(port=port) for part in SERVERS[kind])]
    log = home / "server.log"
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            ends_at = time.monotonic() + 60
            while _status(f"http://127.0.0.1:{port}/counts") != 200:
                assert process.poll() is None and time.monotonic() < ends_at, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.parametrize("first", VIEWS)
@pytest.mark.parametrize("kind", SERVERS)
def test_each_kind_of_view(kind: str, first: str, tmp_path: Path) -> None:
    """Under WSGI an `async def` view has a loop for one call; a session on it is refused with the line to write."""
    with FakeAnthropic() as fake, serving(kind, tmp_path, fake) as url:
        for what, said in SAID.items():
            check(kind, first, what, get(f"{url}/{first}/{what}"), said)
        asked = list(itertools.product(VIEWS, SAID.items())) * 3
        with ThreadPoolExecutor(12) as pool:
            answers = pool.map(lambda one: get(f"{url}/{one[0]}/{one[1][0]}"), asked)
            for (view, (what, said)), answer in zip(asked, answers, strict=True):
                check(kind, view, what, answer, said)
        counts = get(f"{url}/counts")
        assert (counts["claude"], counts["search"]) == (20, 10) and len(fake.queries) == 20, (
            "one koo in the process"
        )


def check(kind: str, view: str, what: str, answer: dict[str, str], said: str) -> None:
    if kind == "gunicorn" and view != "bridged" and what == "transaction":
        assert "koo.run(coroutine)" in answer["told"]
    else:
        assert answer == {"said": said}, (view, what)
