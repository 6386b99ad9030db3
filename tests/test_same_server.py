"""If the state store is on the database's own server, one outage affects both and is one alert."""

from __future__ import annotations

import pytest

from koo.database_urls import is_same_server


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql://u:p@db:5432/shop", "postgresql://koo@DB/koo", True),
        ("postgresql+asyncpg://u@db/shop", "postgresql+psycopg://u@db:5432/koo", True),
        ("postgresql://localhost/shop", "postgresql:///koo", True),
        ("postgresql://127.0.0.1:5433/shop", "postgresql://localhost:5433/koo", True),
        ("postgresql://[::1]:5433/shop", "postgresql://localhost:5433/koo", True),
        ("postgresql://db/shop", "postgresql://db:5433/koo", False),
        ("postgresql://db/shop", "postgresql://other/koo", False),
        ("postgresql:///shop?host=/run/pg", "postgresql:///koo?host=/run/pg", True),
        ("postgresql:///shop?host=/run/pg&port=5433", "postgresql:///koo?host=/run/pg", False),
        ("postgresql:///shop?host=a:5432&host=b:5432", "postgresql://u@/koo?host=a,b", True),
        ("postgresql:///shop?host=a:5432&host=b:5432", "postgresql://a/koo", False),
        ("sqlite:///data/koo.db", "sqlite:///data/koo.db", False),
        ("sqlite:///data/koo.db", "postgresql://db/koo", False),
        ("postgresql://db:many/shop", "postgresql://db:many/shop", False),
    ],
)
def test_two_urls_of_the_same_server_are_recognised(one: str, other: str, same: bool) -> None:
    assert is_same_server(one, other) is is_same_server(other, one) is same
