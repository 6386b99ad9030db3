"""Shells receive completions when the user presses Tab."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import command, environment

DECLARED = {"AI_SERVICES__MINE__BASE_URL": "http://127.0.0.1:1/v1", "AI_SERVICES__MINE__KIND": "openai"}
DECLARED |= {"AI_SERVICES__MINE__MODEL": "m"}


def asked(home: Path, shell: str, line: str, **more: str) -> set[str]:
    """Return the words that `shell` is offered at the end of `line`."""
    words = line.split(" ")
    given = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    out = run(home, {"_KOO_COMPLETE": f"complete_{shell}", **given, **more})
    return {part.strip("\"'()") for part in out.replace(":", " ").split()}


def run(home: Path, more: dict[str, str]) -> str:
    done = subprocess.run(
        command(), env=environment(home, **more), capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_offered_commands_options_and_services(tmp_path: Path, shell: str) -> None:
    assert {"serve", "status"} <= asked(tmp_path, shell, "koo s")
    assert "--max-tokens" in asked(tmp_path, shell, "koo query --m")
    assert {"ack", "silence", "why"} <= asked(tmp_path, shell, "koo alerts ")
    assert "--reason" in asked(tmp_path, shell, "koo reset --r")
    assert {"alerts", "status"} <= asked(tmp_path, shell, "koo help ")
    assert {"claude", "mine"} <= asked(tmp_path, shell, "koo query ", **DECLARED)
    assert {"database", "all", "local"} <= asked(tmp_path, shell, "koo reset ")
    assert asked(tmp_path, shell, "koo reset da") >= {"database"}


def test_invalid_settings_offer_nothing_and_print_nothing(tmp_path: Path) -> None:
    assert "claude" not in asked(tmp_path, "bash", "koo query ", AI_MAX_RETRIES="-1")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_it_can_parse(tmp_path: Path, shell: str) -> None:
    script = run(tmp_path, {"_KOO_COMPLETE": f"source_{shell}"})
    assert f"complete_{shell}" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed, so it cannot parse its script")
    subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=60)
