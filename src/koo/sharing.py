"""What the processes on one state store share: resets, overrides, pauses and refused keys.

A reset that reaches only one of four workers leaves three that still refuse. So an operator's act is also written to
the store, and every process applies it with its next beat (`fleet/beats.py`). The same holds for pauses that a provider
requested and keys that it refused, because both concern every process with the same key. Breakers are not shared: each
opens on its own process's evidence.

A pause or a refused key belongs to a credential. Its signal contains a short digest of the credential, never the key,
and a process with another key ignores it. A starting process replays earlier signals in order, so that a reset undoes
what came before it. It skips old key refusals: a script that runs for a second ends before the next key check, and
would otherwise be refused forever after one wrong key.

Signals from another process are applied to the policies directly and publish no event. Otherwise two processes would
send the same signal back and forth forever.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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
    """Publishes this process's signals to the store, and applies those of other processes."""

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
        """The number of the last signal that was applied here."""
        self._names: set[str] = set()  # names this process has published under; each opening has a new one
        self._unpublished: deque[tuple[SignalKind, str, dict[str, Any] | None]] = deque(maxlen=1000)
        self._publishing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def obstacle(self) -> str:
        """The end of a message about an act, if other processes cannot receive it; otherwise empty."""
        return "" if self._store.trouble is None else ", in this process only: the state store is unreachable"

    # ── publishing ──────────────────────────────────────────────────────────────────────────────────────────

    def on_event(self, event: Event) -> None:
        """Publish an event of this process if it concerns the others."""
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
        """A digest of the service's credential in this process: it distinguishes two keys, but reveals neither.

        `foreign`: the digest of a client's own key. It is written under both names: an older version of koo, which only
        reads `credential`, then takes it for a key that it does not have, and ignores the signal.
        """
        if foreign:
            return {"credential": foreign, "foreign": foreign}
        key = self._key_of(name) or ""
        return {"credential": hashlib.sha256(key.encode()).hexdigest()[:8]}

    def publish(self, kind: SignalKind, target: str, payload: dict[str, Any] | None = None) -> None:
        """Publish to all other processes in the background, without waiting for an unreachable store."""
        self._unpublished.append((kind, target, payload))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is not None and self._loop.is_running():
                # This is called from another thread: the store's connection belongs to koo's loop.
                self._loop.call_soon_threadsafe(self._begin_to_publish, self._loop)
            else:
                # This is a script without a loop: nothing would run a background task, so publish before returning.
                asyncio.run(self._publish_alone())
            return
        self._begin_to_publish(loop)

    def _begin_to_publish(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._publishing is None or self._publishing.done():
            self._publishing = loop.create_task(self.flush(), name="koo Sharing")

    async def _publish_alone(self) -> None:
        """Open the store for this signal only, in a script without a loop."""
        await self.flush()
        await self._store.close()

    async def flush(self) -> None:
        """Publish all queued signals."""
        while self._unpublished:
            signal = self._unpublished[0]
            kind, target, payload = signal
            try:
                await self._store.signals.publish(kind, target, payload)
                self._names.add(self._store.process)
            except StoreUnavailable as error:
                log.warning("the %s of %s did not reach other processes: %s", kind, target, error)
            # The signal is removed from the queue only now: a flush that is cancelled while it publishes loses none.
            # The flush at closing may run at the same time as one in the background. Both may then publish the same
            # signal, and the second to finish must not remove the next one, which has not been published.
            if self._unpublished and self._unpublished[0] is signal:
                self._unpublished.popleft()

    def forget_parent(self) -> None:
        """In a forked child: drop the queue, because the parent publishes it."""
        leave_behind(self._loop, self._publishing)
        self._loop = self._publishing = None
        self._unpublished.clear()

    # ── following ───────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """From now on, publish other threads' acts on the running loop."""
        self._loop = asyncio.get_running_loop()

    def end(self) -> None:
        """Stop publishing on that loop."""
        self._loop = None

    def take(self, signals: Iterable[Signal]) -> None:
        """Apply the signals of other processes since `seen`, in order."""
        for signal in signals:
            self.seen = signal.id
            if signal.process not in self._names:
                self._apply(signal, new=True)

    async def catch_up(self) -> int | None:
        """Apply earlier signals in order; returns the number of the last one."""
        try:
            signals = await self._store.signals.latest()
        except StoreUnavailable:
            return self.seen
        # If this process has been open before, it has state of its own. Replaying a signal it has already applied would
        # undo what came later: an old override would return after the reset that ended it here.
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
            log.warning("the %s of %s from another process could not be read", signal.kind, signal.target)
        except Exception:  # one signal that fails must not block the later ones
            log.exception(
                "the %s of %s from another process could not be applied", signal.kind, signal.target
            )

    def _reset(self, target: str, act: Act, new: bool) -> None:
        if target == DATABASE:
            # A reset older than this process concerns failures that its breaker never saw; it can only end an override
            # that was replayed just before it.
            if new:
                self._breakers.reset_database(act)
            else:
                self._breakers.override(DATABASE, Override.NONE)
            return
        service = self._services().get(target)
        if service is not None:
            service.reset(act, publish=False)
        else:
            self._breakers.reset(target, act, is_new=False)

    def _forget_used(self, target: str, new: bool) -> None:
        service = self._services().get(target)
        # It is skipped in the replay at start: this process has used nothing yet, and the counts of the day that it
        # restored from the store were written after that reset.
        if service is not None and new:
            service.forget_used(stored=True)

    def _override(self, signal: Signal) -> None:
        act, now = replace(act_of(signal.payload), at=signal.at), self._clock.wall()
        left_s = NEVER if act.until is None else act.until - now
        if left_s > 0:
            override, ends_at = Override(signal.payload["override"]), self._clock.monotonic() + left_s
            self._breakers.override(signal.target, override, act, ends_at)

    def _cool_down(self, signal: Signal) -> None:
        left_s = float(signal.payload["until"]) - self._clock.wall()
        # If this machine's clock is behind the other's, `until` seems further away than it is: never pause for longer
        # than the other process does.
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
        # At start only a recent refusal counts, one that is younger than the first key check; see the module docstring.
        ago_s = max(self._clock.wall() - signal.at, 0.0)
        if new or ago_s < CHECK_S_MIN:
            since = self._clock.monotonic() - ago_s
            gates.block_key(model, str(signal.payload["reason"]), since)

    def _service_of(self, name: str, signal: Signal) -> Service | None:
        """The service that a signal is about, if it has the same credential here or the credential is a client's
        own."""
        if "foreign" in signal.payload:
            return self._services().get(name)
        if signal.payload.get("credential") in (None, self._credential_of(name)["credential"]):
            return self._services().get(name)
        return None


def _without_undone(signals: Sequence[Signal]) -> Iterable[Signal]:
    """Earlier signals without overrides that a later reset removed.

    If such an override were replayed, it would force a breaker open for a moment, with its event and alert.
    """
    resets = {signal.target: signal.id for signal in signals if signal.kind == "reset"}
    for signal in signals:
        names = signal.target, signal.target.partition("/")[0]
        is_undone = any(resets.get(name, 0) > signal.id for name in names)
        if signal.kind != "override" or not is_undone:
            yield signal


def said(act: Act | None) -> dict[str, Any]:
    """An act as a signal's payload."""
    return {} if act is None else {"by": act.by, "reason": act.reason, "until": act.until}


def act_of(payload: Mapping[str, Any]) -> Act:
    """The act in a signal's payload; empty if an older version of koo sent it."""
    until = payload.get("until")
    return Act(
        str(payload.get("by") or ""),
        str(payload.get("reason") or ""),
        None if until is None else float(until),
    )
