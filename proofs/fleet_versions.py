"""Two versions at once: processes of an older koo, from its wheel in its own environment, next to this version.

The older version is the newest commit whose state store has fewer schema steps than this one. Its processes start first
and create the tables. The processes of this version add their own tables while the older ones run. Then one older
process is killed and restarted, and accepts the store although a newer koo has added to it. All spend one budget, and
the provider's bill is the judge.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from koo.storage import schema
from koo.testing.postgres import PostgresServer
from proofs.fleet_part import Part
from proofs.money import Books, Fleet, Process, Provider, faults_found, read_books, tables
from proofs.running import ROOT, ProofFailed, TimeLimit, pip_install
from proofs.spending import Task

CAP_USD = "20"
CALLERS = 10
EACH = 3
COUNTED = sum(not isinstance(step, schema.Growth) for step in schema.STEPS)
"""The steps that an older koo counts; it refuses the store if there are more of them than its own."""
STEPS_OF = "from koo.storage import schema; print(len(schema.STEPS))"


def older_commits() -> Iterator[str]:
    """The parents of the commits that changed the tables, the newest first."""
    command = ["git", "log", "--format=%H", "--first-parent", "--", "src/koo/storage/schema.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProofFailed("the proof with two versions needs this repository's git history")
    for commit in done.stdout.split():
        yield f"{commit}~1"


class Older:
    """An older koo in its own environment: its wheel, found before the packages of this one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.commit = ""
        self.steps = 0

    def make(self, *, knows_growth: bool) -> None:
        """Build and install the newest one whose store has fewer steps, among those with or those without `Growth`."""
        for revision in older_commits():
            source = self._unpack(revision)
            steps = self._steps(source)
            if (steps < len(schema.STEPS) and steps > COUNTED) if knows_growth else steps == COUNTED:
                self.steps = steps
                self.commit = _output(["git", "rev-parse", "--short", revision], ROOT)
                self._install(source)
                return
        raise ProofFailed("no older commit has fewer steps")

    def _unpack(self, revision: str) -> Path:
        source = self.source
        shutil.rmtree(source, ignore_errors=True)
        archive = self._folder / "source.tar"
        subprocess.run(["git", "archive", "--output", archive, revision], cwd=ROOT, check=True)
        with tarfile.open(archive) as tar:
            tar.extractall(source, filter="data")
        return source

    def _steps(self, source: Path) -> int:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source / 'src')!r}); {STEPS_OF}"],
            capture_output=True, text=True, check=False, cwd=self._folder,
        )  # fmt: skip
        return int(done.stdout) if done.returncode == 0 else 0

    def _install(self, source: Path) -> None:
        """Install only the wheel; its dependencies are those of this environment."""
        wheels = self._folder / "wheels"
        build = [
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(wheels),
            str(source),
        ]
        if TimeLimit().run([sys.executable, "-m", "pip", *build]) != 0:
            raise ProofFailed("the older wheel could not be built")
        venv.create(self._folder / "environment", with_pip=True, symlinks=True, system_site_packages=False)
        (wheel,) = wheels.glob("koo-*.whl")
        pip_install(self.python, TimeLimit(), ["--no-deps", str(wheel)])
        # The packages of this environment come after the older environment's own, so the older koo is found first.
        packages = next((self._folder / "environment" / "lib").glob("python*")) / "site-packages"
        ours = Path(sys.prefix) / "lib" / packages.parent.name / "site-packages"
        (packages / "zz_ours.pth").write_text(f"{ours}\n", encoding="utf-8")

    @property
    def source(self) -> Path:
        """Its source tree, with the proof's scripts of that time."""
        return self._folder / "source"

    @property
    def python(self) -> Path:
        return self._folder / "environment" / "bin" / "python"

    def check(self) -> None:
        """Raises ProofFailed if the older koo would not be the one that runs."""
        where = _output([str(self.python), "-c", "import koo; print(koo.__file__)"], self._folder)
        if not where.startswith(str(self._folder)):
            raise ProofFailed("the older environment does not run its own koo")


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProofFailed(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()


class Mixed:
    """Processes of both versions on one store."""

    def __init__(self, older: Older, fleet: Fleet) -> None:
        self._older = older
        self._fleet = fleet
        self._number = 0

    async def add(self, *, is_older: bool) -> None:
        """Start one more process, which spends immediately."""
        fleet, self._number = self._fleet, self._number + 1
        task = Task(
            fleet.provider.base_url, fleet.state_url, fleet.home, CAP_USD, CALLERS, fleet.seed + self._number
        )  # fmt: skip
        process = Process(task)
        if is_older:
            await process.start(str(self._older.python), self._older.source)
        else:
            await process.start()
        fleet.running.append(process)
        process.go()

    def kill_first(self) -> None:
        """Kill the oldest process, which has the older version."""
        process = self._fleet.running.pop(0)
        process.kill()
        self._fleet.ended.append(process)


async def roll(older: Older, server: PostgresServer, home: str) -> tuple[Fleet, Books, list[str]]:
    """Run a rolling upgrade; returns what does not hold."""
    url = server.url("psycopg", server.create_database())
    with Provider(301) as provider:
        fleet = Fleet(CAP_USD, 0, 301, provider, url, home)
        mixed = Mixed(older, fleet)
        for _ in range(EACH):
            await mixed.add(is_older=True)
        for _ in range(EACH):
            await mixed.add(is_older=False)
        await fleet.until_share(0.3)
        mixed.kill_first()
        await mixed.add(is_older=True)
        await fleet.finish()
        books = await asyncio.to_thread(read_books, tables(url))
        found = [one for one in faults_found(fleet, books) if "no call ran" not in one]
        taken = tables(url)("SELECT steps FROM koo_schema")[0][0]
        grown = tables(url)("SELECT count(*) FROM koo_growth")[0][0]
        if taken + grown != len(schema.STEPS):
            found.append(f"the store has {taken + grown} steps, and this koo has {len(schema.STEPS)}")
        return fleet, books, found


async def upgrade(server: PostgresServer, *, knows_growth: bool) -> tuple[str, list[str]]:
    """One rolling upgrade: its row, and what does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        older = Older(Path(folder))
        await asyncio.to_thread(older.make, knows_growth=knows_growth)
        older.check()
        fleet, books, found = await roll(older, server, folder)
    unsettled = sum(books.unsettled.values(), Decimal(0))
    money = f"{fleet.provider.billed_usd:.4f} | {books.booked:.4f} | {books.spent:.4f} | {unsettled:.4f}"
    row = f"| {older.commit} | {older.steps} | {CAP_USD} | {money} | {'; '.join(found) or 'holds'} |"
    return row, [f"{older.commit}: {one}" for one in found]


async def prove() -> Part:
    """With the newest version that has fewer steps, and with the newest one that refuses additional steps."""
    with PostgresServer(18) as server:
        upgrades = [await upgrade(server, knows_growth=knows) for knows in (True, False)]
    lines = [
        f"{EACH} processes of an older koo start, then {EACH} of this one ({len(schema.STEPS)} schema steps). Then one",
        "of the older processes is killed and replaced by another of its version. All use one PostgreSQL and one",
        "budget. The older koo of the second row predates steps that only add.",
        "",
        "| older koo | its steps | cap | bill | booked | spent | left unsettled by the kill | result |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
        *(row for row, _ in upgrades),
    ]
    return Part("Two versions on one store", lines, [one for _, found in upgrades for one in found])
