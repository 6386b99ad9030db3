"""What processes on one state store tell one another: resets, overrides, pauses and refused keys.

A reset that reaches one worker of four leaves three that refuse. So an operator's act goes to the store too, and every
process follows within a second; so do pauses that a provider asked for and keys that it refused, since both concern all
who use the same key. Breakers are not told: each process opens on its own evidence.

A pause or a refused key belongs to the credential: it says which one it means (by a short digest, never the key), and
a process that has another key does not follow. Who starts does what was told before, in its order, so that a reset
undoes what came before it; but a key that was refused a while ago is tried again. Else a script that runs for a second,
and so lives to see no check of the key, would be refused for ever after one wrong key.

What comes from another process is applied to the policies directly, never through the events that were told: else two
processes would echo one another for ever.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from koo.ai.service import Service
from koo.clock import Clock
from koo.errors import Kind
from koo.events import CooldownBegan, Event, KeyBlocked, KeyUnblocked
from koo.policies.breaker import Override
from koo.policies.key_block import CHECK_S_MIN
from koo.storage.base import Signal, SignalKind, Store, StoreUnavailable

log = logging.getLogger("koo")

DATABASE = "database"
EVERY_MODEL = ""


class Sharing:
    """Tells the store what happened here, and does here what the store tells."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        services: Callable[[], Mapping[str, Service]],
        reset_database: Callable[[], object],
        key_of: Callable[[str], str | None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._services = services
        self._reset_database = reset_database
        self._key_of = key_of
        self._seen: int | None = None  # the number of the last act that is done here too
        self._unsaid: deque[tuple[SignalKind, str, dict[str, Any] | None]] = deque(maxlen=1000)
        self._telling: asyncio.Task[None] | None = None

    # ── telling ───────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, event: Event) -> None:
        """An event of this process: what concerns others is told to them."""
        if isinstance(event, CooldownBegan):
            until = self._clock.wall() + event.for_s
            payload = {"until": until, "reason": event.reason, "kind": event.kind.value}
            name = event.source.partition("/")[0]
            target = name if event.whole_service else event.source
            self.tell("cooldown", target, payload | self._whose(name))
        elif isinstance(event, KeyBlocked):
            payload = {"model": event.model or EVERY_MODEL, "reason": event.reason, "latched": True}
            self.tell("latch", event.source, payload | self._whose(event.source))
        elif isinstance(event, KeyUnblocked):
            payload = {"model": event.model or EVERY_MODEL, "latched": False}
            self.tell("latch", event.source, payload | self._whose(event.source))

    def _whose(self, name: str) -> dict[str, str]:
        """The credential that a service has here: enough to tell two keys apart, and too little to find one."""
        key = self._key_of(name) or ""
        return {"credential": hashlib.sha256(key.encode()).hexdigest()[:8]}

    def tell(self, act: SignalKind, target: str, payload: dict[str, Any] | None = None) -> None:
        """Tell all other processes, in the background; a store that is away is not waited for."""
        self._unsaid.append((act, target, payload))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._tell_alone())
            return
        if self._telling is None or self._telling.done():
            self._telling = loop.create_task(self.finish(), name="koo Sharing tells")

    async def _tell_alone(self) -> None:
        """From a script without a loop: open the store for this one act."""
        await self.finish()
        await self._store.close()

    async def finish(self) -> None:
        """Tell what is not told yet; what was cut short is told by whoever comes last."""
        while self._unsaid:
            act, target, payload = self._unsaid[0]
            try:
                await self._store.signals.publish(act, target, payload)
            except StoreUnavailable as error:
                log.warning("other processes were not told of a %s of %s: %s", act, target, error)
            if self._unsaid and self._unsaid[0] == (act, target, payload):
                self._unsaid.popleft()

    # ── following ─────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Do what other processes tell, until cancelled. Begins with what they told before this one started."""
        async for signal in self._store.signals.follow(await self.catch_up()):
            self._seen = signal.id
            self._apply(signal, new=True)

    async def catch_up(self) -> int | None:
        """Do what was told before now, in its order; gives the number of the last act."""
        try:
            signals = await self._store.signals.latest()
        except StoreUnavailable:
            return self._seen
        # Opened again, this process knows more than it did: what it has seen must not undo what it learned since.
        before, self._seen = self._seen, signals[-1].id if signals else 0
        for signal in signals:
            if signal.id > (before or 0) and signal.process != self._store.process:
                self._apply(signal, new=before is not None)
        return self._seen

    def _apply(self, signal: Signal, *, new: bool) -> None:
        try:
            if signal.kind == "reset":
                self._reset(signal.target, new)
            elif signal.kind == "override":
                self._override(signal)
            elif signal.kind == "cooldown":
                self._cool_down(signal)
            elif signal.kind == "latch":
                self._block_key(signal, new)
        except (KeyError, ValueError, TypeError):
            log.warning("a %s of %s from another process could not be read", signal.kind, signal.target)

    def _reset(self, target: str, new: bool) -> None:
        if target == DATABASE:
            if (
                new
            ):  # nothing is told of a database but resets: one from before our start finds nothing to reset
                self._reset_database()
            return
        service = self._services().get(target)
        if service is not None:
            service.reset(tell=False)

    def _override(self, signal: Signal) -> None:
        service = self._services().get(signal.target)
        if service is not None:
            service.set_override(Override(signal.payload["override"]))

    def _cool_down(self, signal: Signal) -> None:
        left_s = float(signal.payload["until"]) - self._clock.wall()
        name, _, model = signal.target.partition("/")
        service = self._meant(name, signal)
        if service is not None and left_s > 0:
            service.pause(model, left_s, Kind(signal.payload["kind"]), str(signal.payload["reason"]))

    def _block_key(self, signal: Signal, new: bool) -> None:
        service = self._meant(signal.target, signal)
        if service is None:
            return
        model = signal.payload["model"] or None
        if not signal.payload["latched"]:
            service.gates.key_blocks.clear()
            return
        ago_s = max(self._clock.wall() - signal.at, 0.0)
        if new or ago_s < CHECK_S_MIN:
            since = self._clock.monotonic() - ago_s
            service.gates.invalidate()
            service.gates.key_blocks.set(model, Kind.AUTH, str(signal.payload["reason"]), since)

    def _meant(self, name: str, signal: Signal) -> Service | None:
        """The service that a signal is about, if it has the same credential here."""
        said = signal.payload.get("credential")
        return self._services().get(name) if said in (None, self._whose(name)["credential"]) else None
