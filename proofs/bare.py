"""The README's two commands on bare machines: `make run` until the local model answers, and `make test`.

A machine of `proofs.machine` has no Python, no make, and no library that only other programs need. First only `make` is
installed. Then `make run` and `make test` have to refuse, and the packages that their messages name are installed,
without recommended ones. This checks the README's line in both directions: with one package fewer a command refuses,
and with all of them both work.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from proofs.machine import Machine, Owner, mirror
from proofs.running import (
    ROOT,
    Counts,
    ProofFailed,
    TimeLimit,
    end,
    failed_lines,
    read_counts,
    skipped_lines,
    start,
    write_page,
)

# Each release with its Python, which is listed in the classifiers of pyproject.toml.
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
APT_COMMAND = re.compile(r"apt install ([\w .+-]+)")
ROOT_USER = Owner("root", "koo")
ORDINARY_USER = Owner("ada", "koo and a space")


# ── the two commands ──────────────────────────────────────────────────────────────────────────────────────────────────


def refused(machine: Machine, goal: str) -> set[str]:
    """The packages that `make` asks for before it installs anything. Raises ProofFailed if it does anything else."""
    done = subprocess.run(
        machine.entered(f"make {goal}"), capture_output=True, text=True, timeout=60, check=False
    )
    commands = APT_COMMAND.findall(done.stderr)
    if (
        done.returncode == 0
        or len(commands) != 1
        or (goal == "run" and (machine.checkout / ".venv").exists())
    ):
        raise ProofFailed(f"make {goal} does not name what is missing:\n{done.stdout}{done.stderr}")
    return set(commands[0].split())


def seconds_to_first_answer(machine: Machine, limit: TimeLimit) -> float:
    """Run `make run`; returns the seconds from its start to an answer of the local model over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    server = start(machine.entered(f"KOO_PORT={port} make run"))
    try:
        while not _answers(port):
            if server.poll() is not None:
                raise ProofFailed(f"make run ended with {server.returncode}")
            if limit.left_s == 0:
                raise ProofFailed("no answer of the local model in time")
            time.sleep(0.2)
        return time.monotonic() - began
    finally:
        end(server)


def _answers(port: int) -> bool:
    question = {"service": "local", "prompt": "What is the capital of France?", "max_tokens": 20}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/ai/query",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return "Paris" in answer.read().decode()
    except urllib.error.HTTPError as error:
        raise ProofFailed(f"the local model does not answer: {error.read().decode()}") from None
    except OSError:
        return False


def tested(machine: Machine, limit: TimeLimit) -> tuple[float, Counts]:
    """Run `make test`; returns its seconds and counts."""
    began = time.monotonic()
    junit = "tests.xml"
    code = limit.run(machine.entered(f"make test ARGS='-p no:cacheprovider --junitxml={junit}'"))
    counts = read_counts(machine.checkout / junit)
    if code != 0 and not counts.failed:
        raise ProofFailed(f"make test ended with {code}")
    return time.monotonic() - began, counts


# ── a page ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def try_release(release: str, owner: Owner, mirror: str) -> tuple[list[str], Counts]:
    """Run both commands on one bare machine; returns the page's lines about it, and the counts of its tests."""
    limit = TimeLimit()
    with tempfile.TemporaryDirectory(prefix="koo-proof-") as folder:
        Path(folder).chmod(0o755)
        machine = Machine(Path(folder) / release, owner)
        machine.make(release, mirror, limit)
        machine.install({"make"}, limit)
        for_run = refused(machine, "run")
        machine.install(for_run, limit)
        answer_s = seconds_to_first_answer(machine, limit)
        for_test = refused(machine, "test")
        machine.install(for_test, limit)
        if not machine.python().startswith(f"{RELEASES[release]}."):
            raise ProofFailed(f"{release} has Python {machine.python()}, not {RELEASES[release]}")
        _hold_against_readme({"make"} | for_run | for_test)
        test_s, counts = tested(machine, limit)
        lines = [
            f"## Debian {machine.version()} ({release}), Python {machine.python()}",
            "",
            f"- `make run` first refused and asked for `apt install {' '.join(sorted(for_run))}`. After that it "
            f"served, and the local model answered {answer_s:.0f} s after the start.",
            f"- `make test` first refused and asked for `apt install {' '.join(sorted(for_test))}`. After that it took "
            f"{test_s:.0f} s: **{counts.sentence()}**.",
            *failed_lines(counts),
            *skipped_lines(counts),
            "",
        ]
        return lines, counts


def _hold_against_readme(needed: set[str]) -> None:
    named = APT_COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    if [set(line.split()) for line in named] != [needed]:
        raise ProofFailed(f"the README names {named}, needed is {' '.join(sorted(needed))}")


def main(arguments: list[str]) -> int:
    if "user" in arguments:
        owner, page, who = (
            ORDINARY_USER,
            "bare-user",
            "as an ordinary user, in a folder with spaces in its name",
        )
    else:
        owner, page, who = ROOT_USER, "bare", "as root, in root's home folder"
    releases = [name for name in arguments if name in RELEASES] or list(RELEASES)
    failed = False
    lines = ["# Both commands on a bare machine", "", f"Run {who}.", ""]
    for release in releases:
        of_release, counts = try_release(release, owner, mirror())
        lines += of_release
        failed |= bool(counts.failed)
    write_page(page, " ".join(["prove-bare", *_as_arguments(arguments)]), lines)
    return int(failed)


def _as_arguments(arguments: list[str]) -> list[str]:
    return [f"ARGS='{' '.join(arguments)}'"] if arguments else []


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
