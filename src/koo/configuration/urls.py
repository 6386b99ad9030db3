"""Check URLs, resolve relative paths in them, and mask their secrets for display.

The checks parse no more of a URL than they need. They raise `ValueError` with what was expected, never with the URL.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from koo.database_urls import check_place
from koo.http.proxies import is_address, read_proxy
from koo.paths import absolute, placed
from koo.sqlite_url import check_sqlite_url

DATABASE_SCHEMES = (
    "sqlite",
    "sqlite+aiosqlite",
    "postgresql",
    "postgresql+psycopg",
    "postgresql+asyncpg",
)
ALLOWED_DATABASES = f"a URL that begins with one of {', '.join(f'{one}://' for one in DATABASE_SCHEMES)}"
ALLOWED_HOSTS = "an IP address or a host name, without scheme and port"
ALLOWED_WEB = "a URL that begins with http:// or https://, without user, password, ? and #"
ALLOWED_WEBHOOK = "a URL that begins with http:// or https://, without user, password and #"

_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}\.?)+")


def effective_database_url(url: str, home: Path) -> str:
    """The URL to use: `postgres://` becomes `postgresql://`, and an SQLite file's relative path starts at `home`.

    Raises `ValueError` for an invalid scheme, port or path.
    """
    scheme, rest = _split(url)
    scheme = "postgresql" if scheme == "postgres" else scheme
    if scheme not in DATABASE_SCHEMES:
        raise ValueError(f"expected {ALLOWED_DATABASES}")
    if scheme.startswith("sqlite"):
        return f"{scheme}://{_absolute(rest, home)}"
    check_place(rest)
    return f"{scheme}://{rest}"


def effective_state_url(url: str, home: Path) -> str:
    """Like `effective_database_url`, for koo's own state, which needs a file or a server. Raises `ValueError`."""
    scheme, rest = _split(url)
    if scheme.startswith("sqlite") and (rest in {"", "/", "/:memory:"} or "?" in rest):
        raise ValueError("expected sqlite:/// followed by the path of a file, without options")
    return effective_database_url(url, home)


def _split(url: str) -> tuple[str, str]:
    # `urlsplit` would remove tabs and line breaks from a URL without an error, which could change a password.
    parts = _PARTS.fullmatch(url)
    if parts is None or any(ord(letter) < 32 for letter in url):
        return "", ""
    return parts[1].lower(), parts[2]


def _absolute(rest: str, home: Path) -> str:
    if rest and not rest.startswith("/"):
        raise ValueError(
            "expected sqlite:/// and a path relative to KOO_HOME, or sqlite://// and an absolute path"
        )
    path, question, query = rest[1:].partition("?")
    check_sqlite_url(path, dict(parse_qsl(query, keep_blank_values=True)))
    if path in {"", ":memory:"} or path.startswith("file:"):
        return rest
    absolute(unquote(path), home)  # raises if its links form a loop
    # The links are not followed here: koo's check of the file must see a link that another user has put there.
    place = placed(unquote(path), home)
    if place.is_dir():
        raise ValueError("expected the path of a file, but this is a folder")
    # The path is quoted, because SQLAlchemy reads %41 as A, and takes everything after a ? as options. A file with such
    # a name would otherwise be created under another one.
    return f"/{quote(place.as_posix(), safe='/:')}{question}{query}"


def sqlite_file(url: str) -> Path | None:
    """The SQLite file of an effective URL, without symbolic links; None for a server or memory."""
    scheme, rest = _split(url)
    path = unquote(rest.partition("?")[0])[1:].removeprefix("file:")
    return Path(path).resolve() if scheme.startswith("sqlite") and path not in {"", ":memory:"} else None


def check_web_url(url: str) -> str:
    """The URL of a server without a trailing slash. Raises `ValueError` for an invalid URL, or one with a user or
    password."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or re.search(r"[\s?#@\\]|[^\x21-\x7e]", url):
        raise ValueError(f"expected {ALLOWED_WEB}")
    return url.rstrip("/")


def check_webhook_url(url: str) -> str:
    """A webhook's URL, unchanged, because the receiver may identify koo by its path and query. Raises `ValueError`."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or "@" in url.partition("://")[2].partition("/")[0] or re.search(r"[^\x21-\x7e]|[#\\]", url):
        raise ValueError(f"expected {ALLOWED_WEBHOOK}")
    return url


def check_proxy_url(url: str) -> str:
    """The URL of a proxy that koo can use. Raises `ValueError`."""
    read_proxy(url)
    return url


def check_host(host: str) -> str:
    """An IP address or host name to listen on. Raises `ValueError`."""
    if not is_address(host) and not _HOST_NAME.fullmatch(host):
        raise ValueError(f"expected {ALLOWED_HOSTS}")
    return host


def url_of(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens on `host` and `port`."""
    # A server that listens on 0.0.0.0 or :: is reached at the loopback address: connecting to the unspecified address
    # works only on some systems.
    if is_address(host) and ip_address(host).is_unspecified:
        host = "127.0.0.1" if ip_address(host).version == 4 else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def mask_url(url: str) -> str:
    """The URL for display, without user, password and the values of its options."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return "…"
    scheme, rest = parts[1], parts[2]
    if not scheme.startswith("sqlite") and "@" in rest:
        # Everything up to the last @ is hidden. If a password contains an unquoted @, / or ?, the part after it would
        # otherwise be shown.
        rest = "…@" + rest.rpartition("@")[2]
    rest, question, query = rest.partition("?")
    names = (option.partition("=")[0] for option in query.split("&"))
    return f"{scheme}://{rest}" + (question + "&".join(f"{name}=…" for name in names) if question else "")


def mask_to_scheme(url: str) -> str:
    """The scheme of a URL that could not be parsed, and nothing else of it."""
    parts = _PARTS.fullmatch(url)
    return f"{parts[1]}://…" if parts and len(parts[1]) <= 24 else "…"
