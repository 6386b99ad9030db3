"""Marked keys, passwords, tokens and prompts through Python and the command line: nothing shows them.

HTTP is covered by `tests/web/test_secrets.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from koo.testing.providers import FakeAnthropic, Step, cut, error, html, nothing
from tests.cli.running import command, environment, serving, settings_of

MARK = "marked4711"
KEY, PASSWORD, TOKEN, PROMPT = (f"{what}-{MARK}" for what in ("key", "password", "token", "a secret prompt"))
OWN = "noted4711"
"""A caller's own labels for a query: stored in the ledger and shown nowhere else."""
NOWHERE = f"postgresql://user:{PASSWORD}@127.0.0.1:1/none"

PROGRAM = f"""
import asyncio, logging, traceback

from sqlalchemy import text

from koo import Platform
from koo.ai.types import Query
from koo.errors import KooError

logging.basicConfig(level=logging.DEBUG)
PROMPT = {PROMPT!r}
WRONG = [dict(), dict(model="nosuch"), dict(max_tokens=-1), dict(timeout_s=0.001), dict(system=[PROMPT])]
WRONG += [dict(prompt=[PROMPT]), dict(prompt=PROMPT + chr(0xD800)), dict(service="nobody")]
WRONG += [dict(service=PROMPT, prompt="claude"), dict(service="openai", fallback=("claude",))]


def tell(error):
    traceback.print_exc()
    print(repr(error), error.__dict__, getattr(error, "__notes__", None))


async def attempt(work):
    try:
        await work
    except KooError as error:
        tell(error)


async def stream(koo, query):
    async with koo.stream(query) as chunks:
        async for _ in chunks:
            pass


async def use():
    async with koo.database.session_scope() as session:
        await session.execute(text("SELECT 1"))


async def main():
    async with koo:
        for wrong in WRONG * 2:
            query = Query(**(dict(service="claude", prompt=PROMPT, metadata=dict(a={OWN!r})) | wrong))
            await attempt(koo.query(query))
            await attempt(stream(koo, query))
            koo.reset_services()
        await attempt(use())
        print(await koo.system_health(), koo.active_alerts(), await koo.database.get_detailed_status())
    print(koo.options, vars(koo))


koo = Platform()
asyncio.run(main())
print("the end")
"""


def marked(fake: FakeAnthropic, **more: str) -> dict[str, str]:
    keys = {f"{name}_API_KEY": KEY for name in ("ANTHROPIC", "OPENAI", "GEMINI", "PERPLEXITY")}
    places = {
        f"AI_SERVICES__{name}__BASE_URL": "http://127.0.0.1:1" for name in ("OPENAI", "GEMINI", "PERPLEXITY")
    }
    return {**settings_of(fake), **places, **keys, "DATABASE_URL": NOWHERE, "KOO_TOKEN": TOKEN, **more}


def talkative(fake: FakeAnthropic) -> None:
    """A provider whose errors repeat what it was sent."""
    said = f"{KEY} {PROMPT}"
    errors = [error(status, "api_error", message=said) for status in (400, 401, 403, 404, 429, 500, 529)]
    steps: list[Step] = [*errors, html(500), nothing(), cut(60)]
    fake.script(*[step for step in steps for _ in range(2)])


def clean(*texts: bytes, marks: tuple[str, ...] = (MARK, OWN)) -> bool:
    lines = [line for text in texts for line in text.splitlines()]
    found = [line for line in lines if any(mark.encode() in line for mark in marks)]
    return found == []


@pytest.mark.parametrize("state", [{}, {"KOO_STATE_URL": NOWHERE}], ids=["sqlite", "away"])
def test_no_error_log_or_view_of_python_shows_a_secret(tmp_path: Path, state: dict[str, str]) -> None:
    """The test uses `-X dev`, asyncio's debug mode, and every line of every logger."""
    with FakeAnthropic(key=KEY, strict=False) as fake:
        talkative(fake)
        (tmp_path / "program.py").write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, "-X", "dev", "program.py"],
            env=environment(tmp_path, **marked(fake, **state)),
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert b"the end" in done.stdout, done.stderr.decode()
        assert any(PROMPT in str(request.body) for request in fake.queries)  # it did reach the provider
    assert done.stderr.count(b"Traceback") > 20
    assert clean(done.stdout, done.stderr)
    for file in tmp_path.glob("data/*"):
        assert clean(file.read_bytes(), marks=(MARK,)), file


@pytest.mark.parametrize(
    "arguments",
    [
        ["config"],
        ["config", "--json"],
        ["doctor"],
        ["doctor", "--json"],
        ["query", "claude", PROMPT],
        ["query", "claude", PROMPT, "--json"],
        ["query", "gemini", PROMPT, "--fallback", "claude"],
        ["query", PROMPT, "claude"],
        ["status"],
    ],
)
def test_no_command_shows_a_secret(tmp_path: Path, arguments: list[str]) -> None:
    with FakeAnthropic(key=KEY, strict=False) as fake:
        talkative(fake)
        settings = marked(fake, KOO_URL="http://127.0.0.1:1", KOO_STATE_URL=NOWHERE)
        done = subprocess.run(
            command(*arguments),
            env=environment(tmp_path, **settings),
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=120,
        )
    assert done.stdout + done.stderr
    assert clean(done.stdout, done.stderr)


def test_a_server_that_logs_everything_shows_no_secret(tmp_path: Path) -> None:
    with FakeAnthropic(key=KEY, strict=False) as fake:
        talkative(fake)
        settings = marked(fake, KOO_STATE_URL=NOWHERE, PYTHONDEVMODE="1", PYTHONWARNINGS="default")
        with serving(tmp_path, "--log-level", "debug", **settings) as (url, process):
            for what in (["status"], ["alerts"], ["reset", "all"], ["status", "--json"]):
                done = subprocess.run(
                    command(*what),
                    env=environment(tmp_path, **marked(fake, KOO_URL=url)),
                    cwd=tmp_path,
                    capture_output=True,
                    check=False,
                    timeout=120,
                )
                assert done.stdout and clean(done.stdout, done.stderr)
            process.terminate()
            out, _ = process.communicate(timeout=60)
    log = (tmp_path / "serve.log").read_bytes()
    assert log and clean(out.encode(), log)
