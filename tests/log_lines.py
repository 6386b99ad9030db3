"""The allowed standard error of a script without its own logging: koo's log lines, and nothing else."""

from __future__ import annotations

import re

LINE = re.compile(
    r"[\w./ -]+: (?:\w+ (?:failed|refused) \(\w+\): "
    r"|circuit opened: |circuit half open: |key refused: |quota used up: |pause: ).+"
)
"""The beginnings of koo's warnings. A traceback or a warning of Python has another form."""


def strange_lines(stderr: str) -> list[str]:
    """The lines of `stderr` that are not log lines of koo."""
    return [line for line in stderr.splitlines() if not LINE.fullmatch(line)]
