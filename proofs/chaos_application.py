"""The application of the chaos proof: concurrent library calls of every kind, cancelled at random awaits.

The calls are queries with fallbacks, streams that are read, abandoned and cut, lists, a user's own operation that
sleeps, raises and hangs, database scopes and transactions, and calls from a thread by `koo.run`. Callers may see
koo's own errors, and in a block with a session SQLAlchemy's, when a statement's connection is lost. Each row that it
writes is unique, and it records the result that it received for each; the table is the judge.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

import koo
from koo.errors import KooError
from koo.web.metrics import metrics_text

WORKERS = 16
PAUSE_S = 0.25
CANCELLED = 0.3
"""The share of calls that are cancelled."""
FAILED_MAX = 200
"""Characters of the error that is reported for a row that was not written."""
OnLimit = Literal["wait"] | None
SERVICES = ("alpha", "beta")


class OwnFailure(Exception):
    """Raised by the user's own operation now and then."""


class Application:
    """`said`: the number of calls with each result, and results that no caller should see."""

    def __init__(self, seed: int) -> None:
        self.is_quiet = False
        self.outcomes = Counter[str]()
        self.strange = Counter[str]()
        self.acknowledged = set[int]()
        self.unknown = set[int]()
        self.failed = dict[int, str]()
        self._seed = seed
        self._row = 0

    def said(self) -> dict[str, Any]:
        """The report so far."""
        return {
            "outcomes": self.outcomes,
            "strange": self.strange,
            "rows": [len(self.acknowledged), len(self.unknown)],
        }

    def metrics(self) -> str:
        """The text of `/metrics`, fetched from a thread, as a WSGI server would."""
        try:
            return metrics_text().decode()
        except Exception as error:  # noqa: BLE001 - the judge reads it
            self.strange[f"metrics_text: {error!r}"] += 1
            return ""

    async def run(self) -> None:
        """Run until SIGTERM; then report the results for its rows."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        koo.platform.register_service("parcels", timeout_s=1.0)
        async with koo.platform:
            workers = [
                asyncio.create_task(self._work(random.Random(self._seed + number)), name="worker")
                for number in range(WORKERS)
            ]
            await stop.wait()
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        rows = [
            *sorted(self.acknowledged),
            "UNKNOWN",
            *sorted(self.unknown),
            "FAILED",
            json.dumps(self.failed),
        ]
        print("ROWS", *rows, flush=True)

    async def _work(self, rng: random.Random) -> None:
        acts: list[Callable[[random.Random], Awaitable[None]]] = [
            self._query, self._stream, self._list, self._own, self._scope, self._transaction, self._transaction,
            self._thread,
        ]  # fmt: skip
        while True:
            await asyncio.sleep(PAUSE_S * (0.5 + rng.random()))
            if self.is_quiet:
                continue
            act = rng.choice(acts)
            await self._try(act, rng)

    async def _try(self, act: Callable[[random.Random], Awaitable[None]], rng: random.Random) -> None:
        task = asyncio.ensure_future(act(rng))
        if rng.random() < CANCELLED:
            # Half are cancelled after a number of loop steps, half after a time, so that awaits of both kinds are cut.
            if rng.random() < 0.5:
                for _ in range(rng.randint(0, 30)):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(rng.random() * 0.3)
            task.cancel()
        try:
            await task
        except (KooError, DBAPIError, TimeoutError, OwnFailure) as error:
            self.outcomes[str(getattr(error, "kind", type(error).__name__))] += 1
        except asyncio.CancelledError:
            worker = asyncio.current_task()
            if worker is not None and worker.cancelling():
                raise
            self.outcomes["cancelled"] += 1
        except Exception as error:  # noqa: BLE001 - the judge reads it
            self.strange[f"{act.__name__}: {error!r}"[:300]] += 1
        else:
            self.outcomes["ok"] += 1

    async def _query(self, rng: random.Random) -> None:
        first, second = rng.sample(SERVICES, 2)
        on_limit: OnLimit = "wait" if rng.random() < 0.3 else None
        await koo.query_ai(
            first, "spend", fallback=[second], timeout_s=rng.uniform(0.5, 6), on_limit=on_limit
        )

    async def _stream(self, rng: random.Random) -> None:
        leaves = rng.random() < 0.5
        async with koo.stream_ai(rng.choice(SERVICES), "spend", timeout_s=6) as answer:
            async for _ in answer:
                if leaves:
                    return

    async def _list(self, rng: random.Random) -> None:
        await koo.query_multiple_ai(
            [{"service": rng.choice(SERVICES), "prompt": "spend", "timeout_s": 4} for _ in range(3)]
        )

    async def _own(self, rng: random.Random) -> None:
        async def parcel() -> None:
            chance = rng.random()
            if chance < 0.01:
                raise OwnFailure
            await asyncio.sleep(100 if chance < 0.02 else 0.01)

        await koo.execute_ai_operation("parcels", parcel)

    async def _scope(self, rng: random.Random) -> None:
        async with koo.deadline(3), koo.db_manager.session_scope(readonly=True) as session:
            await session.execute(text("SELECT count(*) FROM notes"))
            await asyncio.sleep(rng.random() * 0.05)
            await session.execute(text("SELECT pg_sleep(0.01)"))

    async def _transaction(self, rng: random.Random) -> None:
        self._row += 1
        row = self._row

        async def insert(session: AsyncSession) -> None:
            await session.execute(text("INSERT INTO notes (n) VALUES (:n)"), {"n": row})
            await asyncio.sleep(rng.random() * 0.02)

        try:
            async with koo.deadline(5):
                await koo.db_manager.transaction(insert)
        except asyncio.CancelledError:
            self.unknown.add(row)  # it may have been cancelled between COMMIT and its reply
            raise
        except koo.CommitOutcomeUnknown:
            self.unknown.add(row)
            raise
        except Exception as error:
            if type(error) is TimeoutError:  # the deadline's, which is a cancellation like any other
                self.unknown.add(row)
                raise
            self.failed[row] = f"{error!r} from {error.__cause__!r}"[:FAILED_MAX]
            raise
        self.acknowledged.add(row)

    async def _thread(self, rng: random.Random) -> None:
        service = rng.choice(SERVICES)
        await asyncio.to_thread(lambda: koo.run(koo.query_ai(service, "spend", timeout_s=3)))
