"""A request that aiohttp's session makes anew: one that is not plain, or that goes through a proxy."""

from __future__ import annotations

import io

import aiohttp

from koo.hidden import Headers
from koo.http.connector import credentials_refused
from koo.http.prepared import Reply
from koo.http.proxies import Proxy

WRITTEN_AT_ONCE_MAX = 512 * 1024


async def ask(
    session: aiohttp.ClientSession,
    proxy: Proxy | None,
    method: str,
    url: str,
    headers: Headers,
    body: bytes | None,
) -> Reply:
    """A request that is made anew. Raises as aiohttp does, and `TransportError` for the proxy's own refusal."""
    # In one piece while it is small; a large one is written bit by bit, so that the loop keeps running.
    data = body if body is None or len(body) < WRITTEN_AT_ONCE_MAX else io.BytesIO(body)
    if proxy is None:
        response = await session.request(method, url, headers=headers, data=data, allow_redirects=False)
        return Reply(response.status, response.headers, response.content, response)
    told = {"proxy-authorization": proxy.credentials} if proxy.credentials else {}
    is_plain = url.startswith("http:")  # The proxy reads it and passes it on; for HTTPS it opens a tunnel.
    response = await session.request(
        method,
        url,
        # Never into a tunnel: the password is the proxy's, and what is inside is the other side's.
        headers={**headers, **told} if is_plain else headers,
        data=data,
        allow_redirects=False,
        proxy=proxy.url,
        proxy_headers=told,
    )
    if is_plain and response.status == 407:
        response.close()
        raise credentials_refused(proxy)
    return Reply(response.status, response.headers, response.content, response)
