"""Clients of `koo serve` in the chaos proof: some wait for their responses, some disconnect, some send nonsense."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import aiohttp

CLIENTS = 10
PAUSE_S = 0.3
PATIENCE_S = 15.0
LEAVE = 0.25
API = "/api/v1"
LOOKS = (
    "/livez", "/readyz", "/metrics", f"{API}/monitoring/health", f"{API}/monitoring/alerts",
    f"{API}/monitoring/dashboard", f"{API}/ai/services/health", f"{API}/ai/spend", f"{API}/monitoring/audit",
    f"{API}/monitoring/alerts/history", f"{API}/monitoring/alerts/deliveries",
)  # fmt: skip
NONSENSE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/query", {"json": {"service": "none", "prompt": "x"}}),
    ("/query", {"json": {"prompt": 7}}),
    ("/query", {"data": b"{" * 1000, "headers": {"content-type": "application/json"}}),
    ("/batch-query", {"json": {"queries": []}}),
)
USUAL = {200, 404, 413, 422, 429, 502, 503, 504}


class Clients:
    """All clients. `answers`: how often each status came; `strange`: responses that no fault explains."""

    def __init__(self, url: str, seed: int) -> None:
        self.answers = Counter[str]()
        self.strange = Counter[str]()
        self.silent_s = list[float]()
        self.is_quiet = False
        self._url = url
        self._seed = seed

    async def run(self, began: float) -> None:
        """Run until cancelled."""
        patience = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(self._url, timeout=patience) as kept,
            aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(force_close=True)) as fresh,
            asyncio.TaskGroup() as group,
        ):
            for number in range(CLIENTS):
                group.create_task(self._ask_for_ever(kept, random.Random(self._seed + number)))
            group.create_task(self._probe(fresh, began))

    async def _probe(self, session: aiohttp.ClientSession, began: float) -> None:
        """Probe each second, as an orchestrator does."""
        while True:
            await asyncio.sleep(1)
            try:
                async with asyncio.timeout(5), session.get("/livez") as answer:
                    await answer.read()
                    if answer.status == 200:
                        continue
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            self.silent_s.append(time.monotonic() - began)

    async def _ask_for_ever(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while True:
            await asyncio.sleep(PAUSE_S * (0.5 + rng.random()))
            if self.is_quiet:
                continue
            try:
                async with asyncio.timeout(rng.random() * 0.4 if rng.random() < LEAVE else None):
                    await self._ask(session, rng)
            except TimeoutError:
                self.answers["disconnected, or no response in time"] += 1
            except (aiohttp.ClientError, OSError) as error:
                self.answers[type(error).__name__] += 1

    async def _ask(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        chance, method, path, more = rng.random(), "POST", "", dict[str, Any]()
        if chance < 0.5:
            first, second = rng.sample(("alpha", "beta"), 2)
            body = {"service": first, "prompt": "spend", "fallback": [second], "timeout_s": 5.0}
            path, more = f"{API}/ai/query", {"json": body}
        elif chance < 0.6:
            queries = [{"service": rng.choice(("alpha", "beta")), "prompt": "spend"} for _ in range(3)]
            path, more = f"{API}/ai/batch-query", {"json": {"queries": queries}}
        elif chance < 0.65:
            path, more = rng.choice(NONSENSE)
            path = f"{API}/ai{path}"
        elif chance < 0.7:
            path = f"{API}/monitoring/database/health-check"
        elif chance < 0.71:
            path = f"{API}/ai/services/reset-all-errors"
        else:
            method, path = "GET", rng.choice(LOOKS)
        async with session.request(method, path, **more) as answer:
            said = await answer.read()
        self.answers[str(answer.status)] += 1
        if answer.status not in USUAL:
            self.strange[f"{answer.status} of {method} {path}: {said[:200]!r}"] += 1
