"""The faults of the bank in `proofs.once`: COMMITs are cut, servers killed, standbys promoted.

A fault comes after a number of transfers, not after a time, so a slow machine has as many faults as a fast one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from koo.testing.postgres import PostgresServer
from koo.testing.processes import ServerFailed
from koo.testing.proxy import CommitCut, FaultProxy
from proofs.standby import Standby

CUT_SHARE = 0.2
CUTS: dict[CommitCut, int] = {"before": 3, "at": 3, "after": 3, "hold": 1}
"""How often each occurs, of ten. One that is held back costs its clerk the scope's whole timeout, and its locks block
the others."""
UNRELATED = 6
"""Unrelated transactions after a crash: after this many, `pg_xact_status` returns a wrong result."""
LAG = 40
"""Transfers that a standby receives, or misses while it is cut off from its primary, before it is promoted."""


class CuttingProxy(FaultProxy):
    """Cuts a fifth of the COMMITs, in ways drawn with the seed. `ways`: the number of each."""

    def __init__(self, server: PostgresServer, rng: random.Random, cuts: dict[CommitCut, int]) -> None:
        super().__init__(server.host, server.port)
        self.ways = Counter[CommitCut]()
        self._rng = rng
        self._cuts = cuts

    def commit_cut(self) -> CommitCut | None:
        """Decide whether to cut the COMMIT that has arrived."""
        self.commits += 1
        if self._rng.random() >= CUT_SHARE:
            return None
        way = self._rng.choices(list(self._cuts), list(self._cuts.values()))[0]
        self.cuts += 1
        self.ways[way] += 1
        return way


@dataclass
class Ground:
    """The servers of a run. `server` accepts writes; `standby` follows it through `news`. `said`: reported numbers."""

    server: PostgresServer
    name: str
    proxy: CuttingProxy
    rng: random.Random
    said: Callable[[], int]
    standby: Standby | None = None
    news: FaultProxy | None = None
    counts: Counter[str] = field(default_factory=Counter)
    is_over: bool = False
    own: list[PostgresServer] = field(default_factory=list)

    async def sql(self, statement: str) -> str:
        """Run SQL on the server that accepts writes, as soon as it does."""
        while True:
            with contextlib.suppress(ServerFailed):
                return await asyncio.to_thread(self.server.sql, statement, self.name)
            await asyncio.sleep(0.05)

    async def reach(self, transfers: int) -> bool:
        """Wait until this many transfers were reported; False: the run was over before."""
        while self.said() < transfers and not self.is_over:  # noqa: ASYNC110 - another process reports it
            await asyncio.sleep(0.005)
        return not self.is_over

    async def follow(self, *, synchronous: bool) -> None:
        """Start a fresh standby, and wait until it has everything that the server has."""
        self.news = await FaultProxy(self.server.host, self.server.port).__aenter__()
        self.standby = Standby(self.server, self.news.port)
        self.own.append(self.standby)
        await asyncio.to_thread(self.standby.start)
        position = await self.sql("SELECT pg_current_wal_lsn()")
        has = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
        while await asyncio.to_thread(self.standby.sql, has) != "t":  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
        if synchronous:
            await self.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{self.standby.name}'")
            await self.sql("SELECT pg_reload_conf()")
            waits = "SELECT EXISTS(SELECT FROM pg_stat_replication WHERE sync_state = 'sync')"
            while await self.sql(waits) != "t":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    async def promote(self) -> None:
        """Kill the server, promote its standby, and point the clerks' address to it."""
        assert self.standby is not None
        await asyncio.to_thread(self.server.kill)
        if self.news is not None:
            self.news.reset_all()  # otherwise the held-back data would reach the standby at the end
            await self.news.__aexit__(None, None, None)
            self.news = None
        await asyncio.to_thread(self.standby.promote)
        self.server, self.standby = self.standby, None
        self.proxy.target = (self.server.host, self.server.port)
        await unrelated(self)

    async def close(self) -> None:
        if self.news is not None:
            await self.news.__aexit__(None, None, None)
        for server in self.own:
            await asyncio.to_thread(server.close)


Act = Callable[[Ground], Awaitable[None]]


async def unrelated(ground: Ground) -> None:
    """Run unrelated transactions before any outcome is looked up: they get the ids that were lost in the crash."""
    for _ in range(UNRELATED):
        await ground.sql("SELECT pg_current_xact_id()")


async def end_backends(ground: Ground) -> None:
    """End three sessions, as an operator would."""
    for pid in await _backends(ground, 3):
        await ground.sql(f"SELECT pg_terminate_backend({pid})")
        ground.counts["backends ended"] += 1


async def kill_backend(ground: Ground) -> None:
    """Kill one backend with kill -9: the server ends the others and recovers, and its start time does not change."""
    for pid in await _backends(ground, 1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            ground.counts["backends killed"] += 1
    await unrelated(ground)


async def _backends(ground: Ground, most: int) -> list[int]:
    found = await ground.sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    pids = [int(pid) for pid in found.split()]
    return ground.rng.sample(pids, min(most, len(pids)))


async def kill_server(ground: Ground) -> None:
    """Kill the whole server with kill -9."""
    await asyncio.to_thread(ground.server.kill)
    await asyncio.to_thread(ground.server.start)
    ground.counts["servers killed"] += 1
    await unrelated(ground)


async def promote_synchronous(ground: Ground) -> None:
    """Promote a standby that has everything that was acknowledged."""
    if ground.standby is None:
        await ground.follow(synchronous=True)
    if await ground.reach(ground.said() + LAG):
        await ground.promote()
        ground.counts["synchronous standbys promoted"] += 1


async def promote_lagging(ground: Ground) -> None:
    """Promote a standby that lacks acknowledged transactions."""
    if ground.standby is None:
        await ground.follow(synchronous=False)
    assert ground.news is not None
    ground.news.black_hole()
    if await ground.reach(ground.said() + LAG):
        await ground.promote()
        ground.counts["lagging standbys promoted"] += 1


TROUBLES: dict[str, Sequence[Act]] = {
    "none": (),
    "kills": (kill_server, end_backends, kill_backend, end_backends),
    "synchronous standby": (promote_synchronous, kill_server),
    "lagging standby": (promote_lagging,),
}


async def prepare(ground: Ground, kind: str) -> None:
    """Start the first standby before the first transfer, because a short run could end before the standby is ready."""
    if kind.endswith("standby"):
        await ground.follow(synchronous=kind == "synchronous standby")


async def trouble(ground: Ground, kind: str, every: int) -> None:
    """Cause one fault after another, each after some more transfers, until the run is over. Call `prepare` first."""
    if TROUBLES[kind]:
        for act in itertools.cycle(TROUBLES[kind]):
            if not await ground.reach(ground.said() + every):
                return
            await act(ground)
