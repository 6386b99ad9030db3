"""The command `koo`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed or refused, 2 a mistake in what was asked for or configured,
    3 degraded, 4 unhealthy or no server there, 130 interrupted."""
    from koo.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
