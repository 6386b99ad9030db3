"""Transactions on the guarded database: SQLite, unless DATABASE_URL is set.

    .venv/bin/python examples/transactions.py

`session_scope` is one transaction. `transactional_with_retry` runs a whole function again if that may help: after a
lost connection, a deadlock or a conflict. Side effects outside the database are repeated too, so do not send mail in
it.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from koo import db_manager, transactional_with_retry

ACCOUNTS = (
    "CREATE TABLE IF NOT EXISTS example_accounts (name VARCHAR(40) PRIMARY KEY, cents INTEGER NOT NULL)"
)


class Overdrawn(Exception):
    """Your own error: it rolls the transaction back, and reaches the caller unchanged."""


async def prepare() -> None:
    async with db_manager.session_scope() as session:
        await session.execute(text(ACCOUNTS))
        await session.execute(text("DELETE FROM example_accounts"))
        await session.execute(text("INSERT INTO example_accounts VALUES ('ada', 100), ('bob', 0)"))


@transactional_with_retry(max_retries=5)
async def move(session: AsyncSession, giver: str, taker: str, cents: int) -> None:
    """Move an amount completely or not at all, even if many of these run at the same time."""
    change = text("UPDATE example_accounts SET cents = cents + :cents WHERE name = :name")
    await session.execute(change, {"cents": -cents, "name": giver})
    await session.execute(change, {"cents": cents, "name": taker})
    left = text("SELECT cents FROM example_accounts WHERE name = :name")
    if (await session.execute(left, {"name": giver})).scalar_one() < 0:
        raise Overdrawn(f"{giver} does not have {cents} cents")


async def balances() -> dict[str, int]:
    async with db_manager.session_scope(readonly=True) as session:
        rows = await session.execute(text("SELECT name, cents FROM example_accounts ORDER BY name"))
        return {row.name: row.cents for row in rows}


async def main() -> None:
    await prepare()
    await asyncio.gather(*(move("ada", "bob", 10) for _ in range(8)))
    print(await balances())
    try:
        await move("ada", "bob", 30)
    except Overdrawn as error:
        print(f"rolled back: {error}")
    print(await balances())
    pool = db_manager.get_pool_metrics()["pool_status"]
    print(f"{pool['active_connections']} connections in use, {pool['waiting']} callers waiting")


if __name__ == "__main__":
    asyncio.run(main())
