"""The proxy of `koo.testing.http_proxy` leaves nothing open. Its other functions are tested in tests/network."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import suppress

from koo.testing.http_proxy import pump

Ends = tuple[StreamReader, StreamWriter]


def test_a_pump_that_is_cancelled_at_any_step_closes_its_connections() -> None:
    """One side has just disconnected, and the proxy ends at the same moment."""

    async def main(turns: int) -> None:
        met: asyncio.Queue[Ends] = asyncio.Queue()

        async def serve(reader: StreamReader, writer: StreamWriter) -> None:
            await met.put((reader, writer))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        clients = [await asyncio.open_connection(host, port) for _ in range(2)]
        one, other = await met.get(), await met.get()
        pumping = asyncio.ensure_future(pump(one, other))
        clients[0][1].close()
        for _ in range(turns):
            await asyncio.sleep(0)
        pumping.cancel()
        with suppress(asyncio.CancelledError):
            await pumping
        assert other[1].is_closing(), f"after {turns} turns"
        for _, writer in (one, other, clients[1]):
            writer.close()
        server.close()

    for turns in range(1, 12):
        asyncio.run(main(turns))
