"""koo finds the line that opened a scope in the scope's task on demand, and never shows a value of a statement."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from koo.database.whereabouts import find, first_words
from tests.database.support import run


class Scope:
    """A stand-in for a session's scope."""

    session = object()

    async def __aenter__(self) -> object:
        await asyncio.sleep(0)
        return self.session

    async def __aexit__(self, *error: object) -> None:
        await asyncio.sleep(0)


async def started(work: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.create_task(work, name="worker")
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def finished(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def wait_inside(session: object) -> None:
    await asyncio.get_running_loop().create_future()


def test_another_task_can_find_the_line_of_a_scopes_async_with() -> None:
    async def work(scope: Scope) -> None:
        await asyncio.sleep(0)
        async with scope as session:
            await wait_inside(session)

    async def main() -> None:
        task = await started(work(Scope()))
        line = work.__code__.co_firstlineno + 2
        assert str(find(task, Scope.session)) == f"{__name__}:{line}"
        await finished(task)

    run(main)


def test_the_place_is_found_from_a_thread_without_a_loop_too() -> None:
    """A Flask page shows a saturated pool: no task is running in its thread."""

    async def work(scope: Scope) -> None:
        async with scope as session:
            await wait_inside(session)

    async def main() -> None:
        task = await started(work(Scope()))
        line = work.__code__.co_firstlineno + 1
        assert str(await asyncio.to_thread(find, task, Scope.session)) == f"{__name__}:{line}"
        await finished(task)

    run(main)


def test_two_scopes_in_one_function_have_different_lines() -> None:
    async def work(outer: Scope, inner: Scope) -> None:
        inner.session = object()
        async with outer as first:
            await asyncio.sleep(0)
            async with inner as second:
                await wait_inside((first, second))

    async def main() -> None:
        outer, inner = Scope(), Scope()
        task = await started(work(outer, inner))
        line = work.__code__.co_firstlineno + 2
        assert str(find(task, outer.session)) == f"{__name__}:{line}"
        assert str(find(task, inner.session)) == f"{__name__}:{line + 2}"
        await finished(task)

    run(main)


def test_a_function_that_received_its_session_is_named_with_its_current_line() -> None:
    async def main() -> None:
        task = await started(wait_inside(Scope.session))
        line = wait_inside.__code__.co_firstlineno + 1
        assert str(find(task, Scope.session)) == f"{__name__}:{line}"
        await finished(task)

    run(main)


def test_a_task_can_find_its_own_scope() -> None:
    async def main() -> None:
        async with Scope() as session:
            line = sys._getframe().f_lineno - 1
            assert str(find(asyncio.current_task(), session)) == f"{__name__}:{line}"

    run(main)


def test_the_route_of_a_request_is_named_by_its_pattern() -> None:
    async def serve(scope: dict[str, Any], session: object) -> None:
        await wait_inside(session)

    async def main() -> None:
        route = SimpleNamespace(path="/orders/{id}")
        asgi = {"type": "http", "method": "GET", "path": "/orders/a-secret", "route": route}
        task = await started(serve(asgi, Scope.session))
        line = serve.__code__.co_firstlineno + 1
        assert str(find(task, Scope.session)) == f"GET /orders/{{id}} ({__name__}:{line})"
        await finished(task)

    run(main)


def test_a_task_that_has_ended_is_named_as_such() -> None:
    """The task entered its scope by hand and never left it, so no coroutine remains to inspect."""

    async def main() -> None:
        task = await started(asyncio.sleep(0))
        assert str(find(task, object())) == "task 'worker, which has ended'"
        assert str(find(None, object())) == "task 'none'"

    run(main)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE accounts SET balance = 5 WHERE id = 7", "UPDATE accounts SET balance"),
        ("SELECT accounts.id, accounts.name FROM accounts WHERE name = 'x'",
         "SELECT accounts.id, accounts.name FROM accounts WHERE"),
        ("select * from t", "select * from t"),
        ("SELECT 'secret'", "SELECT"),
        ("SELECT $1, password", "SELECT"),
        ("INSERT INTO notes (n) VALUES (1)", "INSERT INTO notes"),
        ("/* user='bob' */ -- bob\n DELETE FROM notes WHERE n=1", "DELETE FROM notes WHERE"),
        ("SET app.tenant TO acme", "SET app.tenant"),
        ('SELECT "secret" FROM t', "SELECT"),
        ("ALTER ROLE bob PASSWORD 'x'", "ALTER ROLE bob PASSWORD"),
        ("SELECT a, b, c, d, e, f, g FROM t", "SELECT a, b, c, d, e"),
        ("", ""),
        (None, ""),
    ],
)  # fmt: skip
def test_the_first_words_of_a_statement_end_before_any_value(statement: str | None, words: str) -> None:
    assert first_words(statement) == words
