"""An invalid URL raises a one-sentence error without any part of a password, in every constructor."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from sqlalchemy import URL, make_url

from koo.database.database import Database
from koo.errors import ConfigurationError
from koo.options import DatabaseOptions
from koo.storage.store import SqlStore

WRONG = [
    "postgresql://app:s3cr@et:t4il@127.0.0.1:5999/appdb",
    "postgresql://app:s3cr@t4il/appdb@db/x",
    "postgresql://app:s3cret@t4il@db/appdb",
    "postgresql+asyncpg://app:s3cr?et@t4il@db/appdb",
    "postgresql://app:s3cret:t4il/appdb",
    "postgresql://app:s3cret@db:t4il/appdb",
    "postgresql://app:s3cret@db:70000/t4il",
    "postgres://app:s3cret@db,t4il:1:2/appdb",
    "sqlite://app:s3cret@db:t4il/x",
    "app:s3cret@t4il/appdb",
    "app:s3cret:t4il://db",
]


@pytest.mark.parametrize("make", [Database, lambda url: Database(DatabaseOptions(url=url)), SqlStore])
@pytest.mark.parametrize("url", WRONG)
def test_no_constructor_repeats_a_password(make: Callable[[str], object], url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(url)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    told = "\n".join(line for line in told.splitlines() if "make(url)" not in line)
    assert "s3cr" not in told and "t4il" not in told
    assert str(caught.value).count("\n") == 0


def test_a_url_parsed_elsewhere_is_checked_too() -> None:
    """SQLAlchemy accepts such a URL, and the driver would try to resolve the end of the password as a host name."""
    read = make_url("postgresql://app:s3cr@t4il@db/appdb")
    with pytest.raises(ConfigurationError, match="@ as %40") as caught:
        Database(read)
    assert "t4il" not in str(caught.value)
    assert Database(URL.create("postgresql", "app", "s3cr@t4il", "::1", 5432, "d")).url.host == "::1"
