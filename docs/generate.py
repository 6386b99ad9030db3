"""Regenerate the generated pages of docs/: run every `generate_*.py` in this folder and print which files changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent


def contents() -> dict[Path, bytes]:
    """The files that a generator may write, with their contents."""
    files = [
        *ROOT.glob("*"),
        *(path for name in ("docs", "src", "tests") for path in (ROOT / name).rglob("*")),
    ]
    return {path: path.read_bytes() for path in sorted(files) if path.is_file() and path.suffix != ".pyc"}


def main() -> None:
    before = contents()
    for script in sorted(HERE.glob("generate_*.py")):
        subprocess.run([sys.executable, "-m", f"{HERE.name}.{script.stem}"], cwd=ROOT, check=True)
    changed = [path for path, text in contents().items() if text != before.get(path)]
    lines = [f"changed: {path.relative_to(ROOT)}" for path in changed] or ["nothing changed"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
