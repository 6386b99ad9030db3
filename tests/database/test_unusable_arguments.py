"""Arguments that a driver cannot use raise koo's own error with an explanation, not a bare exception."""

from __future__ import annotations

import asyncio
import getpass

import pytest

from koo import Database, DatabaseOptions, DatabaseUnavailable
from koo.database_urls import NAMES_NO_USER, UNREADABLE
from koo.errors import Kind


def refusal(url: str) -> DatabaseUnavailable:
    async def main() -> DatabaseUnavailable:
        database = Database(DatabaseOptions(url=url))
        try:
            with pytest.raises(DatabaseUnavailable) as caught:
                async with database.session_scope():
                    pass
        finally:
            await database.close()
        return caught.value

    return asyncio.run(main())


def test_a_user_id_without_a_name_is_reported_if_the_url_has_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with an arbitrary user id (OpenShift), asyncpg looks up the user's name, which raises KeyError."""

    def getuser() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("PGUSER", raising=False)
    monkeypatch.setattr(getpass, "getuser", getuser)
    error = refusal("postgresql+asyncpg://127.0.0.1:1/d")
    assert (error.reason, error.kind) == (NAMES_NO_USER, Kind.NOT_CONFIGURED)


@pytest.mark.parametrize("wrong", ["eighty", "8e3", ""])
def test_an_environment_variable_that_is_not_a_port_is_reported(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", wrong or "5432,x")
    error = refusal("postgresql+asyncpg://u@127.0.0.1/d")
    assert (error.reason, error.kind) == (UNREADABLE, Kind.NOT_CONFIGURED)
