"""A transfer happens once, whatever happens to its COMMIT, its server and its client: `python -m proofs.once`.

Clerks (processes of `proofs.once_bank`) move money between accounts through a proxy that cuts a fifth of the COMMITs:
before, at or after the moment when the server receives them, or by holding them back. During the run
(`proofs.once_faults`) backends and the server are killed with `kill -9`, unrelated transactions follow, and a standby
is promoted. In the runs with keys the clerks are also killed, and restarted with the same keys. All faults are
triggered by the number of transfers, with fixed seeds.

The judge reads the tables. The sum must not have changed. Each transfer reported as done must exist, and none may exist
twice. Each transfer must have been reported as done or unknown. The control repeats a lost COMMIT, and fails the same
judge. A standby that lagged behind lacks transactions that PostgreSQL had acknowledged: in those runs nothing is done
twice, and the lost transfers are counted.

Then two clients send one request with one `Idempotency-Key` to a server that is killed with `kill -9` in the middle, a
hundred times (`proofs.once_keys`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import text

from koo.database.database import Database
from koo.options import DatabaseOptions
from koo.testing.postgres import Driver, PostgresServer, postgres_binaries
from koo.testing.proxy import CommitCut
from proofs.once_bank import ACCOUNTS
from proofs.once_faults import CUTS, CuttingProxy, Ground, prepare, trouble
from proofs.once_keys import Trial, on_server
from proofs.running import LIMIT_S, ROOT, ProofFailed, write_page

MAJORS = (15, 16, 18)
DRIVERS: tuple[Driver, ...] = ("psycopg", "asyncpg")
EACH = 10_000
"""Transfers for each driver, and for SQLite."""
KEYS = 100
FAULTS = 5
"""Faults in a run: one after each fifth of its transfers."""
CLERKS = 3
"""Clerks in a run: each but the last is killed when a third of the transfers are made."""
HEAD = [
    "| database | driver | mode | other faults | transfers | COMMITs cut (before, at, after, held)"
    " | clerks killed | unknown | took | result |",
    "|---|---|---|---|---:|---|---:|---:|---:|---|",
]


@dataclass(frozen=True)
class Run:
    """One row of the table. `trouble` is a key of `TROUBLES`; `mode` is a mode of `proofs.once_bank`."""

    driver: Driver
    mode: str
    trouble: str
    seed: int
    transfers: int
    cuts: dict[CommitCut, int] = field(default_factory=lambda: CUTS)


@dataclass
class Bank:
    """The tables and clerks of one run. The clerks use `url`; the judge uses `own_url`, which bypasses the proxy."""

    own_url: Callable[[], str]
    url: str
    mode: str
    seed: int
    transfers: int
    said: dict[int, str] = field(default_factory=dict)
    kills: int = 0
    lost: int = 0

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
        database = Database(DatabaseOptions(url=self.own_url()))
        try:
            yield database
        finally:
            await database.close()

    async def work(self, dies_after: int | None) -> None:
        """Run until each transfer is reported; a killed clerk is restarted with the remaining numbers."""
        while left := [one for one in range(self.transfers) if one not in self.said]:
            command = [sys.executable, "-m", "proofs.once_bank", self.url, self.mode, str(self.seed)]
            clerk = await asyncio.create_subprocess_exec(
                *command, *map(str, left), cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            assert clerk.stdout is not None
            before, may_end = len(self.said), False
            try:
                while line := await clerk.stdout.readline():
                    word, number = line.split()
                    if word == b"over":
                        may_end = True
                        continue
                    self.said[int(number)] = word.decode()
                    if dies_after is not None and len(self.said) - before == dies_after:
                        clerk.kill()
                        may_end = True
                        self.kills += 1
            finally:
                if clerk.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        clerk.kill()
            await clerk.wait()
            if not may_end:
                raise ProofFailed("a clerk ended on its own; its last output is above")

    async def faults(self, *, may_lose: bool = False) -> list[str]:
        """The faults that the judge finds."""
        async with self._database() as database, database.session_scope(readonly=True) as session:
            cents = await session.scalar(text("SELECT sum(cents) FROM accounts"))
            times = Counter((await session.scalars(text("SELECT number FROM transfers"))).all())
        doubled = [one for one in range(self.transfers) if times[one] > 1]
        self.lost = sum(word == "done" and not times[one] for one, word in self.said.items())
        unsaid = [one for one in range(self.transfers) if one not in self.said]
        found = [] if cents == 0 else [f"the sum is off by {cents}"]
        found += [f"{len(doubled)} done twice"] if doubled else []
        found += [f"{self.lost} acknowledged and not done"] if self.lost and not may_lose else []
        return found + ([f"{len(unsaid)} neither acknowledged nor unknown"] if unsaid else [])

    @property
    def unknown(self) -> int:
        return sum(word == "unknown" for word in self.said.values())


async def on_postgres(server: PostgresServer, run: Run) -> tuple[Bank, Ground, list[str]]:
    """The bank after its run, the faults that it met, and what the judge found."""
    rng, name = random.Random(run.seed), server.create_database()
    async with CuttingProxy(server, rng, run.cuts) as proxy:
        ground = Ground(server, name, proxy, random.Random(run.seed), lambda: len(bank.said))
        bank = Bank(
            lambda: ground.server.url(run.driver, name),
            proxy.through(server.url(run.driver, name)),
            run.mode,
            run.seed,
            run.transfers,
        )
        await bank.open()
        try:
            await prepare(ground, run.trouble)
            async with asyncio.TaskGroup() as tasks:
                # A fault that has begun is completed, because a thread that starts a server cannot be cancelled.
                tasks.create_task(trouble(ground, run.trouble, run.transfers // FAULTS))
                dies = run.mode == "key" and run.trouble != "none"
                await bank.work(run.transfers // CLERKS if dies else None)
                ground.is_over = True
            faults = await bank.faults(may_lose=run.trouble == "lagging standby")
            if run.trouble != "none" and not ground.counts:
                faults.append("the run was over before the first kill")
            if ground.counts["lagging standbys promoted"] and not bank.lost:
                faults.append("the standby did not lag")
            return bank, ground, faults
        finally:
            await ground.close()


async def on_sqlite(folder: Path, seed: int, transfers: int) -> tuple[Bank, list[str]]:
    url = f"sqlite:///{folder}/bank.db"
    bank = Bank(lambda: url, url, "key", seed, transfers)
    await bank.open()
    await bank.work(transfers // CLERKS)
    return bank, await bank.faults()


def runs(each: int) -> Iterator[tuple[int, Run]]:
    """Each driver with each major version in both modes, with kills; the newest version also has standbys."""
    for number, driver in enumerate(DRIVERS):
        seed = 100 * (number + 1)
        for major in MAJORS:
            if postgres_binaries(major) is not None:
                yield major, Run(driver, "key", "kills", seed + major, each // 8)
                yield major, Run(driver, "marker", "kills", seed + major + 20, each // 8)
        for mode in ("key", "marker"):
            yield 18, Run(driver, mode, "synchronous standby", seed + 40 + (mode == "key"), each // 8)
        yield 18, Run(driver, "key", "lagging standby", seed + 50, each // 20)
        yield 18, Run(driver, "naive", "none", seed + 60, each // 50)


async def prove(each: int, note: Callable[[str], None]) -> None:
    """The bank's runs. Raises ProofFailed if one does not hold, or if the control does."""
    for major, run in runs(each):
        began = time.monotonic()
        with PostgresServer(major) as server:
            bank, ground, faults = await on_postgres(server, run)
        what = ", ".join(_counted(*one) for one in sorted(ground.counts.items())) or "none"
        ways = ", ".join(str(ground.proxy.ways[way]) for way in CUTS)
        cuts = f"{ground.proxy.cuts:,} ({ways}) of {ground.proxy.commits:,}"
        cells = [f"PostgreSQL {major}", run.driver, run.mode, what]
        note(_row(cells, bank, cuts, faults, began, holds=run.mode != "naive"))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        bank, faults = await on_sqlite(Path(folder), 300, each)
        note(_row(["SQLite", "aiosqlite", "key", "none"], bank, "", faults, began))


def _counted(what: str, number: int) -> str:
    """ "2 servers killed", "1 server killed"."""
    return f"{number} {what}" if number != 1 else re.sub(r"s (\w+)$", r" \1", f"1 {what}")


def _row(
    cells: list[str], bank: Bank, cuts: str, faults: list[str], began: float, *, holds: bool = True
) -> str:
    if bool(faults) is holds:
        raise ProofFailed(f"{', '.join(cells)}: {'; '.join(faults) or 'the control holds'}")
    verdict = "; ".join(faults) or ("holds" + (f"; {bank.lost} lost by PostgreSQL" if bank.lost else ""))
    took = f"{time.monotonic() - began:.0f} s"
    return f"| {' | '.join([*cells, f'{bank.transfers:,}', cuts, str(bank.kills), str(bank.unknown), took, verdict])} |"


async def prove_keys(kills: int, note: Callable[[str], None]) -> None:
    """The trials of the `Idempotency-Key` header. Raises ProofFailed if one does not hold."""
    with PostgresServer(18) as server, tempfile.TemporaryDirectory() as folder:
        urls = [server.url(driver, server.create_database()) for driver in DRIVERS]
        for url in (*urls, f"sqlite:///{folder}/till.db"):
            began = time.monotonic()
            trial: Trial = await on_server(url, Path(folder), 7, kills)
            if trial.faults:
                raise ProofFailed(f"Idempotency-Key on {trial.where}: {'; '.join(trial.faults)}")
            note(f"{trial.row()} {time.monotonic() - began:.0f} s | holds |")


def main() -> int:
    began, lines = time.monotonic(), ["# Once: a transfer is done once even if its COMMIT is lost", ""]
    lines += [*(__doc__ or "").splitlines()[2:], "", *HEAD]

    def note(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    async def prove_all() -> None:
        async with asyncio.timeout(LIMIT_S):
            await prove(int(sys.argv[1]) if len(sys.argv) > 1 else EACH, note)
            lines.extend(
                ["", "## Two clients, one `Idempotency-Key`, a server that is killed", "", *Trial.HEAD]
            )
            await prove_keys(KEYS, note)

    failures = list[Exception]()
    try:
        asyncio.run(prove_all())
    except* (ProofFailed, TimeoutError) as failed:
        failures += failed.exceptions
    if failures:
        print(f"failed: {str(failures[0]) or 'the time is up'}", file=sys.stderr)
        return 1
    lines += ["", f"The run took {(time.monotonic() - began) / 60:.0f} minutes."]
    write_page("once", "prove-once", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
