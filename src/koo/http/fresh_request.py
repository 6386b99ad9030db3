"""Requests that aiohttp's session builds from scratch: those with a proxy, and all that `prepared` does not support."""

from __future__ import annotations

import io

import aiohttp

from koo.hidden import Headers
from koo.http.connector import credentials_refused
from koo.http.prepared import Reply
from koo.http.proxies import Proxy

WRITTEN_AT_ONCE_MAX = 512 * 1024
"""Largest body to write in one piece. Copying more into the socket's buffer would delay the loop's other tasks."""


async def ask(
    session: aiohttp.ClientSession,
    proxy: Proxy | None,
    method: str,
    url: str,
    headers: Headers,
    body: bytes | None,
) -> Reply:
    """Send through aiohttp's session. Raises aiohttp's errors, and `TransportError` if a proxy requires a login."""
    # A small body is written in one piece. A large one is written in portions, so that other tasks run in between.
    data = body if body is None or len(body) < WRITTEN_AT_ONCE_MAX else io.BytesIO(body)
    if proxy is None:
        response = await session.request(method, url, headers=headers, data=data, allow_redirects=False)
        return Reply(response.status, response.headers, response.content, response)
    told = {"proxy-authorization": proxy.credentials} if proxy.credentials else {}
    is_plain = url.startswith(
        "http:"
    )  # the proxy reads and forwards the request; for https it opens a tunnel
    response = await session.request(
        method,
        url,
        # The proxy's password must not go into a tunnel: the provider's server would read it.
        headers={**headers, **told} if is_plain else headers,
        data=data,
        allow_redirects=False,
        proxy=proxy.url,
        proxy_headers=told,
    )
    # A plain request is forwarded, so a 407 comes back like a response of the provider, and would be reported as a
    # problem with the provider. Only a proxy sends 407.
    if is_plain and response.status == 407:
        response.close()
        raise credentials_refused(proxy)
    return Reply(response.status, response.headers, response.content, response)
