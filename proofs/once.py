"""A transfer happens once, whatever happens to its COMMIT, its server and its client: `python -m proofs.once`.

Clerks (processes of `proofs.once_bank`) move money between accounts, by way of a proxy that cuts a fifth of the
COMMITs before, at and after their passing. Meanwhile the server is killed, and in the runs with keys the clerks, which
are started again with the same keys. The judge reads the tables: the sum is what it was; each transfer that was said to
be done is there, and none is there twice; each is done, or was said to be unknown. The control repeats a lost COMMIT,
and fails the same judge.

Not tried here: COMMITs that are held, backends killed one by one, a standby that is promoted, and a server of the
header `Idempotency-Key` that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import text

from koo.database.database import Database
from koo.options import DatabaseOptions
from koo.testing.postgres import Driver, PostgresServer
from koo.testing.proxy import CommitCut, FaultProxy
from proofs.once_bank import ACCOUNTS
from proofs.running import ROOT, ProofFailed, write_page

CUTS: tuple[CommitCut, ...] = ("before", "at", "after")
WAYS: tuple[tuple[Driver, str], ...] = (
    ("psycopg", "key"),
    ("psycopg", "marker"),
    ("asyncpg", "key"),
    ("asyncpg", "marker"),
)
CUT_SHARE = 0.2
EACH = 2000


@dataclass
class Bank:
    """One run. `url` is the clerks', `own_url` goes around the proxy."""

    own_url: str
    url: str
    mode: str
    seed: int
    transfers: int
    said: dict[int, str] = field(default_factory=dict)
    kills: int = 0

    async def open(self) -> None:
        async with self._database() as database:
            await database.init_exactly_once()
            async with database.session_scope() as session:
                await session.execute(text("CREATE TABLE accounts (id INTEGER PRIMARY KEY, cents INTEGER)"))
                await session.execute(text("CREATE TABLE transfers (number INTEGER)"))
                for one in range(ACCOUNTS):
                    await session.execute(text("INSERT INTO accounts VALUES (:id, 0)"), {"id": one})

    @contextlib.asynccontextmanager
    async def _database(self) -> AsyncIterator[Database]:
        database = Database(DatabaseOptions(url=self.own_url))
        try:
            yield database
        finally:
            await database.close()

    async def work(self, rng: random.Random, *, kills_clerks: bool) -> None:
        """Until each transfer is said to be done or unknown; a clerk that was killed is started with what is left."""
        while left := [one for one in range(self.transfers) if one not in self.said]:
            command = [sys.executable, "-m", "proofs.once_bank", self.url, self.mode, str(self.seed)]
            clerk = await asyncio.create_subprocess_exec(
                *command, *map(str, left), cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            assert clerk.stdout is not None
            dies_after = rng.randint(20, 120) if kills_clerks else self.transfers + 1
            try:
                while line := await clerk.stdout.readline():
                    word, number = line.split()
                    self.said[int(number)] = word.decode()
                    dies_after -= 1
                    if dies_after == 0:
                        clerk.kill()
                        self.kills += 1
            finally:
                if clerk.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        clerk.kill()
            await clerk.wait()
            if not any(one in self.said for one in left):
                raise ProofFailed("a clerk ended before it had made one transfer")

    async def faults(self) -> list[str]:
        """What the judge finds."""
        async with self._database() as database, database.session_scope(readonly=True) as session:
            cents = await session.scalar(text("SELECT sum(cents) FROM accounts"))
            times = Counter((await session.scalars(text("SELECT number FROM transfers"))).all())
        doubled = [one for one in range(self.transfers) if times[one] > 1]
        lost = [one for one, word in self.said.items() if word == "done" and not times[one]]
        unsaid = [one for one in range(self.transfers) if one not in self.said]
        found = [] if cents == 0 else [f"the sum is off by {cents}"]
        found += [f"{len(doubled)} done twice"] if doubled else []
        found += [f"{len(lost)} acknowledged and not done"] if lost else []
        return found + ([f"{len(unsaid)} neither acknowledged nor unknown"] if unsaid else [])

    @property
    def unknown(self) -> int:
        return sum(word == "unknown" for word in self.said.values())


async def cut_commits(proxy: FaultProxy, rng: random.Random) -> None:
    """A fifth of them, each in one of the ways."""
    seen = proxy.commits
    while True:
        await asyncio.sleep(0.002)
        if proxy.commits != seen:
            seen = proxy.commits
            if rng.random() < CUT_SHARE * 1.3:  # some come while one is armed already
                proxy.cut_commit(rng.choice(CUTS))


async def kill_servers(server: PostgresServer, rng: random.Random) -> None:
    """The server, by kill -9, and then transactions of others before anyone asks what became of theirs."""
    while True:
        await asyncio.sleep(rng.uniform(3, 6))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        for _ in range(3):
            await asyncio.to_thread(server.sql, "SELECT pg_current_xact_id()")


async def on_postgres(
    server: PostgresServer, driver: Driver, mode: str, seed: int, transfers: int, *, kills: bool = True
) -> tuple[Bank, int, list[str]]:
    """The bank after its run, how many COMMITs were cut, and what the judge found."""
    rng, name = random.Random(seed), server.create_database()
    own = server.url(driver, name)
    async with FaultProxy(server.host, server.port) as proxy:
        bank = Bank(own, proxy.through(own), mode, seed, transfers)
        await bank.open()
        tasks = [asyncio.create_task(cut_commits(proxy, rng))]
        if kills:
            tasks.append(asyncio.create_task(kill_servers(server, rng)))
        await bank.work(rng, kills_clerks=kills and mode == "key")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(server.start)
        cuts = proxy.cuts
    return bank, cuts, await bank.faults()


async def on_sqlite(folder: Path, seed: int, transfers: int) -> tuple[Bank, int, list[str]]:
    url = f"sqlite:///{folder}/bank.db"
    bank = Bank(url, url, "key", seed, transfers)
    await bank.open()
    await bank.work(random.Random(seed), kills_clerks=True)
    return bank, 0, await bank.faults()


async def prove(transfers: int, note: Callable[[str], None]) -> None:
    """All runs; ProofFailed where one does not hold, or the control does."""
    with PostgresServer(18) as server, tempfile.TemporaryDirectory() as folder:
        for number, (driver, mode) in enumerate(WAYS):
            began = time.monotonic()
            run = await on_postgres(server, driver, mode, 100 + number, transfers)
            note(_row(driver, *run, time.monotonic() - began))
        began = time.monotonic()
        note(_row("SQLite", *await on_sqlite(Path(folder), 105, transfers), time.monotonic() - began))
        control = await on_postgres(server, "psycopg", "naive", 106, transfers // 5, kills=False)
        note(_row("psycopg, the control", *control, 0.0, holds=False))


def _row(where: str, bank: Bank, cuts: int, faults: list[str], took_s: float, *, holds: bool = True) -> str:
    if bool(faults) is holds:
        raise ProofFailed(f"{where}, {bank.mode}: {'; '.join(faults) or 'the control holds'}")
    numbers = f"{bank.transfers:,} | {cuts:,} | {bank.kills} | {bank.unknown} | {took_s:.0f} s"
    return f"| {where} | {bank.mode} | {numbers} | {'; '.join(faults) or 'holds'} |"


def main() -> int:
    lines = [
        "# Once: a transfer whose COMMIT is lost is done once",
        "",
        *(__doc__ or "").splitlines()[2:],
        "",
        "| where | way | transfers | COMMITs cut | clerks killed | unknown | took | result |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]

    def note(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    try:
        asyncio.run(prove(int(sys.argv[1]) if len(sys.argv) > 1 else EACH, note))
    except ProofFailed as failed:
        print(f"failed: {failed}", file=sys.stderr)
        return 1
    write_page("once", "prove-once", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
