"""One contender of the query benchmark in a separate process: `python -m benchmarks.query_process NAME URL`.

It prints `{"ready": …}` after its first correct response. Then it reads a number of seconds from each line, sends
queries for that time, fifty at a time, and prints the number of queries per second. A contender that reads streams
sends five at a time, and prints the processor time of this process, in microseconds, for each event with a piece of
the answer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from typing import IO, Any

from benchmarks.contenders import CONTENDERS, Ask
from benchmarks.peers import NotMeasured
from benchmarks.streamers import STREAMED, STREAMERS

IN_FLIGHT = 50
STREAMS_IN_FLIGHT = 5
"""Fifty streams would keep the slowest peer busy for half a minute."""
PIECES = 200
"""Pieces of a streamed answer; a test checks that the server sends as many."""
WARM_SHARE = 0.2
"""Share of the time that is spent before counting starts, to replace connections that have been closed as idle."""


def use_one_core() -> None:
    """Bind all threads of this process to one core; some peers start their own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


async def calls(ask: Ask, for_s: float, in_flight: int) -> int:
    """Keep this many calls in flight; all that were started are awaited and counted."""
    calls = 0
    began = time.perf_counter()

    async def work() -> None:
        nonlocal calls
        while time.perf_counter() - began < for_s:
            await ask()
            calls += 1

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return calls


async def calls_a_second(ask: Ask, for_s: float) -> float:
    began = time.perf_counter()
    count = await calls(ask, for_s, IN_FLIGHT)
    return count / (time.perf_counter() - began)


async def cpu_us_an_event(ask: Ask, for_s: float) -> float:
    began = time.process_time()
    count = await calls(ask, for_s, STREAMS_IN_FLIGHT)
    return (time.process_time() - began) / (count * PIECES) * 1e6


async def serve(name: str, url: str, say: IO[str]) -> None:
    """Serve until standard input ends."""

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=say, flush=True)

    async with AsyncExitStack() as stack:
        try:
            contender = (CONTENDERS | STREAMERS)[name]
            ask = await contender.make(url, stack)
        except NotMeasured as error:
            tell(not_measured=str(error))
            return
        answer = str(await ask())
        streams = contender.figure == STREAMED
        if answer.count("Paris") < (PIECES if streams else 1):
            raise RuntimeError(f"this should be a response: {answer[:200]}")
        tell(ready=True)
        # Blocking, so that nothing in this process runs while the others are measured.
        for line in sys.stdin:
            gc.collect()
            measure = cpu_us_an_event if streams else calls_a_second
            await measure(ask, float(line) * WARM_SHARE)
            tell(figure=await measure(ask, float(line)))


def main() -> None:
    # Some peers log to standard output.
    say = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    use_one_core()
    asyncio.run(serve(sys.argv[1], sys.argv[2], say))


if __name__ == "__main__":
    main()
