"""The database and server URLs that are used, and how URLs are masked for display."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koo.configuration.urls import (
    check_web_url,
    effective_database_url,
    effective_state_url,
    mask_to_scheme,
    mask_url,
    url_of,
)
from koo.database.drivers.loading import read_url
from koo.http.proxies import is_loopback

HOME = Path("/srv/koo")


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("sqlite:///data/koo.db", "sqlite:////srv/koo/data/koo.db"),
        ("sqlite:////var/x.db", "sqlite:////var/x.db"),
        (
            "sqlite+aiosqlite:///../x.db?cached_statements=3",
            "sqlite+aiosqlite:////srv/x.db?cached_statements=3",
        ),
        ("SQLite:///x.db", "sqlite:////srv/koo/x.db"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite:///file:x.db?uri=true", "sqlite:///file:x.db?uri=true"),
        ("postgres://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql:///d?host=/run/pg", "postgresql:///d?host=/run/pg"),
        ("postgresql+asyncpg://u:p%40@[::1]:5432/d", "postgresql+asyncpg://u:p%40@[::1]:5432/d"),
    ],
)
def test_a_database_url_is_normalized(written: str, used: str) -> None:
    assert effective_database_url(written, HOME) == used


def test_a_link_in_a_files_place_is_not_followed(tmp_path: Path) -> None:
    """Another user may have put it there, and koo's check of the file must see it."""
    (tmp_path / "state.db").symlink_to(tmp_path / "elsewhere")
    assert effective_database_url("sqlite:///state.db", tmp_path) == f"sqlite:///{tmp_path}/state.db"


@pytest.mark.parametrize(
    "url", ["u:p@w/x@h/d", "u:p@w@h/d", "u:p@w:x@h:1/d", "u:p@w?x@h/d", "u:p/w@h/d", "u:1?w@h/d", "u:1/w@h/d"]
)
def test_part_of_a_password_is_not_taken_for_a_host_or_database(url: str) -> None:
    """Otherwise the second half of a password would be shown as the name of a database that does not exist."""
    with pytest.raises(ValueError, match="in a user or password write /"):
        effective_database_url(f"postgresql://{url}", HOME)


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "sqlite:///x.db?a=1"],
)
def test_the_state_store_needs_a_file_or_a_server(url: str) -> None:
    with pytest.raises(ValueError, match="the path of a file"):
        effective_state_url(url, HOME)


@pytest.mark.parametrize("name", ["a b", "50%41", "what?", "é", "x#y", "a&b"])
def test_sqlalchemy_finds_the_file_below_a_home_with_any_name(name: str) -> None:
    """An unquoted `?` in a folder's name would silently create another file."""
    url = effective_database_url("sqlite:///data/koo.db", Path("/srv") / name)
    assert read_url(url).database == f"/srv/{name}/data/koo.db" and not read_url(url).query


def test_a_tilde_in_a_url_means_the_users_home() -> None:
    assert effective_database_url("sqlite:///~/koo.db", HOME) == f"sqlite:///{quote(str(Path.home()))}/koo.db"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h:1/d", "postgresql://…@h:1/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgresql://u:p@w@h/d", "postgresql://…@h/d"),
        ("postgresql://u:p?w/x@h/d", "postgresql://…@h/d"),
        ("postgresql://h/d?password=p&user=u", "postgresql://h/d?password=…&user=…"),
        ("sqlite:////home/a@b/x.db?timeout=1", "sqlite:////home/a@b/x.db?timeout=…"),
        ("no url", "…"),
    ],
)
def test_urls_are_masked_for_display(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@given(st.text(min_size=1, max_size=20).map(lambda text: f"S3CRET{text}S3CRET"))
def test_no_form_of_a_password_is_shown(password: str) -> None:
    for url in (f"postgresql://u:{password}@h/d", f"postgresql://{password}@h:1/d?x={quote(password)}"):
        assert "S3CRET" not in mask_url(url) + mask_to_scheme(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://u@h", "http://h/?a=1", "http://h/#a", "http://h h", "http://h\n", "h", "http:///x", "http://[::1",
        "http://h:0", "http://höst",
    ],
)  # fmt: skip
def test_an_invalid_server_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL that begins with http://"):
        check_web_url(url)


def test_a_server_url_loses_its_trailing_slash() -> None:
    assert check_web_url("https://h:1/v1//") == "https://h:1/v1"


def test_loopback_hosts_are_recognised() -> None:
    assert [
        host for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST") if not is_loopback(host)
    ] == []
    assert [host for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example") if is_loopback(host)] == []


def test_a_listening_server_has_a_local_url() -> None:
    assert url_of("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert url_of("::", 1) == url_of("::1", 1) == "http://[::1]:1"
