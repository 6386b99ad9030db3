"""A process that sends one query, for tests that kill it: `python -m tests.platform.one_query HOME BASE_URL`."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from koo.platform import Platform
from tests.platform.test_platform import QUESTION, options


async def main(home: str, base_url: str) -> None:
    once = options(Path(home))
    service = replace(once.services[0], base_url=base_url)
    async with Platform(replace(once, services=(service,))) as platform:
        await platform.query(QUESTION)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
