"""A counter of `/metrics` never decreases or disappears, whatever is reset, replaced, forgotten or reopened."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

import koo.ai.service
from koo import Platform
from koo.errors import KooError
from koo.policies.breaker import Override
from koo.web.exposition import text_of
from proofs.chaos_judge import counters, falls
from tests.platform.test_platform import options

NAME = "parcels"
MODELS = ("a", "b", "c", "d")


@dataclass
class Run:
    """A platform whose own operation has models, of which it keeps two."""

    platform: Platform
    turn: int = 0

    async def call(self, error: Exception | None = None) -> None:
        self.turn += 1

        async def operation() -> None:
            if error is not None:
                raise error

        guard = self.platform.services[NAME].guard(MODELS[self.turn % len(MODELS)])
        with suppress(KooError, OSError):
            await guard.call(operation)

    def register(self) -> None:
        self.turn += 1  # with the same options nothing would be replaced
        self.platform.register_service(
            NAME, failure_threshold=1, max_retries=1, retry_base_delay=0.001, queue_max=self.turn
        )

    async def query(self, statement: str) -> None:
        with suppress(Exception):
            async with self.platform.database.session_scope() as session:
                await session.execute(text(statement))


async def succeeds(run: Run) -> None:
    await run.call()


async def fails(run: Run) -> None:
    await run.call(ConnectionError("gone"))


async def is_replaced_while_it_runs(run: Run) -> None:
    guard, gate = run.platform.services[NAME].guard("a"), asyncio.Event()
    call = asyncio.ensure_future(guard.call(gate.wait))
    await asyncio.sleep(0)
    run.register()
    gate.set()
    with suppress(KooError):
        await call


async def is_registered_again(run: Run) -> None:
    run.register()


async def is_reset(run: Run) -> None:
    run.platform.parts.reset_service(run.platform.services[NAME])


async def is_forced_open(run: Run) -> None:
    run.platform.services[NAME].set_override(Override.FORCED_OPEN)


async def is_opened_anew(run: Run) -> None:
    await run.platform.close()
    await run.platform.open()


async def asks_the_database(run: Run) -> None:
    await run.query("SELECT 1")


async def fails_in_the_database(run: Run) -> None:
    await run.query("SELECT broken")


async def resets_the_database(run: Run) -> None:
    run.platform.reset_database()


Act = Callable[[Run], Awaitable[None]]
ACTS: tuple[Act, ...] = (
    succeeds, fails, is_replaced_while_it_runs, is_registered_again, is_reset, is_forced_open, is_opened_anew,
    asks_the_database, fails_in_the_database, resets_the_database,
)  # fmt: skip


async def texts_of(acts: list[Act], home: Path) -> list[str]:
    run = Run(Platform(options(home)))
    run.register()
    texts = []
    async with run.platform:
        for act in acts:
            await act(run)
            texts.append(text_of(run.platform).decode())
    return texts


@pytest.mark.parametrize("seed", range(2))
def test_no_counter_decreases_whatever_happens(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(koo.ai.service, "MODELS_MAX", 2)
    acts = random.Random(seed).choices(ACTS, k=40)
    assert falls(asyncio.run(texts_of(acts, tmp_path))) == []


def test_counts_of_forgotten_models_and_replaced_registrations_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(koo.ai.service, "MODELS_MAX", 2)
    acts: list[Act] = [fails, fails, fails, fails, is_registered_again, succeeds, is_replaced_while_it_runs]
    last = counters(asyncio.run(texts_of(acts, tmp_path))[-1])
    assert last["koo_circuit_breaker_opened_total", (("breaker", NAME),)] == 4
    assert last["koo_service_requests_total", (("outcome", "success"), ("service", NAME))] == 2
    assert last["koo_service_errors_total", (("kind", "connection"), ("service", NAME))] == 4


def test_the_check_finds_a_decrease() -> None:
    before = '# TYPE a_total counter\na_total{x="1"} 3.0\na_total{x="2"} 1.0\n# TYPE g gauge\ng 5.0\n'
    after = '# TYPE a_total counter\na_total{x="1"} 2.0\n# TYPE g gauge\ng 1.0\n'
    assert falls([before, before]) == []
    assert [fall.rpartition(") ")[2] for fall in falls([before, after])] == [
        "fell from 3 to 2",
        "was 1 and is gone",
    ]
