"""A process that spends, for tests that kill it: `python -m tests.storage.spender URL CALLS HOLD_USD CAP_USD LEASE_S`.

It prints "held ID" when a hold was given, and "billed ID USD" before it settles it. With CALLS 0 it holds once and
hangs.
"""

from __future__ import annotations

import asyncio
import random
import sys
from decimal import Decimal

from koo.errors import BudgetExceeded
from koo.storage.store import SqlStore
from tests.storage.support import bill, request

AT_ONCE = 10


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def spend(store: SqlStore, calls: int, amount: str, cap: str, lease_s: float) -> None:
    for _ in range(calls // AT_ONCE):
        try:
            hold = await store.ledger.hold(request(amount, cap, lease_s=lease_s))
        except BudgetExceeded:
            say("refused")
            continue
        say("held", hold.id)
        await asyncio.sleep(random.random() * 0.002)
        cost = Decimal(random.randint(1, 10)) / 10_000
        say("billed", hold.id, cost)
        store.ledger.settle(hold, bill(str(cost)))


async def main(url: str, calls: str, amount: str, cap: str, lease_s: str) -> None:
    async with SqlStore(url, timeout_s=20) as store:
        if calls == "0":
            say("held", (await store.ledger.hold(request(amount, cap, lease_s=float(lease_s)))).id)
            await asyncio.get_running_loop().create_future()
        await asyncio.gather(*(spend(store, int(calls), amount, cap, float(lease_s)) for _ in range(AT_ONCE)))
    say("done")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
