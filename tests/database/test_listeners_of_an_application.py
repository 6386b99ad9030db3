"""An application may translate the driver's errors in a listener to `handle_error`, as SQLAlchemy documents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, TextClause, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncSession

from koo.errors import CommitOutcomeUnknown
from tests.database.conftest import Place
from tests.database.support import INSERT, notes, proxied, run, through, with_notes

CONFLICT = text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$")
LOSS = text("SELECT pg_terminate_backend(pg_backend_pid())")


class Translated(Exception):
    """The application's own error."""


def translate(context: ExceptionContext) -> None:
    raise Translated from context.original_exception


@pytest.fixture
def translating() -> Iterator[None]:
    """A listener to all engines, which SQLAlchemy calls before those to one engine, koo's own included."""
    event.listen(Engine, "handle_error", translate)
    yield
    event.remove(Engine, "handle_error", translate)


@pytest.mark.parametrize("failure", [CONFLICT, LOSS], ids=["conflict", "loss"])
def test_a_transaction_is_repeated_although_a_listener_raises_an_error_of_its_own(
    any_pg: Place, translating: None, failure: TextClause
) -> None:
    runs = 0

    async def insert(session: AsyncSession) -> None:
        nonlocal runs
        runs += 1
        await session.execute(INSERT, {"n": runs})
        if runs == 1:
            await session.execute(failure)

    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            await database.transaction(insert)
            assert await notes(database) == [2]

    run(main)


def test_the_outcome_of_a_lost_commit_is_unknown_although_a_listener_raises_an_error_of_its_own(
    any_pg: Place, translating: None
) -> None:
    async def main() -> None:
        async with proxied(any_pg.server) as proxy:
            url = through(proxy, any_pg.server, any_pg.driver, any_pg.database)
            async with with_notes(url) as database:
                proxy.cut_commit("after")
                with pytest.raises(CommitOutcomeUnknown):
                    async with database.session_scope() as session:
                        await session.execute(INSERT, {"n": 1})
                assert await notes(database) == [1]

    run(main)


def test_the_applications_own_error_leaves_the_scope(any_pg: Place, translating: None) -> None:
    async def main() -> None:
        async with with_notes(any_pg.url) as database:
            with pytest.raises(Translated):
                async with database.session_scope() as session:
                    await session.execute(text("SELECT 1 / 0"))

    run(main)
