"""idempotency_key: an operation is carried out once per key, and each caller gets the stored result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from koo.database.database import Database
from koo.database.operations import Operation, fingerprint_of
from koo.database.transactions import make_transactional
from koo.errors import DatabaseError, IdempotencyKeyInUse, IdempotencyKeyReused, Kind
from koo.testing.polling import until
from tests.database.conftest import Place
from tests.database.support import INSERT, leave_markers_alone, notes, proxied, run, through, with_notes


@asynccontextmanager
async def keyed(url: str, **changes: Any) -> AsyncIterator[Database]:
    async with with_notes(url, **changes) as database:
        await database.init_exactly_once()
        yield database


async def add(session: AsyncSession, n: int) -> dict[str, Any]:
    await session.execute(INSERT, {"n": n})
    return {"added": n, "of": (n, n)}


ADDED: Any = {"added": 1, "of": [1, 1]}


def test_a_repeat_gets_the_stored_result_and_does_nothing(url: str) -> None:
    async def main() -> None:
        async with keyed(url) as database:
            first: Any = await database.transaction(add, 1, idempotency_key="k")
            assert first == ADDED, "the first caller gets the stored form too"
            assert await database.transaction(add, 1, idempotency_key="k") == ADDED
            assert await notes(database) == [1]

    run(main)


def test_the_decorated_function_takes_the_key_at_the_call(url: str) -> None:
    async def main() -> None:
        async with keyed(url) as database:
            transactional: Any = make_transactional(lambda: database)
            keys: list[str | None] = []

            async def tell(session: AsyncSession, *, idempotency_key: str | None = None) -> str:
                keys.append(idempotency_key)
                return "told"

            plain, telling = transactional(max_retries=1)(add), transactional(tell)
            assert [await plain(1, idempotency_key="k") for _ in range(2)] == [ADDED, ADDED]
            assert [await telling(idempotency_key="t") for _ in range(2)] == ["told", "told"]
            assert keys == ["t"], "a function that has the parameter receives the key"
            assert await notes(database) == [1]

    run(main)


def test_a_key_used_by_another_call_is_refused(url: str) -> None:
    async def main() -> None:
        async with keyed(url) as database:
            await database.transaction(add, 1, idempotency_key="k")
            with pytest.raises(IdempotencyKeyReused, match="other arguments"):
                await database.transaction(add, 2, idempotency_key="k")
            assert await notes(database) == [1]

    run(main)


def test_a_failed_operation_leaves_its_key_free(url: str) -> None:
    async def fail(session: AsyncSession, n: int) -> None:
        await add(session, n)
        raise LookupError

    async def main() -> None:
        async with keyed(url) as database:
            with pytest.raises(LookupError):
                await database.transaction(fail, 1, idempotency_key="k")
            assert await database.transaction(add, 1, idempotency_key="k") == ADDED

    run(main)


def test_of_two_concurrent_operations_the_second_waits_and_gets_the_firsts_result(url: str) -> None:
    async def main() -> None:
        async with keyed(url) as database:
            began, go = asyncio.Event(), asyncio.Event()
            runs = 0

            async def slow(session: AsyncSession) -> int:
                nonlocal runs
                runs += 1
                await add(session, runs)
                began.set()
                await go.wait()
                return runs

            first = asyncio.create_task(database.transaction(slow, idempotency_key="k"))
            await began.wait()
            second = asyncio.create_task(database.transaction(slow, idempotency_key="k"))
            await until(lambda: database.pool_queue.used == 2)
            go.set()
            results = list(await asyncio.gather(first, second))
            assert results == [1, 1] and runs == 1
            assert await notes(database) == [1]

    run(main)


def test_an_operation_with_a_short_wait_raises_that_the_key_is_in_use(pg: Place) -> None:
    async def main() -> None:
        async with keyed(pg.url) as database:
            async with database.session_scope() as session, database.session_scope() as other:
                assert await Operation("k").begin(session) is None
                with pytest.raises(IdempotencyKeyInUse) as caught:
                    await Operation("k", wait_s=0.05).begin(other)
                assert caught.value.retry_after_s and caught.value.kind is Kind.CONFLICT
                await other.rollback()
                await Operation("k").finish(session, "done")
            async with database.session_scope() as session:
                stored = await Operation("k", wait_s=0.05).begin(session)
                assert stored is not None and stored.result == "done"
                timeout = await session.execute(text("SELECT current_setting('lock_timeout')"))
                assert timeout.scalar_one() == "0", "the timeout was for the INSERT only"

    run(main)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("mode", ["off", "marker"])
def test_a_lost_commit_is_repeated_safely_with_and_without_markers(pg: Place, when: Any, mode: str) -> None:
    async def main() -> None:
        async with proxied(pg.server) as proxy:
            url = through(proxy, pg.server, pg.driver, pg.database)
            async with keyed(pg.url):
                pass
            async with with_notes(url, exactly_once=mode) as database:
                await leave_markers_alone(database)
                proxy.cut_commit(when)
                assert await database.transaction(add, 1, idempotency_key="k") == ADDED
                assert proxy.cuts == 1 and await notes(database) == [1]

    run(main)


def test_a_joined_operation_is_part_of_the_outer_transaction(url: str) -> None:
    async def fail(session: AsyncSession) -> None:
        await add(session, 7)
        raise LookupError

    async def main() -> None:
        async with keyed(url) as database:

            async def outer(session: AsyncSession, fails: bool) -> None:
                if fails:
                    with pytest.raises(LookupError):
                        await database.transaction(fail, idempotency_key="inner")
                await database.transaction(add, 1, idempotency_key="inner")

            await database.transaction(outer, fails=True)
            await database.transaction(outer, fails=False)
            assert await notes(database) == [1]

    run(main)


def test_a_function_with_a_key_must_not_commit_part_of_its_work(url: str) -> None:
    async def parts(session: AsyncSession) -> None:
        await add(session, 1)
        await session.commit()

    async def rolls_back(session: AsyncSession) -> None:
        await session.rollback()

    async def main() -> None:
        async with keyed(url) as database:
            with pytest.raises(DatabaseError, match="must not commit part"):
                await database.transaction(parts, idempotency_key="k")
            with pytest.raises(DatabaseError, match="was rolled back inside the function"):
                await database.transaction(rolls_back, idempotency_key="k")
            assert await notes(database) == []

    run(main)


def test_a_key_that_was_committed_without_a_result_is_neither_done_nor_free(sqlite_url: str) -> None:
    """The application can cause this with a statement that ends the transaction; a commit through koo is refused."""

    async def main() -> None:
        async with keyed(sqlite_url) as database:
            half = text("INSERT INTO koo_markers (key, fingerprint) VALUES (:key, :fingerprint)")
            async with database.session_scope() as session:
                await session.execute(half, Operation("k")._values)
            with pytest.raises(DatabaseError, match="did not finish") as caught:
                async with database.session_scope() as session:
                    await Operation("k").begin(session)
            assert caught.value.kind is Kind.OUTCOME_UNKNOWN

    run(main)


def test_a_clients_key_cannot_collide_with_a_commits_marker(sqlite_url: str) -> None:
    async def main() -> None:
        async with keyed(sqlite_url) as database:
            await database.transaction(add, 1, idempotency_key="tx:0")
            async with database.session_scope(readonly=True) as session:
                assert (await session.scalars(text("SELECT key FROM koo_markers"))).all() == ["op:tx:0"]

    run(main)


def test_a_result_that_json_cannot_represent_is_refused_before_the_commit(url: str) -> None:
    async def main() -> None:
        async with keyed(url) as database:

            async def odd(session: AsyncSession) -> object:
                await add(session, 1)
                return object()

            with pytest.raises(TypeError):
                await database.transaction(odd, idempotency_key="k")
            assert await notes(database) == []

    run(main)


def test_without_the_table_an_operation_is_refused_and_the_error_says_how_to_create_it(url: str) -> None:
    async def main() -> None:
        async with with_notes(url) as database:
            with pytest.raises(DatabaseError, match="run `koo db init`") as caught:
                await database.transaction(add, 1, idempotency_key="k")
            assert caught.value.kind is Kind.NOT_CONFIGURED
            assert await notes(database) == []

    run(main)


@pytest.mark.parametrize("key", ["", "x" * 256, "two\nlines"])
def test_an_invalid_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 printable characters"):
        Operation(key)


class Plain:
    pass


def test_a_fingerprint_is_the_same_in_the_next_process() -> None:
    ours = fingerprint_of(add, (1, Decimal("1.5"), {"b", "a"}, Plain()), {"b": {1: 2}, "a": None})
    assert ours == fingerprint_of(
        add, (1, Decimal("1.50").normalize(), {"a", "b"}, Plain()), {"a": None, "b": {1: 2}}
    )
    assert ours != fingerprint_of(add, (1, Decimal("1.6"), {"b", "a"}, Plain()), {"b": {1: 2}, "a": None})
    assert "0x" not in ours
    assert fingerprint_of(add, ({(1, 2): 3},), {}) != fingerprint_of(add, ({(1, 2): 4},), {})
