"""The command `koo`.

As process 1 of a container, a process ignores signals for which it has no handler, even SIGTERM. Importing the
commands takes a moment. A container stopped during that moment would start its server anyway, and be killed ten
seconds later. Therefore a handler is installed before anything else is imported.
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
    """Run the command line and exit: 0 success, 1 failed or refused, 2 usage or configuration error, 3 degraded, 4
    unhealthy or no server reachable, 130 interrupted.
    """
    from koo.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
