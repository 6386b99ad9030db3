"""All programs and command lines in the documents are run as they are, and must work.

A program runs as a separate script, in an empty KOO_HOME, with the real local model and with fake servers for the
hosted providers. A command line runs against a real server. `tests/docs/markdown.py` lists the labels of blocks that
cannot be run.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from koo.settings import Settings
from koo.testing.providers import FakeAnthropic, FakeCompatible, FakeOpenAI
from tests.cli.running import PLAIN
from tests.docs.markdown import ROOT, Block, blocks
from tests.log_lines import strange_lines

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "docs" / "QUICK_START.md",
    ROOT / "docs" / "ENHANCED_ERROR_HANDLING.md",
    ROOT / "docs" / "application.md",
    ROOT / "docs" / "alerts.md",
    ROOT / "docs" / "notifications.md",
    ROOT / "docs" / "errors.md",
    ROOT / "docs" / "operations.md",
    ROOT / "docs" / "exactly-once.md",
    ROOT / "docs" / "fleet.md",
    ROOT / "docs" / "history.md",
    ROOT / "docs" / "incidents.md",
    ROOT / "docs" / "log.md",
    ROOT / "docs" / "network.md",
]
LANGUAGES = {"python", "sh", "text", "ini", "yaml", "nginx", "sql", "json", "mermaid", "Dockerfile"}
WORDS = {"fragment", "output", "fails"}
KOO = Path(sys.executable).with_name("koo")
TIMEOUT_S = 120.0
ANYTHING = "…"
RUN_BY_HAND = {"serve"}
"""Subcommands of koo that run until they are stopped."""


def snippets(language: str) -> list[Block]:
    """The blocks of a language that can be run."""
    return [
        block
        for path in DOCUMENTS
        for block in blocks(path)
        if block.language == language and not {"fragment", "output"} & set(block.words)
    ]


def output_after(program: Block) -> str | None:
    """The documented output of a program: the block after it, if that is labelled as output."""
    following = [block for block in blocks(program.path) if block.line > program.line]
    return following[0].text if following and "output" in following[0].words else None


def as_pattern(output: str) -> str:
    return ".*?".join(re.escape(part) for part in output.strip().split(ANYTHING))


def commands(block: Block) -> list[str]:
    """The command lines in a block that query koo or a server."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        program = words[0].rpartition("/")[2] if words else ""
        if program in ("curl", "koo") and not RUN_BY_HAND & set(words[1:2]):
            found.append(line)
    return found


# ── fixtures ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def providers() -> Iterator[dict[str, str]]:
    """Fakes for the hosted providers and a self-hosted server; yields the environment that points to them."""
    with (
        FakeAnthropic(key="test-key") as claude,
        FakeOpenAI(key="test-key") as openai,
        FakeCompatible(key=None) as lab,
    ):
        yield {
            "ANTHROPIC_API_KEY": "test-key",
            "ANTHROPIC_BASE_URL": claude.base_url,
            "AI_SERVICES__CLAUDE__BASE_URL": claude.base_url,
            "OPENAI_API_KEY": "test-key",
            "AI_SERVICES__OPENAI__BASE_URL": openai.base_url,
            "AI_SERVICES__LAB__BASE_URL": lab.base_url,
            "AI_SERVICES__LAB__MODEL": "qwen3:8b",
        }


@pytest.fixture(scope="module")
def server(
    providers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    """A running `koo serve`; yields its URL and the environment for its clients."""
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = environment(home, providers) | {"KOO_PORT": str(port), "KOO_URL": url}
    log = home / "server.log"
    with (
        log.open("w") as out,
        subprocess.Popen([KOO, "serve"], cwd=home, env=env, stdout=out, stderr=out) as process,
    ):
        try:
            _wait_until_it_lives(url, process, log)
            yield url, env
        finally:
            process.terminate()
            process.wait(30)


def environment(home: Path, providers: dict[str, str]) -> dict[str, str]:
    """An environment without the developer's own settings and keys; PYTHONPATH is set only if koo is not installed."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return (
        kept
        | providers
        | {"HOME": str(home), "KOO_HOME": str(home), "PYTHONWARNINGS": PLAIN["PYTHONWARNINGS"]}
    )


def _wait_until_it_lives(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        try:
            with urllib.request.urlopen(f"{url}/livez", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"the server does not respond: {log.read_text()}")


# ── tests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", DOCUMENTS[:3], ids=lambda path: path.name)
def test_each_guide_has_programs_and_command_lines(path: Path) -> None:
    """Otherwise the tests below would pass for documents that they cannot parse."""
    assert sum(block.path == path for block in snippets("python")) >= 3
    assert sum(block.path == path and bool(commands(block)) for block in snippets("sh")) >= 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_each_block_is_labelled(path: Path) -> None:
    """A block without a language, or with a misspelt label, would be skipped silently."""
    assert [b.name for b in blocks(path) if b.language not in LANGUAGES] == []
    assert [b.name for b in blocks(path) if not set(b.words) <= WORDS] == []


@pytest.mark.model
@pytest.mark.parametrize("program", snippets("python"), ids=lambda block: block.name)
def test_the_program_runs_and_prints_what_the_document_says(
    program: Block, providers: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    script = tmp_path / "snippet.py"
    script.write_text(program.text)
    done = subprocess.run(
        [sys.executable, script],
        cwd=home,
        env=environment(home, providers),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert strange_lines(done.stderr) == []
    assert "no answer" not in done.stdout or "no answer" in (output_after(program) or "")
    output = output_after(program)
    if output is not None:
        pattern = as_pattern(output)
        assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), (
            f"{done.stdout!r} is not like {output!r}"
        )


HOSTED = re.compile(r"anthropic|openai|claude|gemini|perplexity", re.IGNORECASE)


@pytest.mark.model
@pytest.mark.parametrize(
    "program",
    [program for program in snippets("python") if HOSTED.search(program.text)],
    ids=lambda block: block.name,
)
def test_a_program_for_a_hosted_provider_runs_without_a_key(program: Block, tmp_path: Path) -> None:
    """The program says what is missing, or queries the local model. A reader's first try must not end with a
    traceback.
    """
    (tmp_path / "snippet.py").write_text(program.text)
    with FakeAnthropic(key="test-key", strict=False) as claude:
        done = subprocess.run(
            [sys.executable, "snippet.py"],
            cwd=tmp_path,
            env=environment(tmp_path, {"ANTHROPIC_BASE_URL": claude.base_url}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.model
@pytest.mark.parametrize(
    "block", [block for block in snippets("sh") if commands(block)], ids=lambda block: block.name
)
def test_the_command_lines_work(block: Block, server: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, env = server
    script = "\n".join(
        [
            "set -euo pipefail",
            'curl() { command curl -sS --fail-with-body --max-time 60 "$@"; }',
            f'koo() {{ {shlex.quote(str(KOO))} "$@"; }}',
            *(
                line.replace("http://127.0.0.1:8000", url).replace(".venv/bin/koo", "koo")
                for line in commands(block)
            ),
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    # 22: the server responded with an error
    wanted = 22 if "fails" in block.words else 0
    assert done.returncode == wanted, f"{script}\n{done.stdout[-1000:]}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def settings_blocks() -> list[Block]:
    """Blocks with lines of a `.env`, as opposed to those of a unit file."""
    return [block for block in snippets("ini") if "[Unit]" not in block.text]


@pytest.mark.parametrize("block", settings_blocks(), ids=lambda block: block.name)
def test_the_documented_settings_exist_and_are_accepted(block: Block, tmp_path: Path) -> None:
    """Every variable in a document exists and accepts the value of the example."""
    lines = [line for line in block.text.splitlines() if line and not line.startswith("#")]
    environ = dict(line.split("=", 1) for line in lines)
    settings = Settings(environ=environ, working_directory=tmp_path)
    settings.platform_options()
    assert settings.unknown_variables == ()
