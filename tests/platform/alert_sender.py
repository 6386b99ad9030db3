"""A process that raises an alert and sends it, for tests that kill it.

`python -m tests.platform.alert_sender HOME HOOK` runs it. It prints "open" when it is open. With a third
argument, an operator forces the circuit of `claude` open.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from koo.alert_options import AlertOptions
from koo.platform import Platform
from koo.policies.breaker import Override
from tests.platform.test_platform import options


async def main(home: str, hook: str, *forced: str) -> None:
    platform = Platform(replace(options(Path(home)), alerts=AlertOptions(webhook=hook)))
    async with platform:
        if forced:
            platform.override_service("claude", Override.FORCED_OPEN)
        sys.stdout.write("open\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
