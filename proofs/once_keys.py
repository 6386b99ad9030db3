"""Two clients, one `Idempotency-Key`, and a server (`proofs.once_till`) that is killed with `kill -9` in the middle.

Both send the same request again and again until they have its response. The judge requires one effect, the same
response for both and for a third request that comes later, and one stored response. The moment of the kill is drawn at
random, from before the server has read the requests until after it has answered both; the progress at that moment is
counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
from sqlalchemy import make_url, text

from koo.database.database import Database
from koo.options import DatabaseOptions
from proofs.once_till import TABLE
from proofs.running import ROOT

OPEN_S = 1.5
"""The latest moment of a kill, as a multiple of the time that both responses take without one."""
GIVE_UP_S = 60.0
ROWS = text("SELECT run FROM payments WHERE number = :number")
STORED = text("SELECT count(*) FROM koo_markers WHERE key LIKE :key AND result IS NOT NULL")


class Till:
    """The server, on a socket that outlives it."""

    def __init__(self, url: str, home: Path) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/payments"
        self._command = [sys.executable, "-m", "proofs.once_till", url, str(home)]
        self._pid = 0

    async def __aenter__(self) -> Till:
        number = self._listener.fileno()
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            str(number),
            cwd=ROOT,
            pass_fds=[number],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        await self.serve()
        return self

    async def serve(self) -> None:
        """Start a server in place of the last one."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"serve\n")
        self._pid = int(await self._process.stdout.readline())

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        self._listener.close()


@dataclass
class Trial:
    """The results of the kills on one database. `moments`: the progress at the kill; `statuses`: of responses."""

    HEAD: ClassVar[list[str]] = [
        "| database | kills | before the work was committed | between COMMIT and response | after a response"
        " | 409 while it ran | took | result |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]

    where: str
    moments: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def row(self) -> str:
        counts = [self.moments[one] for one in ("before", "committed", "answered")]
        return f"| {self.where} | {' | '.join(map(str, [sum(counts), *counts, self.statuses[409]]))} |"


class Clients:
    """Send each request until it is answered."""

    def __init__(self, session: aiohttp.ClientSession, address: str, trial: Trial) -> None:
        self._session = session
        self._address = address
        self.trial = trial

    async def ask(self, number: int) -> tuple[Any, bool]:
        """The response, and whether it came from the store. Raises TimeoutError if there is none within a minute."""
        headers = {"Idempotency-Key": f"key-{number}", "X-Customer": "ann"}
        async with asyncio.timeout(GIVE_UP_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    request = self._session.post(self._address, json={"number": number}, headers=headers)
                    async with request as reply:
                        body = await reply.json()
                        self.trial.statuses[reply.status] += 1
                        if reply.status == 201:
                            return body, "Idempotency-Replayed" in reply.headers
                        if reply.status not in (409, 503):
                            self.trial.faults.append(f"{number}: status {reply.status}, {body}")
                            return None, False
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Database]:
    database = Database(DatabaseOptions(url=url))
    try:
        yield database
    finally:
        await database.close()


async def on_server(url: str, home: Path, seed: int, kills: int) -> Trial:
    """The trials on one database, which is empty at first."""
    rng, trial = random.Random(seed), Trial(make_url(url).drivername)
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        _opened(url) as database,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        await database.init_exactly_once()
        async with database.session_scope() as scope:
            await scope.execute(text(TABLE))
        async with Till(url, home) as till:
            clients = Clients(session, till.address, trial)
            await clients.ask(0)
            began = time.monotonic()
            await asyncio.gather(clients.ask(-1), clients.ask(-1))
            usual_s = time.monotonic() - began
            for number in range(1, kills + 1):
                await _kill_between(till, clients, database, number, rng.uniform(0, OPEN_S * usual_s))
    return trial


async def _kill_between(
    till: Till, clients: Clients, database: Database, number: int, after_s: float
) -> None:
    trial = clients.trial
    asking = [asyncio.create_task(clients.ask(number)) for _ in range(2)]
    await asyncio.sleep(after_s)
    is_answered = any(one.done() for one in asking)
    till.kill()
    moment = "answered" if is_answered else "committed" if await _runs(database, number) else "before"
    trial.moments[moment] += 1
    await till.serve()
    answers = [body for body, _ in await asyncio.gather(*asking)]
    third, was_stored = await clients.ask(number)
    runs = await _runs(database, number)
    async with database.session_scope(readonly=True) as session:
        stored = await session.scalar(STORED, {"key": f"op:http:%:key-{number}"})
    wrong = {
        f"{len(runs)} effects": len(runs) != 1,
        "different answers": any(answer != {"run": runs[0]} for answer in [*answers, third])
        if runs
        else False,
        "a later request was not answered from the store": not was_stored,
        f"{stored} stored answers": stored != 1,
    }
    trial.faults += [f"{number}: {what}" for what, is_so in wrong.items() if is_so]


async def _runs(database: Database, number: int) -> list[str]:
    async with database.session_scope(readonly=True) as session:
        return list((await session.scalars(ROWS, {"number": number})).all())
