"""What the processes on one state store share: resets, overrides, pauses and refused keys.

A reset that reaches one worker of four leaves three that refuse. So an operator's act goes to the store too, and every
process follows with its next beat (`fleet/beats.py`). So do pauses that a provider asked for and keys that it refused,
since both concern all processes with the same key. Breakers are not shared: each opens on its own process's evidence.

A pause or a refused key belongs to a credential: its signal names the credential (by a short digest, never the key),
and a process with another key does not follow. A starting process replays earlier signals in order, so that a reset
undoes what came before it. An old key refusal is skipped: a script that runs for a second never lives to see a key
check, and would otherwise be refused for ever after one wrong key.

What comes from another process is applied to the policies directly and publishes no event. Otherwise two processes
would echo one another for ever.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from koo.ai.service import Service
from koo.breakers import DATABASE, Breakers
from koo.clock import Clock
from koo.errors import Kind
from koo.events import CooldownBegan, Event, KeyBlocked, KeyUnblocked
from koo.forks import leave_behind
from koo.openings import Act
from koo.options import NEVER
from koo.policies.breaker import Override
from koo.policies.key_block import CHECK_S_MIN
from koo.storage.base import Signal, SignalKind, Store, StoreUnavailable

log = logging.getLogger("koo")

EVERY_MODEL = ""


class Sharing:
    """Publishes to the store what happened here, and applies here what other processes published."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        services: Callable[[], Mapping[str, Service]],
        breakers: Breakers,
        key_of: Callable[[str], str | None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._services = services
        self._breakers = breakers
        self._key_of = key_of
        self.seen: int | None = None
        """The number of the last signal that is applied here."""
        self._names: set[str] = set()  # under which this process has published, one for each opening
        self._unpublished: deque[tuple[SignalKind, str, dict[str, Any] | None]] = deque(maxlen=1000)
        self._publishing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # ── publishing ──────────────────────────────────────────────────────────────────────────────────────────

    def on_event(self, event: Event) -> None:
        """Publish those events of this process that concern the others."""
        if isinstance(event, CooldownBegan):
            until = self._clock.wall() + event.for_s
            payload = {"until": until, "for_s": event.for_s, "reason": event.reason, "kind": event.kind.value}
            name = event.source.partition("/")[0]
            target = name if event.whole_service else event.source
            self.publish("cooldown", target, payload | self._credential_of(name, event.credential))
        elif isinstance(event, KeyBlocked):
            payload = {"model": event.model or EVERY_MODEL, "reason": event.reason, "latched": True}
            self.publish("latch", event.source, payload | self._credential_of(event.source, event.credential))
        elif isinstance(event, KeyUnblocked):
            payload = {"model": event.model or EVERY_MODEL, "latched": False}
            self.publish("latch", event.source, payload | self._credential_of(event.source, event.credential))

    def _credential_of(self, name: str, foreign: str = "") -> dict[str, str]:
        """The credential that a service has here: enough to tell two keys apart, and too little to find one.

        `foreign`: the digest of a client's own. It stands under both names, so that a koo which knows no others takes
        it for a key that it does not have.
        """
        if foreign:
            return {"credential": foreign, "foreign": foreign}
        key = self._key_of(name) or ""
        return {"credential": hashlib.sha256(key.encode()).hexdigest()[:8]}

    def publish(self, kind: SignalKind, target: str, payload: dict[str, Any] | None = None) -> None:
        """Publish to all other processes, in the background; it does not wait for a store that is away."""
        self._unpublished.append((kind, target, payload))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is not None and self._loop.is_running():
                # From another thread: the store belongs to the loop that follows it.
                self._loop.call_soon_threadsafe(self._begin_to_publish, self._loop)
            else:
                asyncio.run(self._publish_alone())
            return
        self._begin_to_publish(loop)

    def _begin_to_publish(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._publishing is None or self._publishing.done():
            self._publishing = loop.create_task(self.flush(), name="koo Sharing")

    async def _publish_alone(self) -> None:
        """From a script without a loop: open the store for this one signal."""
        await self.flush()
        await self._store.close()

    async def flush(self) -> None:
        """Publish what is not published yet."""
        while self._unpublished:
            signal = self._unpublished[0]
            kind, target, payload = signal
            try:
                await self._store.signals.publish(kind, target, payload)
                self._names.add(self._store.process)
            except StoreUnavailable as error:
                log.warning("a %s of %s did not reach other processes: %s", kind, target, error)
            # It leaves the queue only now, so that a flush which is cancelled loses none. The flush at closing may run
            # beside one in the background, which has then removed it already.
            if self._unpublished and self._unpublished[0] is signal:
                self._unpublished.popleft()

    def forget_parent(self) -> None:
        """In a forked child: what is not published yet, the parent publishes."""
        leave_behind(self._loop, self._publishing)
        self._loop = self._publishing = None
        self._unpublished.clear()

    # ── following ───────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Acts from other threads are published on the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def end(self) -> None:
        """That loop publishes no longer."""
        self._loop = None

    def take(self, signals: Iterable[Signal]) -> None:
        """Apply what other processes did since `seen`, in order."""
        for signal in signals:
            self.seen = signal.id
            if signal.process not in self._names:
                self._apply(signal, new=True)

    async def catch_up(self) -> int | None:
        """Apply earlier signals, in their order; returns the number of the last one."""
        try:
            signals = await self._store.signals.latest()
        except StoreUnavailable:
            return self.seen
        # Opened again, this process knows more than it did: what it has seen must not undo what it learned since.
        before, self.seen = self.seen, signals[-1].id if signals else 0
        for signal in _without_undone(signals):
            if signal.id > (before or 0) and signal.process not in self._names:
                self._apply(signal, new=before is not None)
        return self.seen

    def _apply(self, signal: Signal, *, new: bool) -> None:
        try:
            if signal.kind == "reset":
                self._reset(signal.target, act_of(signal.payload), new)
            elif signal.kind == "limits":
                self._forget_used(signal.target, new)
            elif signal.kind == "override":
                self._override(signal)
            elif signal.kind == "cooldown":
                self._cool_down(signal)
            elif signal.kind == "latch":
                self._block_key(signal, new)
        except (KeyError, ValueError, TypeError):
            log.warning("a %s of %s from another process could not be read", signal.kind, signal.target)
        except Exception:  # whatever one signal meets here must not keep the later ones from being followed
            log.exception("a %s of %s from another process could not be applied", signal.kind, signal.target)

    def _reset(self, target: str, act: Act, new: bool) -> None:
        if target == DATABASE:
            # One from before our start can only reset an older operator's override.
            if new:
                self._breakers.reset_database(act)
            else:
                self._breakers.override(DATABASE, Override.NONE)
            return
        service = self._services().get(target)
        if service is not None:
            service.reset(act, publish=False)
        else:
            self._breakers.reset(target, act)

    def _forget_used(self, target: str, new: bool) -> None:
        service = self._services().get(target)
        # A process that starts later has used nothing yet; what it restored of the day was counted after the reset.
        if service is not None and new:
            service.forget_used(stored=True)

    def _override(self, signal: Signal) -> None:
        act, now = act_of(signal.payload), self._clock.wall()
        left_s = NEVER if act.until is None else act.until - now
        if left_s > 0:
            override, ends_at = Override(signal.payload["override"]), self._clock.monotonic() + left_s
            self._breakers.override(signal.target, override, act, ends_at)

    def _cool_down(self, signal: Signal) -> None:
        left_s = float(signal.payload["until"]) - self._clock.wall()
        # A clock that is behind the other process's must not make the pause longer than it was.
        left_s = min(left_s, float(signal.payload.get("for_s", left_s)))
        name, _, model = signal.target.partition("/")
        service = self._service_of(name, signal)
        if service is not None and left_s > 0:
            kind, foreign = Kind(signal.payload["kind"]), str(signal.payload.get("foreign", ""))
            service.pause(model, left_s, kind, str(signal.payload["reason"]), foreign)

    def _block_key(self, signal: Signal, new: bool) -> None:
        service = self._service_of(signal.target, signal)
        if service is None:
            return
        model, foreign = signal.payload["model"] or None, str(signal.payload.get("foreign", ""))
        gates = service.credentials.gates(foreign) if foreign else service.gates
        if not signal.payload["latched"]:
            gates.key_blocks.remove(model, self._clock.monotonic())
            return
        ago_s = max(self._clock.wall() - signal.at, 0.0)
        if new or ago_s < CHECK_S_MIN:
            since = self._clock.monotonic() - ago_s
            gates.block_key(model, str(signal.payload["reason"]), since)

    def _service_of(self, name: str, signal: Signal) -> Service | None:
        """The service that a signal is about, if it has the same credential here, or one that is a client's own."""
        if "foreign" in signal.payload:
            return self._services().get(name)
        if signal.payload.get("credential") in (None, self._credential_of(name)["credential"]):
            return self._services().get(name)
        return None


def _without_undone(signals: Sequence[Signal]) -> Iterable[Signal]:
    """Earlier signals without overrides that a later reset removed: no breaker is forced open for a moment."""
    resets = {signal.target: signal.id for signal in signals if signal.kind == "reset"}
    for signal in signals:
        names = signal.target, signal.target.partition("/")[0]
        is_undone = any(resets.get(name, 0) > signal.id for name in names)
        if signal.kind != "override" or not is_undone:
            yield signal


def said(act: Act | None) -> dict[str, Any]:
    """Who did it and why, as a signal carries it."""
    return {} if act is None else {"by": act.by, "reason": act.reason, "until": act.until}


def act_of(payload: Mapping[str, Any]) -> Act:
    """The same, out of a signal; an older koo sends none."""
    until = payload.get("until")
    return Act(
        str(payload.get("by") or ""),
        str(payload.get("reason") or ""),
        None if until is None else float(until),
    )
