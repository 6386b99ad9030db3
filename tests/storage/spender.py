"""A process that spends money, for tests that kill it: `python -m tests.storage.spender URL CALLS BOUND_USD CAP_USD`.

Several callers run at the same time. The process prints "held NUMBER" when a caller gets a hold, "billed NUMBER USD"
before it settles one, "refused" when a caller gets none, and "done" at its end. With CALLS 0 it holds once and hangs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from decimal import Decimal

from koo.storage.store import SqlStore
from tests.storage.support import BEAT_S, PATIENCE_S, Refused, hold, know, settle

AT_ONCE = 10
numbers = itertools.count(1)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def spend(store: SqlStore, calls: int, amount: str) -> None:
    for _ in range(calls // AT_ONCE):
        try:
            given = await hold(store, amount)
        except Refused:
            say("refused")
            continue
        number = next(numbers)
        say("held", number)
        await asyncio.sleep(random.random() * 0.002)
        cost = Decimal(random.randint(1, 10)) / 10_000
        say("billed", number, cost)
        settle(store, given, str(cost))


async def main(url: str, calls: str, amount: str, cap: str) -> None:
    store = SqlStore(url, timeout_s=PATIENCE_S, beat_s=BEAT_S)
    know(store, cap)
    async with store:
        running = asyncio.create_task(store.ledger.run())
        if calls == "0":
            await hold(store, amount)
            await store.ledger.beat()  # it has reported what it holds
            say("held", 1)
            await asyncio.get_running_loop().create_future()
        await asyncio.gather(*(spend(store, int(calls), amount) for _ in range(AT_ONCE)))
        running.cancel()
    say("done")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
