"""A clerk of the bank in `proofs.once`: a process that makes transfers, and prints the result of each.

`python -m proofs.once_bank URL MODE SEED NUMBER…`; a line is `done NUMBER` or `unknown NUMBER`, the last one `over 0`.
MODE is "key" (each has an idempotency key), "marker" (`DB_EXACTLY_ONCE=marker` and no key), or "naive" (the control: a
lost COMMIT is repeated).
"""

from __future__ import annotations

import asyncio
import random
import sys

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.errors import CommitOutcomeUnknown, DatabaseError
from koo.options import BreakerOptions, DatabaseOptions, RetryOptions

ACCOUNTS = 200
AT_ONCE = 16
TAKE = text("UPDATE accounts SET cents = cents - :cents WHERE id = :payer")
GIVE = text("UPDATE accounts SET cents = cents + :cents WHERE id = :payee")
NOTE = text("INSERT INTO transfers (number) VALUES (:number)")


async def transfer(session: AsyncSession, seed: int, number: int) -> int:
    """Move money from one account to another, and add a row without a unique key, so that a repeated one shows."""
    rng = random.Random(f"{seed}-{number}")
    payer, payee = rng.sample(range(ACCOUNTS), 2)
    cents = rng.randint(1, 100)
    # Always in the same order, so that two transfers cannot deadlock.
    for statement in (TAKE, GIVE) if payer < payee else (GIVE, TAKE):
        await session.execute(statement, {"cents": cents, "payer": payer, "payee": payee})
    await session.execute(NOTE, {"number": number})
    return cents


async def clerk(database: Database, mode: str, seed: int, waiting: list[int]) -> None:
    """Take numbers until there are none."""
    while waiting:
        number = waiting.pop()
        key = f"{seed}-{number}" if mode == "key" else None
        word = None
        while word is None:
            try:
                await database.transaction(transfer, seed, number, idempotency_key=key)
                word = "done"
            except CommitOutcomeUnknown:
                word = "unknown" if mode == "marker" else None
            except (DatabaseError, SQLAlchemyError, OSError):
                await asyncio.sleep(
                    0.05
                )  # it was not done: if it might have been, the error is CommitOutcomeUnknown
        print(word, number, flush=True)


async def work(url: str, mode: str, seed: int, numbers: list[int]) -> None:
    options = DatabaseOptions(
        url=url,
        exactly_once="marker" if mode == "marker" and url.startswith("postgresql") else "off",
        # A breaker that stays open for a minute after each killed server would only make the proof longer.
        breaker=BreakerOptions(recovery_s=0.2, open_s_max=0.2),
        retry=RetryOptions(attempts_max=4, base_s=0.02, cap_s=0.2),
        # A COMMIT that is held back takes the scope's whole timeout.
        scope_timeout_s=3.0,
        cleanup_timeout_s=0.5,
        pool_timeout_s=2.0,
        resolve_timeout_s=30.0,
    )
    database = Database(options)
    await asyncio.gather(*(clerk(database, mode, seed, numbers) for _ in range(AT_ONCE)))
    await database.close()
    print("over 0", flush=True)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3]), list(map(int, sys.argv[4:]))))
