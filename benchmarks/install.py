"""Install the peers: `make bench` runs this before the first measurement and after a change of the pins.

Those of the extra `bench` go into koo's own environment, those of the group `bench-apart` into one of their own. One
that cannot be installed keeps nobody else out: its reason is kept for the table, and the end code is 3.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

from benchmarks.peers import APART, APART_PYTHON, REASONS

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
PINS_APART = ROOT / "benchmarks" / "constraints.txt"
SOME_ARE_MISSING = 3


def wanted() -> tuple[list[str], list[str]]:
    """The requirements beside koo, and those apart, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    beside = project["project"]["optional-dependencies"]["bench"]
    return [line for line in beside if not line.startswith("koo")], project["dependency-groups"][
        "bench-apart"
    ]


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} names no package")
    return found.group()


def reason(said: str) -> str:
    """A short sentence out of pip's many: it goes into the committed table, which names no host and no folder."""
    here = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
    if "ResolutionImpossible" in said or "conflicting dependencies" in said:
        return "its requirements conflict with the pinned versions"
    if "NewConnectionError" in said or "ConnectTimeout" in said or "Name or service not known" in said:
        return "the package registry could not be reached"
    if "No matching distribution found" in said:
        return f"no release found for {here}"
    return f"pip could not install it for {here}"


def pip(python: Path, pins: Path, requirements: Iterable[str]) -> str | None:
    """None where all went well, else what pip said."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "install", "--retries", "1", "--constraint", str(pins)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout + done.stderr


def install(python: Path, pins: Path, requirements: list[str]) -> dict[str, str]:
    """All at once; where that fails one by one, and the reasons of those that could not be installed."""
    if pip(python, pins, requirements) is None:
        return {}
    missing: dict[str, str] = {}
    for requirement in requirements:
        said = pip(python, pins, [requirement])
        if said is not None:
            print(said, file=sys.stderr)
            missing[name_of(requirement)] = reason(said)
    return missing


def main() -> int:
    beside, apart = wanted()
    missing = install(Path(sys.executable), PINS, beside)
    if not APART_PYTHON.exists():
        venv.create(APART, clear=True, symlinks=True)
    missing |= install(APART_PYTHON, PINS_APART, apart)
    REASONS.write_text(json.dumps(missing, indent=2) + "\n", encoding="utf-8")
    for name, why in missing.items():
        print(f"koo: {name} will not be measured: {why}", file=sys.stderr)
    return SOME_ARE_MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(main())
