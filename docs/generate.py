"""Regenerate the generated pages of docs/: runs every `generate_*.py` in this folder (`make docs`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    for script in sorted(HERE.glob("generate_*.py")):
        subprocess.run([sys.executable, "-m", f"{HERE.name}.{script.stem}"], cwd=HERE.parent, check=True)


if __name__ == "__main__":
    main()
