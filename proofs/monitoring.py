"""A real Prometheus scrapes a real koo, and agrees with it: `python -m proofs.monitoring`.

`koo serve` calls a provider that answers, then fails, then answers again. Prometheus scrapes it each second and uses
koo's own rules. The API, the command line and Prometheus must show the same numbers. The alert that koo has must fire
in Prometheus under the same kind, and end. When koo is killed, Prometheus must report it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koo.monitoring.exports import DASHBOARD, RULES, text_of
from koo.testing.polling import until
from koo.testing.providers import FakeAnthropic, answer, error
from proofs.running import ROOT, ProofFailed, end, start, write_page

COMPOSE = ROOT / "compose.yaml"
API = "/api/v1"
TOKEN = "a-token-to-read-and-act"
PATIENCE_S = 60.0
ABSENT_S = 240.0
"""The rule waits for two minutes, and Prometheus keeps the last scrape for at most five."""
QUESTIONS = 12
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [koo.rules.yaml]
scrape_configs:
  - job_name: koo
    authorization: {{credentials: {token}}}
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def ask(url: str, body: object = None) -> Any:
    """Fetch JSON from a server on this machine; responses with an error status are returned too."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as refused:
        return json.load(refused)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def write_composed(folder: Path) -> Path:
    """Write Prometheus's configuration from `compose.yaml`, with the rules that it mounts; returns its path."""
    written = COMPOSE.read_text()
    block = re.search(r"^  prometheus:\n    content: \|\n((?:      .*\n)+)", written, re.MULTILINE)
    if block is None:
        raise ProofFailed("compose.yaml has no configuration of Prometheus")
    token, config = folder / "token", folder / "composed.yml"
    token.write_text(TOKEN)
    text = textwrap.dedent(block[1]).replace("/tmp/token", str(token))
    for path, place in re.findall(r"- \./(\S+?):(\S+):ro", written):
        text = text.replace(place, str(COMPOSE.parent / path))
    config.write_text(text)
    return config


class Watched:
    """A koo, and the Prometheus that scrapes it."""

    def __init__(self, koo: str, prometheus: str, home: Path) -> None:
        self.koo = koo
        self.prometheus = prometheus
        self.home = home

    async def koo_says(self, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(ask, f"{self.koo}{path}", body)

    async def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        words = urllib.parse.urlencode({"query": expression})
        found = await asyncio.to_thread(ask, f"{self.prometheus}/api/v1/query?{words}")
        return [(one["metric"], float(one["value"][1])) for one in found["data"]["result"]]

    async def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire in Prometheus: name and kind."""
        found = await asyncio.to_thread(ask, f"{self.prometheus}/api/v1/alerts")
        return {
            (one["labels"]["alertname"], one["labels"].get("kind", ""))
            for one in found["data"]["alerts"]
            if one["state"] == "firing"
        }

    async def ask_a_question(self) -> None:
        await self.koo_says(f"{API}/ai/query", {"service": "claude", "prompt": "hi", "fallback": []})

    async def numbers(self) -> tuple[int, int, int]:
        """The number of successful requests in the API, on the command line and in Prometheus."""
        view = await self.koo_says(f"{API}/monitoring/ai-services/claude/metrics")
        by_api = view["service_metrics"]["metrics"]["successful_requests"]
        command = [sys.executable, "-m", "koo.cli", "status", "--json", "--url", self.koo]
        environment = os.environ | {"KOO_TOKEN": TOKEN, "KOO_HOME": str(self.home)}
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, env=environment, check=False
        )
        services = json.loads(done.stdout)["ai_services"]["services"]
        by_command = services["claude"]["metrics"]["successful_requests"]
        series = await self.query('koo_service_requests_total{service="claude",outcome="success"}')
        return by_api, by_command, int(series[0][1]) if series else -1


async def seconds_until(is_so: Callable[[], Any], within_s: float, what: str) -> float:
    """Wait until it holds; returns how long it took. Raises ProofFailed after the limit."""
    began = time.monotonic()
    try:
        await until(is_so, within_s=within_s)
    except AssertionError as late:
        raise ProofFailed(f"{what}: not within {within_s:.0f} s") from late
    return time.monotonic() - began


@contextmanager
def running(fake: FakeAnthropic, folder: Path) -> Iterator[tuple[Watched, subprocess.Popen[bytes]]]:
    """Run koo and Prometheus for the block."""
    port, watch = free_port(), free_port()
    (folder / "koo.rules.yaml").write_text(text_of(RULES))
    (folder / "prometheus.yml").write_text(CONFIG.format(token=TOKEN, port=port))
    environment = {
        "KOO_HOME": str(folder),
        "KOO_TOKEN": TOKEN,
        "ANTHROPIC_API_KEY": "test-key",
        "AI_SERVICES__CLAUDE__BASE_URL": fake.base_url,
        "AI_LOCAL_ENABLED": "false",
    }
    koo = subprocess.Popen(
        [sys.executable, "-m", "koo.cli", "serve", "--port", str(port)],
        env=os.environ | environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    prometheus = start(
        [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{watch}",
            "--log.level=error",
        ],
        cwd=folder,
    )
    try:
        yield Watched(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{watch}", folder), koo
    finally:
        end(prometheus)
        koo.kill()
        koo.wait()


async def prove() -> list[str]:
    """The rows of the page."""
    rows = []
    with (
        FakeAnthropic(strict=False) as fake,
        tempfile.TemporaryDirectory() as folder,
        running(fake, Path(folder)) as (both, koo),
    ):
        rows.append(await _the_same_numbers(both))
        rows.append(await _an_outage(both, fake))
        rows += await _the_tools(both)
        rows.append(await _its_end(both, fake))
        koo.send_signal(signal.SIGKILL)
        rows.append(await _nobody_left(both))
    return rows


async def _the_same_numbers(both: Watched) -> str:
    async def answers() -> bool:
        try:
            return bool(await both.koo_says("/livez"))
        except OSError:
            return False

    await seconds_until(answers, PATIENCE_S, "koo answers")
    for _ in range(QUESTIONS):
        await both.ask_a_question()

    async def agree() -> bool:
        try:
            return set(await both.numbers()) == {QUESTIONS}
        except OSError:  # Prometheus still starts
            return False

    await seconds_until(
        agree, PATIENCE_S, f"{QUESTIONS} answers in the API, on the command line and in Prometheus"
    )
    return f"| {QUESTIONS} queries are answered | {QUESTIONS} in the API, `koo status` and Prometheus |"


async def _an_outage(both: Watched, fake: FakeAnthropic) -> str:
    fake.default = error(500, "api_error")

    async def opens() -> bool:
        await both.ask_a_question()
        return await both.query('koo_circuit_breaker_state{breaker="claude",state="open"} == 1') != []

    await seconds_until(opens, PATIENCE_S, "the circuit opens")
    kinds: set[str] = set()

    async def fires() -> bool:
        alerts = (await both.koo_says(f"{API}/monitoring/alerts"))["alerts"]
        kinds.update(one["kind"] for one in alerts if one["active"] and one["type"] == "critical")
        return any(name == "KooCritical" and kind in kinds for name, kind in await both.firing())

    took_s = await seconds_until(fires, PATIENCE_S, "KooCritical fires")
    said = ", ".join(sorted(kind for name, kind in await both.firing() if name == "KooCritical"))
    return f"| the provider fails | `KooCritical` of `{said}` fires {took_s:.1f} s after the open circuit is visible |"


async def _the_tools(both: Watched) -> list[str]:
    """Check koo's files for Prometheus and Grafana with those programs' own parsers."""
    checked = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "config", str(write_composed(both.home))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if checked.returncode:
        raise ProofFailed(checked.stdout + checked.stderr)
    queries = [
        target["expr"].replace("$__rate_interval", "1m").replace("$job", ".+")
        for panel in json.loads(text_of(DASHBOARD))["panels"]
        for target in panel["targets"]
    ]
    answered = [await both.query(query) for query in queries]  # raises for an invalid query
    shown = f"{sum(map(bool, answered))} of its {len(queries)} queries return data during the outage"
    return [
        "| the dashboard of `koo grafana dashboard` | " + shown + ", none is rejected |",
        "| the configuration inside `compose.yaml` | `promtool check config` accepts it and its rules |",
    ]


async def _its_end(both: Watched, fake: FakeAnthropic) -> str:
    fake.default = answer("Paris.")
    await both.koo_says(f"{API}/ai/services/claude/reset-errors", {"by": "ada", "reason": "it is back"})

    async def ends() -> bool:
        await both.ask_a_question()
        return all(name != "KooCritical" for name, _ in await both.firing())

    took_s = await seconds_until(ends, 4 * PATIENCE_S, "KooCritical ends")
    return (
        f"| the provider answers again, and an operator resets | `KooCritical` ends within {took_s:.0f} s |"
    )


async def _nobody_left(both: Watched) -> str:
    async def told() -> bool:
        return ("KooAbsent", "") in await both.firing()

    took_s = await seconds_until(told, ABSENT_S + 5 * PATIENCE_S, "KooAbsent fires")
    return f"| koo is killed | `KooAbsent` fires after {took_s:.0f} s |"


def _name_of(version: subprocess.CompletedProcess[str]) -> str:
    return (version.stdout or version.stderr).split(" (")[0].replace(", version", "")


def main() -> int:
    if shutil.which("prometheus") is None:
        raise ProofFailed("prometheus is not installed: apt install prometheus")
    version = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=True)
    rows = asyncio.run(prove())
    page = [
        "# A real Prometheus agrees with koo",
        "",
        f"{_name_of(version)} scrapes `koo serve` each second,",
        "with the rules of `koo prometheus rules`.",
        "",
        "| what happens | what is seen |",
        "|---|---|",
        *rows,
    ]
    write_page("monitoring", "prove-monitoring", page)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProofFailed as failed:
        sys.exit(f"koo: {failed}")
