"""Simulates other processes on a platform's store by the rows that they would write."""

from __future__ import annotations

from koo.platform import Platform
from koo.policies.fleet import GuardKey, GuardLine, Presence, Told
from koo.storage.store import SqlStore

NOBODY = Presence(ledger="", host="elsewhere", worker="", pid=1, version="1", label="", configuration="{}")


def key_of(platform: Platform, name: str) -> GuardKey:
    """The fleet's key of the guard of a service's default model."""
    wanted = platform.services[name].default_guard
    return next(key for key, guard in platform.parts._guards() if guard is wanted)


async def say(url: str, *lines: GuardLine, count: int = 3) -> None:
    """Write one beat of this many other processes, with this report of their guards. It counts for five seconds."""
    for _ in range(count):
        other = SqlStore(url)
        await other.roll_call.beat(Told(presence=NOBODY, anew=lines))
        await other.executor.stop()


async def say_open(platform: Platform, *names: str, count: int = 3) -> None:
    """Let this many other processes report the breakers of these services as open."""
    lines = [GuardLine(key_of(platform, name), "open", True, 0.0, 5) for name in names]
    await say(platform.options.state_url, *lines, count=count)
