"""The command `koo`.

As process 1 of a container a signal without a handler is ignored, SIGTERM too. Importing the commands takes a moment; a
container that is stopped in it would start its server all the same, and be killed ten seconds later. So there is a
handler before anything else is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


if os.getpid() == 1:
    signal.signal(signal.SIGTERM, _end)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed or refused, 2 a mistake in what was asked for or configured,
    3 degraded, 4 unhealthy or no server there, 130 interrupted."""
    from koo.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
