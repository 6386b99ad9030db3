"""What a script without logging of its own may leave on standard error: koo's own log lines, and nothing else."""

from __future__ import annotations

import re

LINE = re.compile(
    r"[\w./ -]+: (?:\w+ (?:failed|refused) \(\w+\): "
    r"|circuit opened: |circuit half open: |key refused: |quota used up: |pause: ).+"
)
"""The words that `koo.logs` begins a warning with. A traceback, or a warning of Python's, looks otherwise."""


def strange_lines(stderr: str) -> list[str]:
    """The lines of `stderr` that are no log lines of koo's."""
    return [line for line in stderr.splitlines() if not LINE.fullmatch(line)]
