"""A machine whose only way out is a proxy: host names without an address, servers behind the proxy, certificates."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from koo.ai.types import Answer, Query
from koo.errors import ExternalServiceError
from koo.network_options import NetworkOptions
from koo.options import DatabaseOptions, PlatformOptions, RetryOptions, ServiceOptions
from koo.platform import Platform
from koo.testing.http_proxy import FakeHttpProxy, pump
from koo.testing.providers import FakeProvider

NAME = "ai.example"
"""A name that no resolver has, because RFC 2606 reserves it."""
PASSWORD = "p@ss/w:örd"
"""Each of these characters has to be quoted in a URL."""
QUESTION = Query(service="claude", prompt="Capital of France?", max_tokens=50)


def service(base_url: str, **options: Any) -> ServiceOptions:
    options = {"retry": RetryOptions(base_s=0.001, cap_s=0.01, attempts_max=2), **options}
    return ServiceOptions(
        name="claude",
        kind="anthropic",
        model="claude-sonnet-5-5",
        api_key="test-key",
        base_url=base_url,
        **options,
    )


def platform(home: Path, one: ServiceOptions, network: NetworkOptions) -> Platform:
    return Platform(
        PlatformOptions(
            home=home,
            state_url=f"sqlite:///{home / 'state.db'}",
            database=DatabaseOptions(url=f"sqlite:///{home / 'user.db'}"),
            services=(one,),
            network=network,
        )
    )


def ask(koo: Platform, **changes: Any) -> Answer:
    """Send one query in a new event loop. Raises whatever the query raises."""

    async def main() -> Answer:
        async with koo:
            return await koo.query(replace(QUESTION, **changes))

    return asyncio.run(main())


def failure(koo: Platform, **changes: Any) -> ExternalServiceError:
    with pytest.raises(ExternalServiceError) as caught:
        ask(koo, **changes)
    return caught.value


def certificate(folder: Path, *names: str) -> Path:
    """Make a self-signed certificate for these names; its key is in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, made = folder / "key.pem", folder / "authority.pem"
    names_too = ",".join(f"DNS:{name}" for name in names)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={names_too}", "-keyout", str(key), "-out", str(made)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@contextmanager
def tls(server: FakeProvider, made: Path) -> Iterator[tuple[str, int]]:
    """Put a TLS server with this certificate in front of a fake provider; yields its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, made.with_name("key.pem"))
    ready, place = threading.Event(), list[int]()
    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    tasks: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            there = await asyncio.open_connection("127.0.0.1", server.port)
            await pump((reader, writer), there)
        finally:
            # `close` would wait for the client's TLS shutdown, and the transport would outlive this loop.
            writer.transport.abort()

    async def run() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        ends.append((loop, end))
        # If the client gives up a handshake, the server's side reports an error, which is expected.
        loop.set_exception_handler(lambda *_: None)
        front = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        place.append(front.sockets[0].getsockname()[1])
        ready.set()
        await end.wait()
        front.close()
        await asyncio.sleep(0)  # a connection accepted in this turn of the loop gets its task in the next
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield "127.0.0.1", place[0]
    finally:
        loop, end = ends[0]
        loop.call_soon_threadsafe(end.set)
        thread.join()


@contextmanager
def proxied(server: FakeProvider, **options: Any) -> Iterator[FakeHttpProxy]:
    """A proxy that is the only way to `http://ai.example`."""
    with FakeHttpProxy(reaches={f"{NAME}:80": ("127.0.0.1", server.port)}, **options) as proxy:
        yield proxy


@contextmanager
def tunnelled(server: FakeProvider, authority: Path, **options: Any) -> Iterator[FakeHttpProxy]:
    """A proxy that is the only way to `https://ai.example`, which has this certificate."""
    with tls(server, authority) as front, FakeHttpProxy(reaches={f"{NAME}:443": front}, **options) as proxy:
        yield proxy
