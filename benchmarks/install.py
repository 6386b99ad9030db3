"""Install the peers: `make bench` runs this before the first measurement and after a change of the pins.

The peers of the extra `bench` go into koo's own environment, those of the group `bench-apart` into a separate one, all
with the hashes in pins/. If one cannot be installed, the others still are; the reason is saved for the table, and the
exit code is 3.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peers import APART, APART_PYTHON, REASONS

ROOT = Path(__file__).parents[1]
PINS = ROOT / "pins" / "bench.txt"
PINS_APART = ROOT / "pins" / "apart.txt"
SOME_ARE_MISSING = 3


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} names no package")
    return found.group()


def reason(said: str) -> str:
    """A short sentence for pip's long output. The committed table shows it, so it must not name a host or folder."""
    here = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
    if "ResolutionImpossible" in said or "conflicting dependencies" in said:
        return "its requirements conflict with the pinned versions"
    if "NewConnectionError" in said or "ConnectTimeout" in said or "Name or service not known" in said:
        return "the package registry could not be reached"
    if "No matching distribution found" in said:
        return f"no release found for {here}"
    return f"pip could not install it for {here}"


def pip(python: Path, pins: Path) -> str | None:
    """Run pip. Returns None on success, otherwise its output."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "install", "--retries", "1", "--no-deps", "--require-hashes"]
    done = subprocess.run([*command, "--requirement", str(pins)], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout + done.stderr


def install(python: Path, pins: Path) -> dict[str, str]:
    """Install all peers together; if that fails, one by one. Returns the reasons why some could not be installed."""
    if pip(python, pins) is None:
        return {}
    missing: dict[str, str] = {}
    with TemporaryDirectory(prefix="koo-pins-") as folder:
        for name, lines in each_pin(pins):
            alone = Path(folder) / f"{name}.txt"
            alone.write_text(lines, encoding="utf-8")
            said = pip(python, alone)
            if said is not None:
                print(said, file=sys.stderr)
                missing[name] = reason(said)
    return missing


def each_pin(pins: Path) -> Iterator[tuple[str, str]]:
    """Each package's name and its lines: the version, then the hashes."""
    for lines in re.split(r"\n(?=\w)", pins.read_text(encoding="utf-8")):
        if not lines.startswith("#"):
            yield name_of(lines), lines.rstrip("\n") + "\n"


def main() -> int:
    missing = install(Path(sys.executable), PINS)
    if not APART_PYTHON.exists():
        venv.create(APART, clear=True, symlinks=True)
    missing |= install(APART_PYTHON, PINS_APART)
    REASONS.write_text(json.dumps(missing, indent=2) + "\n", encoding="utf-8")
    for name, why in missing.items():
        print(f"koo: {name} will not be measured: {why}", file=sys.stderr)
    return SOME_ARE_MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(main())
