"""Warn of secrets that would be sent to another machine unencrypted, once per secret and process."""

from __future__ import annotations

import logging
from functools import cache
from urllib.parse import urlsplit

from koo.http.proxies import Proxy, is_loopback

log = logging.getLogger("koo")


def warn_of_plain_http(what: str, url: str, proxy: Proxy | None = None) -> None:
    """Warn if `what`, such as "the key of claude", or the proxy's password would be sent over plain http://."""
    if _is_open(url):
        _say(f"{what} goes to {urlsplit(url).hostname} over plain http://")
    warn_of_proxy(proxy)


def warn_of_proxy(proxy: Proxy | None) -> None:
    """Warn if a proxy's password would be sent unencrypted."""
    if proxy is not None and proxy.credentials and _is_open(proxy.url):
        _say(f"the password of the proxy {proxy} goes to it over plain http://")


def _is_open(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback((parts.hostname or "").rstrip("."))


@cache
def _say(what: str) -> None:
    log.warning("%s, where others can read it; use https:// or a tunnel", what)
