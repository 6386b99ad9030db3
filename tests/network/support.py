"""A machine whose only way out is a proxy: names that no resolver knows, servers behind them, their certificates."""

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
"""A name that no resolver knows: RFC 2606 keeps it free."""
PASSWORD = "p@ss/w:örd"
"""In a URL each of these has to be written otherwise."""
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
    """One question, in a loop of its own. Raises what it raises."""

    async def main() -> Answer:
        async with koo:
            return await koo.query(replace(QUESTION, **changes))

    return asyncio.run(main())


def failure(koo: Platform, **changes: Any) -> ExternalServiceError:
    with pytest.raises(ExternalServiceError) as caught:
        ask(koo, **changes)
    return caught.value


def certificate(folder: Path, *names: str) -> Path:
    """A self-signed certificate for these names, with its key behind it in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
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
    """A front for a fake provider that speaks TLS with this certificate: where it listens."""
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
            writer.transport.abort()  # Closed, it would wait for the other side's goodbye, and outlive this loop.

    async def run() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        ends.append((loop, end))
        loop.set_exception_handler(lambda *_: None)  # the server's side of a handshake that a client gives up
        front = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        place.append(front.sockets[0].getsockname()[1])
        ready.set()
        await end.wait()
        front.close()
        await asyncio.sleep(0)  # What was accepted in this turn has a task in the next.
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
    """A proxy that alone knows the way to `http://ai.example`."""
    with FakeHttpProxy(reaches={f"{NAME}:80": ("127.0.0.1", server.port)}, **options) as proxy:
        yield proxy


@contextmanager
def tunnelled(server: FakeProvider, authority: Path, **options: Any) -> Iterator[FakeHttpProxy]:
    """A proxy that alone knows the way to `https://ai.example`, whose certificate is this one."""
    with tls(server, authority) as front, FakeHttpProxy(reaches={f"{NAME}:443": front}, **options) as proxy:
        yield proxy
