"""Whose key: which state of a service belongs to a credential, and which to its name.

Under one name may run the clients of many tenants, each with its own key. Refused keys, spent quotas and the pauses
after a 429 belong to the key: they come from the other side's account. Limits, places, budget, breaker and counts
belong to the name. So each credential except the service's own has gates of its own, with a key block, a quota and
pauses, which share everything else with the service's; its guards differ from the service's only in these gates.
Choosing the guard is all that it costs a call.

A credential is known by a digest: a truncated hash, salted with a name of koo's own, so that no existing list of hashed
keys applies. It distinguishes two keys, also across processes, and is too short to find one by. No log, answer or
metric contains it.

Of more than a thousand credentials, the least recently used are forgotten, and so is a refused one that has not been
used for an hour: at worst one refused call is made again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import copy

from koo.events import KeyUnblocked
from koo.gates import Gates
from koo.guard import Guard
from koo.policies.cooldown import Cooldown
from koo.policies.key_block import KeyBlocks
from koo.policies.pacer import Pacer
from koo.policies.tally import Tally

CREDENTIALS_MAX = 1024
UNUSED_S_MAX = 3600.0
DIGEST_BYTES = 8
"""Among ten thousand credentials two have the same digest once in 370 billion times."""


def digest_of(key: str) -> str:
    """The digest by which a key, or a credential's name, is known."""
    hashed = hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=b"koo credential"
    )
    return hashed.hexdigest()


class Holder:
    """One credential: its gates, and its guards by model."""

    __slots__ = ("gates", "guards")

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.guards: dict[str | None, Guard] = {}

    def paused(self, now: float) -> Cooldown | None:
        """The pause that keeps its calls away longest; None without one."""
        pauses = [self.gates.quota, *(guard.cooldown for guard in self.guards.values())]
        longest = max(pauses, key=lambda pause: pause.until)
        return longest if now < longest.until else None


class Credentials:
    """The credentials of one service, without its own."""

    def __init__(self, gates: Gates, guard_of: Callable[[str | None], Guard]) -> None:
        self._gates = gates
        self._guard_of = guard_of
        self._holders: OrderedDict[str, Holder] = OrderedDict()  # the most recently used last

    def guard(self, credential: str, model: str | None) -> Guard:
        """The guard of one model for a credential; made when first asked for."""
        holder = self._holders.get(credential)
        if holder is None:
            holder = self._make(credential)
        else:
            self._holders.move_to_end(credential)
        guard = holder.guards.get(model)
        if guard is None:
            guard = holder.guards[model] = copy(self._guard_of(model))
            guard.gates, guard.cooldown, guard.pacer = holder.gates, Cooldown(), Pacer()
        return guard

    def gates(self, credential: str) -> Gates:
        """The gates of a credential; made when first asked for."""
        return (self._holders.get(credential) or self._make(credential)).gates

    def _make(self, credential: str) -> Holder:
        if len(self._holders) >= CREDENTIALS_MAX:
            self._drop(next(iter(self._holders)))
        gates = copy(self._gates)
        gates.credential, gates.quiet = credential, False
        gates.quota, gates.key_blocks, gates.pacing = Cooldown(), KeyBlocks(by_calls=True), set()
        gates.kin.add(gates)
        holder = self._holders[credential] = Holder(gates)
        return holder

    def _drop(self, credential: str) -> None:
        gates = self._holders.pop(credential).gates
        gates.kin.discard(gates)

    # ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────

    def refused(self, now: float, last_success_at: float | None) -> tuple[str, bool]:
        """How many keys are refused, in words (empty: none is), and whether these are all that are in use."""
        blocks = [
            block
            for holder in self._holders.values()
            if holder.gates.key_blocks and (block := holder.gates.key_blocks.find(None, now)) is not None
        ]
        if not blocks:
            return "", False
        known, since = len(self._holders), max(block.since for block in blocks)
        # Calls without a visible credential run under the same name, and may succeed.
        are_all = len(blocks) == known and (last_success_at is None or last_success_at < since)
        if known == 1 and are_all:
            return blocks[0].reason, True
        return f"the provider refused the keys of {len(blocks)} of {known} credentials", are_all

    def count(self, now: float) -> tuple[int, int]:
        """How many keys are refused, for some model or for all of them, and how many there are."""
        refused = sum(holder.gates.key_blocks.hold_any(now) for holder in self._holders.values())
        return refused, len(self._holders)

    def paused(self, now: float, last_success_at: float | None) -> Cooldown | None:
        """The first pause to end, if all credentials have to pause; None if one does not."""
        pauses = [holder.paused(now) for holder in self._holders.values()]
        lasting = [pause for pause in pauses if pause is not None]
        if not lasting or len(lasting) < len(pauses):
            return None
        first = min(lasting, key=lambda pause: pause.until)
        return first if last_success_at is None or last_success_at < first.since else None

    # ── what happens to all of them ───────────────────────────────────────────────────────────────────────────

    def clear(self) -> Iterator[KeyUnblocked]:
        """An operator resets: forget everything; yields what is no longer blocked."""
        for credential, holder in self._holders.items():
            holder.gates.quota.clear()
            for guard in holder.guards.values():
                # A pausing caller looks here whether it still has to.
                guard.cooldown.clear()
                guard.resets += 1
            for model in holder.gates.key_blocks.clear():
                yield KeyUnblocked(self._gates.name, model, credential)

    def tick(self, now: float) -> Iterator[KeyUnblocked]:
        """What a second brings: blocks that end by their own time, and unused credentials."""
        for credential, holder in list(self._holders.items()):
            blocks = holder.gates.key_blocks
            if not blocks:
                continue
            for model in blocks.expire(now):
                yield KeyUnblocked(self._gates.name, model, credential)
            if all(now - block.check_at > UNUSED_S_MAX for block in blocks.by_model.values()):
                self._drop(credential)

    def skip(self, by_s: float) -> None:
        """The clock missed `by_s` seconds (suspend)."""
        for holder in self._holders.values():
            holder.gates.quota.skip(by_s)
            holder.gates.key_blocks.skip(by_s)
            for guard in holder.guards.values():
                guard.cooldown.skip(by_s)
                guard.pacer.skip(by_s)

    def forget(self, model: str | None, tally: Tally) -> None:
        """A model makes room for others; running calls still count, in `tally`."""
        for holder in self._holders.values():
            guard = holder.guards.pop(model, None)
            if guard is not None:
                guard.tally = tally
