"""The cost of open pages: the server's processor time with ten live streams, compared with the same time without any.

Five services are called twice a second each and the database is used, so almost every part of the page is sent every
second. The clients run in a separate process, and the streams use real sockets.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from sqlalchemy import text

from benchmarks.measure import Report
from koo.options import PlatformOptions
from koo.platform import Platform
from koo.web.app import create_app
from koo.web.listener import bind
from koo.web.live import live_of
from koo.web.server import make_server

SERVICES, PAGES = 5, 10
SECONDS = 6.0
CALLS_EVERY_S = 0.5
READER = """
import selectors, socket, sys
port, pages = int(sys.argv[1]), int(sys.argv[2])
ready = selectors.DefaultSelector()
for _ in range(pages):
    one = socket.create_connection(("127.0.0.1", port))
    one.sendall(b"GET /api/v1/monitoring/live HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
    ready.register(one, selectors.EVENT_READ)
while ready.get_map():
    for key, _ in ready.select():
        if not key.fileobj.recv(65536):
            ready.unregister(key.fileobj)
"""


async def _use(koo: Platform) -> None:
    async def answer() -> str:
        return "ok"

    while True:
        for number in range(SERVICES):
            await koo.execute(f"service{number}", answer)
        async with koo.database.session_scope() as session:
            await session.execute(text("SELECT 1"))
        await asyncio.sleep(CALLS_EVERY_S)


@asynccontextmanager
async def _serving(home: Path) -> AsyncIterator[tuple[Platform, int]]:
    koo = Platform(PlatformOptions(home=home))
    for number in range(SERVICES):
        koo.register_service(f"service{number}")
    server = make_server(koo, create_app(koo))
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
    with bind("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        using = asyncio.create_task(_use(koo))
        try:
            yield koo, listener.getsockname()[1]
        finally:
            using.cancel()
            server.should_exit = True
            await asyncio.gather(serving, using, return_exceptions=True)


async def _cpu_share() -> float:
    began, began_cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(SECONDS)
    return (time.process_time() - began_cpu) / (time.perf_counter() - began)


async def report(rounds: int = 7) -> Report:
    """Per cent of a core, in excess of a server without open pages."""
    found = Report()
    with tempfile.TemporaryDirectory() as home:
        async with _serving(Path(home)) as (koo, port):
            await _cpu_share()  # lets everything be created that is created on first use
            for _ in range(rounds):
                alone = await _cpu_share()
                reader = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", READER, str(port), str(PAGES)
                )
                while len(live_of(koo)) < PAGES:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                await asyncio.sleep(1)
                watched = await _cpu_share()
                reader.terminate()
                await reader.wait()
                found.note("koo: ten pages' live streams, % of a core", 100 * (watched - alone))
    return found
