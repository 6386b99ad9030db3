"""`python -m koo.testing.providers --vendor anthropic --port 8901 [--instant]`: a fake provider for experiments."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from asyncio import CancelledError

from koo.testing.providers.anthropic import FakeAnthropic
from koo.testing.providers.gemini import FakeGemini
from koo.testing.providers.instant import VENDORS, serve
from koo.testing.providers.openai import FakeCompatible, FakeOpenAI
from koo.testing.providers.perplexity import FakePerplexity
from koo.testing.providers.server import HOST, FakeProvider

MAKERS: dict[str, type[FakeProvider]] = {
    "anthropic": FakeAnthropic, "openai": FakeOpenAI, "compatible": FakeCompatible, "gemini": FakeGemini,
    "perplexity": FakePerplexity,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m koo.testing.providers", description=__doc__)
    parser.add_argument("--vendor", choices=MAKERS, default="anthropic")
    parser.add_argument("--port", type=int, default=0, help="0 for a free port")
    parser.add_argument("--key", default=None, help="the key that clients must send; by default any")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each response")
    parser.add_argument(
        "--instant", action="store_true", help="send prepared bytes and check nothing, for benchmarks"
    )
    options = parser.parse_args()
    if options.instant and options.vendor not in VENDORS:
        parser.error(f"--instant is available only for {', '.join(VENDORS)}")
    with contextlib.suppress(KeyboardInterrupt, CancelledError):
        asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if options.instant:
        await serve(options.vendor, options.port, _announce)
        return
    server = MAKERS[options.vendor](key=options.key, port=options.port, latency_s=options.latency)
    async with server:
        _announce(server.port)
        await asyncio.Event().wait()


def _announce(port: int) -> None:
    sys.stdout.write(f"http://{HOST}:{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
