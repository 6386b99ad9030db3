"""Scenarios that start and end each kind of alert, with real calls, servers, files, processes and limits.

Two things are simulated. The disk is the machine's own, and the threshold is raised above its free space. A blocked
loop is one whose clock is moved between two beats.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from koo import host
from koo.errors import DatabaseError, ExternalServiceError
from koo.host import count_descriptors
from koo.options import BreakerOptions, LimitOptions
from koo.policies.breaker import Override
from koo.policies.money import to_pico
from koo.storage.store import SqlStore
from koo.storage.treasuries import write_off_in
from koo.testing.polling import until
from koo.testing.providers import answer, error, hang
from tests.alerts.hooks import answer as hook_answer
from tests.platform.alert_stage import Course, Stage, Step
from tests.scarce import no_descriptors

ROOT = Path(__file__).parents[2]
OTHER_MODEL = "claude-haiku-4-5"
FAILED = error(500, "api_error")
DAY_S = 86_400.0
HOUR_S = 3600.0
ONE_USD = {"daily_budget_usd": Decimal(1), "budget_is_explicit": True}
TOKENS_PER_USD = 100_000
LONG = {"scope_timeout_s": HOUR_S}


def later(seconds: float) -> Step:
    """Only time ends it."""

    async def end(stage: Stage) -> None:
        await stage.jump(seconds)

    return end


# ── a service ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def refuse_the_key(stage: Stage) -> None:
    await stage.ask(error(401, "authentication_error"))


async def take_the_key_again(stage: Stage) -> None:
    await stage.platform.check_services("claude")


async def fail_another_model(stage: Stage) -> None:
    await stage.ask(answer())
    for _ in range(3):
        await stage.ask(FAILED, model=OTHER_MODEL)


async def recover_that_model(stage: Stage) -> None:
    await stage.passes(61.0)
    for _ in range(2):
        await stage.ask(answer(), model=OTHER_MODEL)


async def fail(stage: Stage) -> None:
    for _ in range(3):
        await stage.ask(FAILED)


async def succeed(stage: Stage) -> None:
    for _ in range(2):
        await stage.ask(answer())


async def refuse_a_model(stage: Stage) -> None:
    await stage.ask(answer())
    await stage.ask(error(403, "permission_error"), model=OTHER_MODEL)


async def ask_as(stage: Stage, key: str) -> None:
    client = anthropic.AsyncAnthropic(api_key=key, base_url=stage.server.base_url, max_retries=0)
    async with client:
        with suppress(ExternalServiceError):
            messages: Any = [{"role": "user", "content": "Hello"}]
            await stage.platform.execute(
                "llm", client.messages.create, model=OTHER_MODEL, max_tokens=10, messages=messages
            )


async def expire_a_clients_key(stage: Stage) -> None:
    stage.platform.register_service("llm", timeout_s=HOUR_S)
    stage.server.key = "valid"
    await ask_as(stage, "valid")
    await ask_as(stage, "expired")


async def take_it_again(stage: Stage) -> None:
    stage.server.key = None
    await stage.jump(61.0)
    await ask_as(stage, "expired")


async def use_the_quota_up(stage: Stage) -> None:
    await stage.ask(error(429, "rate_limit_error", code="enforced_spend_limit_reached"))


async def throttle(stage: Stage) -> None:
    await stage.ask(error(429, "rate_limit_error", headers={"retry-after": "300"}))


async def fail_now_and_then(stage: Stage) -> None:
    for number in range(24):
        await stage.ask(FAILED if number % 8 == 0 else answer())


async def crowd(stage: Stage) -> None:
    """One call hangs in the only slot, and others are refused."""
    stage.kept.append(asyncio.create_task(stage.ask(hang())))
    await until(lambda: stage.server.requests)
    await stage.ask()


async def let_go(stage: Stage) -> None:
    task = stage.kept.pop()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def asks(count: int) -> Step:
    async def begin(stage: Stage) -> None:
        for _ in range(count):
            await stage.ask(answer())

    return begin


async def ask_on_at_the_limit(stage: Stage) -> None:
    """A limit per minute raises an alert if it is reached for a whole minute."""
    for _ in range(16):
        for _ in range(10):
            await stage.ask(answer())
        await stage.passes(5.0)


async def ask_on_near_the_limit(stage: Stage) -> None:
    """Use eight or nine of ten requests for a whole minute, never ten."""
    asked_at = 0.0
    while not any(one["phase"] == "firing" for one in stage.platform.active_alerts()):
        now, limits = stage.clock.monotonic(), stage.platform.service_health("claude")["rate_limits"]
        # The calls are spread out, so that they leave the window one by one and the next call takes the free unit.
        if limits["requests_per_minute"]["used"] < 9 and now - asked_at >= 6.5:
            asked_at = now
            await stage.ask(answer())
        stage.clock.advance(0.5)
        await asyncio.sleep(0.002)


async def ask_for_more_tokens_than_are_left(stage: Stage) -> None:
    for _ in range(14):
        for _ in range(2):
            await stage.ask(answer(input_tokens=500, output_tokens=300), max_tokens=900)
        await stage.passes(5.0)


async def use_most_tokens(stage: Stage) -> None:
    # The calls go on until so much is used, not so many per span: on a slow machine real time passes too, and a fixed
    # number would be too few in a minute. In steps, because tokens taken at one moment also become free at one moment.
    # Well above four fifths, so that the use stays above while real time passes during a step.
    for step in range(1, 56):
        while tokens_used(stage) < min(19_000, 800 * step):
            await stage.ask(answer(input_tokens=10, output_tokens=390), max_tokens=390)
        await stage.passes(2.5)


def tokens_used(stage: Stage) -> int:
    return stage.platform.service_health("claude")["rate_limits"]["tokens_per_minute"]["used"]


# ── money ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def bill(usd: str) -> Step:
    """A call with this bill."""

    async def begin(stage: Stage) -> None:
        tokens = int(Decimal(usd) * TOKENS_PER_USD)
        await stage.ask(answer(output_tokens=tokens), max_tokens=tokens + 10)

    return begin


async def spend_it_all(stage: Stage) -> None:
    """The bill is above the call's hold, and is booked in full."""
    await stage.ask(answer(output_tokens=TOKENS_PER_USD))


async def ask_for_more_than_is_left(stage: Stage) -> None:
    await stage.ask(max_tokens=2 * TOKENS_PER_USD)


async def spend_a_third(stage: Stage) -> None:
    """Early in the day, so that the rest of the budget is forecast not to last."""
    await stage.passes(60.0)
    await bill("0.35")(stage)
    await stage.passes(700.0)


async def bill_more_than_was_held(stage: Stage) -> None:
    await stage.ask(answer(output_tokens=10_000))


async def lose_a_process(stage: Stage) -> None:
    """Kill another process on the same store while it waits for an answer and holds money for it."""
    stage.server.script(hang())
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.platform.one_query", str(stage.home), stage.server.base_url, cwd=ROOT
    )
    await until(lambda: [one for one in stage.server.requests if one.method == "POST"])
    other.kill()
    await other.wait()
    await stage.ask(answer())


async def write_it_off(stage: Stage) -> None:
    await stage.platform.write_off(None, by="ops", reason="it was killed")


# ── the state store ───────────────────────────────────────────────────────────────────────────────────────────────


async def lose_the_store(stage: Stage) -> None:
    await stage.ask(answer())
    stage.proxy.refuses()
    stage.proxy.reset_all()


async def find_the_store(stage: Stage) -> None:
    stage.proxy.accepts()


async def spending_is_told(stage: Stage) -> None:
    spent = to_pico(stage.server.billed_usd)

    def is_told() -> bool:
        with closing(sqlite3.connect(stage.home / "state.db")) as state:
            ((told,),) = state.execute("SELECT sum(spent) FROM koo_treasuries WHERE budget LIKE 'service/%'")
        return bool(told == spent)

    await until(is_told)


async def be_forgotten(stage: Stage) -> None:
    """Replace the store with a copy from before the last call."""
    await stage.ask(answer())
    await spending_is_told(stage)
    state, older = stage.home / "state.db", stage.home / "older.db"
    with closing(sqlite3.connect(state)) as opened:
        opened.execute("VACUUM INTO ?", (str(older),))
    await stage.ask(answer())
    await spending_is_told(stage)
    older.replace(state)
    for rest in ("state.db-wal", "state.db-shm"):
        (stage.home / rest).unlink(missing_ok=True)
    asked = asyncio.create_task(
        stage.ask(answer())
    )  # It waits until every process may have reported its bookings.
    await stage.until(asked.done)
    await asked


async def be_written_off(stage: Stage) -> None:
    """This process is written off as if it had ended, and its money is freed."""
    await stage.ask(answer())
    await spending_is_told(stage)
    with closing(sqlite3.connect(stage.home / "state.db")) as state:
        (name,) = state.execute("SELECT name FROM koo_processes").fetchone()
    async with SqlStore(stage.platform.options.state_url) as store:
        await store.executor.run(lambda tx: write_off_in(tx, name))
    await stage.ask(answer())


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


async def lose_the_database(stage: Stage) -> None:
    await stage.platform.database.health_check()
    stage.proxy.refuses()
    stage.proxy.reset_all()
    await stage.platform.database.health_check()


async def find_the_database(stage: Stage) -> None:
    stage.proxy.accepts()
    await stage.platform.database.health_check()


async def statement(stage: Stage, sql: str = "SELECT 1") -> None:
    async with stage.platform.database.session_scope() as session:
        await session.execute(text(sql))


async def fail_now_and_then_in_the_database(stage: Stage) -> None:
    """Let the database's probe succeed, but cut other connections."""
    await statement(stage)
    for _ in range(3):
        with suppress(DatabaseError, DBAPIError):
            async with stage.platform.database.session_scope() as session:
                await session.execute(text("SELECT 1"))
                stage.proxy.reset_all()
                await session.execute(text("SELECT 1"))
    await stage.platform.database.health_check()


async def answer_statements(stage: Stage) -> None:
    for _ in range(3):
        await statement(stage)


async def answer_slowly(stage: Stage) -> None:
    for _ in range(20):
        await statement(stage)


async def switch_read_only(stage: Stage, on: str) -> None:
    async with stage.platform.database.session_scope() as session:
        await session.execute(text("SET TRANSACTION READ WRITE"))
        name = (await session.execute(text("SELECT current_database()"))).scalar_one()
        await session.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {on}'))
    await stage.platform.database.rotate()
    await stage.platform.database.health_check()


async def take_no_writes(stage: Stage) -> None:
    await switch_read_only(stage, "on")


async def take_writes_again(stage: Stage) -> None:
    await switch_read_only(stage, "off")


async def be_read_by_another_program(stage: Stage) -> None:
    """A file without WAL, which another program is reading, so that the switch to WAL must wait."""
    other = sqlite3.connect(stage.home / "user.db")
    other.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY)")
    other.executemany("INSERT INTO notes (n) VALUES (?)", [(n,) for n in range(1000)])
    other.commit()
    reading = other.execute("SELECT n FROM notes")
    reading.fetchone()
    stage.kept += [other, reading]
    await statement(stage)


async def be_left_by_it(stage: Stage) -> None:
    other, reading = stage.kept
    reading.close()
    other.close()
    await stage.platform.database.health_check()


async def hold_scope(stage: Stage, inside: asyncio.Event, leave: asyncio.Event) -> None:
    async with stage.platform.database.session_scope() as session:
        await session.execute(text("SELECT 1"))
        inside.set()
        await leave.wait()


async def hold(stage: Stage) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()
    stage.kept += [leave, asyncio.create_task(hold_scope(stage, inside, leave))]
    await inside.wait()


async def leave(stage: Stage) -> None:
    stage.kept[0].set()
    await stage.kept[1]


async def fill_the_pool(stage: Stage) -> None:
    await hold(stage)
    with suppress(DatabaseError):
        await statement(stage)


async def hold_too_long(stage: Stage) -> None:
    await hold(stage)
    await stage.passes(21.0)


async def lose_a_commit(stage: Stage) -> None:
    await statement(stage, "CREATE TABLE notes (n int)")
    stage.proxy.cut_commit("at")
    with suppress(DatabaseError):
        await statement(stage, "INSERT INTO notes VALUES (1)")


async def need_markers_that_are_missing(stage: Stage) -> None:
    await stage.platform.database.health_check()


async def make_the_markers(stage: Stage) -> None:
    await stage.platform.database.init_exactly_once()


async def pause(stage: Stage) -> None:
    stage.platform.pause_database()


async def drain(stage: Stage) -> None:
    await stage.platform.drain_database()


async def resume(stage: Stage) -> None:
    stage.platform.resume_database()


# ── koo itself ────────────────────────────────────────────────────────────────────────────────────────────────────


def disk_needs(**bytes_: float) -> Step:
    """The real disk is read; only the threshold for too little space is set here."""

    async def begin(stage: Stage) -> None:
        for name, value in bytes_.items():
            stage.monkeypatch.setattr(f"koo.monitoring.own.{name}", value)

    return begin


MUCH = float(2**60)
ENOUGH = {"FULL_BYTES": 0.0, "NEARLY_FULL_BYTES": 0.0}


def descriptors(share: float) -> Step:
    """Simulate this many open descriptors of a thousand."""

    async def begin(stage: Stage) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limits[1]))
        opened = count_descriptors()
        assert opened is not None
        missing = int(1000 * share) - opened.used
        stage.kept += [limits, [os.open("/dev/null", os.O_RDONLY) for _ in range(missing)]]

    return begin


async def close_descriptors(stage: Stage) -> None:
    limits, opened = stage.kept
    for one in opened:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def ask_without_a_descriptor(stage: Stage) -> None:
    """Make a call that needs a new connection while no descriptor is left."""
    await stage.ask(answer("yes"))
    enough = count_descriptors()
    assert enough is not None
    await stage.platform.parts.http.close()
    # The other end belongs to the fake server in this process: closed later, it would free a descriptor.
    await until(lambda: (now := count_descriptors()) is not None and now.used <= enough.used - 2)
    # A reading at this moment would find all descriptors open, which is another alert.
    stage.monkeypatch.setattr(host, "count_descriptors", lambda: enough)
    with no_descriptors():
        await stage.ask()


async def fail_to_notify(stage: Stage) -> None:
    stage.receivers.hook.always = hook_answer(503, "")
    stage.platform.override_service("claude", Override.FORCED_OPEN)
    await stage.heard_by_mail("notification_failing")
    stage.receivers.hook.always = hook_answer()


async def nothing_more(_: Stage) -> None:
    """The alert has already ended: the receiver is back."""


async def stand_still(stage: Stage) -> None:
    """Simulate a loop that did not turn for forty seconds between two beats."""
    await stage.beat()
    stage.clock.advance(40.0)
    await stage.beat()


COURSES: Mapping[str, Course] = {
    "service_down": Course(refuse_the_key, take_the_key_again),
    "circuit_open": Course(fail_another_model, recover_that_model),
    "circuit_recovering": Course(
        fail, succeed, service={"breaker": BreakerOptions(failure_threshold=3, recovery_s=1e-6)}
    ),
    "key_refused": Course(refuse_a_model, later(61.0)),
    "client_key_refused": Course(expire_a_clients_key, take_it_again),
    "quota_used_up": Course(use_the_quota_up, later(32 * DAY_S)),
    "provider_limit_reached": Course(throttle, later(300.0)),
    "degraded_performance": Course(fail_now_and_then, later(301.0)),
    "service_unhealthy": Course(
        fail, succeed, service={"breaker": BreakerOptions(failure_threshold=5, window_s=120.0)}
    ),
    "service_saturated": Course(crowd, let_go, service={"concurrency_max": 1, "queue_max": 0}),
    "limit_reached_requests_per_minute": Course(
        ask_on_at_the_limit, later(60.0), service={"limits": LimitOptions(per_minute=10)}
    ),
    "limit_reached_requests_per_hour": Course(
        asks(10), later(HOUR_S), service={"limits": LimitOptions(per_hour=10)}
    ),
    "limit_reached_requests_per_day": Course(
        asks(10), later(DAY_S), service={"limits": LimitOptions(per_day=10)}
    ),
    "limit_reached_tokens_per_minute": Course(
        ask_for_more_tokens_than_are_left,
        later(90.0),
        service={"limits": LimitOptions(tokens_per_minute=1000)},
    ),
    "limit_approaching_tokens_per_minute": Course(
        use_most_tokens, later(90.0), service={"limits": LimitOptions(tokens_per_minute=20_000)}
    ),
    "limit_approaching_requests_per_minute": Course(
        ask_on_near_the_limit, later(60.0), service={"limits": LimitOptions(per_minute=10)}
    ),
    "limit_approaching_requests_per_hour": Course(
        asks(8), later(HOUR_S), service={"limits": LimitOptions(per_hour=10)}
    ),
    "limit_approaching_requests_per_day": Course(
        asks(8), later(DAY_S), service={"limits": LimitOptions(per_day=10)}
    ),
    "budget_used_up": Course(spend_it_all, later(DAY_S), service=ONE_USD),
    "budget_too_small": Course(ask_for_more_than_is_left, later(DAY_S), service=ONE_USD),
    "budget_at_95": Course(bill("0.96"), later(DAY_S), service=ONE_USD),
    "budget_at_90": Course(bill("0.91"), later(DAY_S), service=ONE_USD),
    "budget_approaching": Course(bill("0.81"), later(DAY_S), service=ONE_USD),
    "budget_forecast": Course(spend_a_third, later(DAY_S), service=ONE_USD),
    "bill_above_hold": Course(bill_more_than_was_held, later(DAY_S)),
    "money_unsettled": Course(lose_a_process, write_it_off, begins_at=None),
    "budget_local": Course(lose_the_store, find_the_store, behind_proxy="state"),
    "store_unavailable": Course(lose_the_store, find_the_store, service=ONE_USD, behind_proxy="state"),
    "store_forgot": Course(be_forgotten, later(HOUR_S)),
    "process_renamed": Course(be_written_off, later(HOUR_S)),
    "database_unavailable": Course(lose_the_database, find_the_database, behind_proxy="database"),
    "database_unhealthy": Course(
        fail_now_and_then_in_the_database, answer_statements, behind_proxy="database"
    ),
    "database_slow": Course(
        answer_slowly,
        later(301.0),
        database={"slow_call_s": 1e-6, "breaker": BreakerOptions(calls_min=10_000)},
    ),
    "database_read_only": Course(take_no_writes, take_writes_again, behind_proxy="database"),
    "database_without_wal": Course(be_read_by_another_program, be_left_by_it),
    "database_saturated": Course(
        fill_the_pool, leave, database={"pool_size": 1, "max_overflow": 0, "pool_timeout_s": 0.2, **LONG}
    ),
    "database_leaking": Course(hold_too_long, leave, database=LONG),
    "database_commit_unknown": Course(lose_a_commit, later(12 * HOUR_S), behind_proxy="database"),
    "database_markers_unusable": Course(
        need_markers_that_are_missing,
        make_the_markers,
        database={"exactly_once": "marker"},
        behind_proxy="database",
    ),
    "database_paused": Course(pause, resume),
    "database_draining": Course(drain, resume),
    "disk_full": Course(disk_needs(FULL_BYTES=MUCH, NEARLY_FULL_SHARE=1.1), disk_needs(**ENOUGH)),
    "disk_nearly_full": Course(
        disk_needs(FULL_BYTES=0.0, NEARLY_FULL_BYTES=MUCH, NEARLY_FULL_SHARE=1.1), disk_needs(**ENOUGH)
    ),
    "descriptors_used_up": Course(descriptors(0.975), close_descriptors),
    "descriptors_nearly_used_up": Course(descriptors(0.90), close_descriptors),
    "out_of_resources": Course(ask_without_a_descriptor, later(301.0)),
    "notification_failing": Course(fail_to_notify, nothing_more),
    "monitor_stale": Course(stand_still, later(301.0)),
}
