"""Separates the state that belongs to a credential from the state that belongs to a service's name.

Clients of many tenants, each with its own key, may run under one name. A refused key, a used-up quota and the pause
after a 429 belong to the key, because they come from the provider's account. Limits, slots, budget, breaker and counts
belong to the name. If one tenant's refused key blocked the name, all other tenants would be refused with it.

So each credential except the service's own has separate gates, with their own key block, quota and pauses; everything
else in them is shared with the service's gates. Its guards differ from the service's guards only in these gates. A call
with a credential costs no more than the lookup of its guard.

A credential is identified by a digest: a truncated hash, personalized with a constant of koo's, so that no existing
table of hashed keys applies. It distinguishes two keys, even across processes, and is too short to recover a key from.
It does not appear in any log, response or metric.

At most 1,024 credentials are kept; then the least recently used one is forgotten. A refused credential is also
forgotten if it has not been used for an hour. At worst a refused call is made once more.
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
"""With 64 bits, two of ten thousand credentials have the same digest with a probability of 1 in 370 billion."""


def digest_of(key: str) -> str:
    """The digest that identifies a key or a credential's name."""
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
        """The longest pause that applies to its calls; None if there is none."""
        pauses = [self.gates.quota, *(guard.cooldown for guard in self.guards.values())]
        longest = max(pauses, key=lambda pause: pause.until)
        return longest if now < longest.until else None


class Credentials:
    """The credentials of one service, except the service's own."""

    def __init__(self, gates: Gates, guard_of: Callable[[str | None], Guard]) -> None:
        self._gates = gates
        self._guard_of = guard_of
        self._holders: OrderedDict[str, Holder] = OrderedDict()  # the most recently used last

    def guard(self, credential: str, model: str | None) -> Guard:
        """The guard of one model for a credential, made on first use."""
        holder = self._holders.get(credential)
        if holder is None:
            holder = self._make(credential)
        else:
            self._holders.move_to_end(credential)
        guard = holder.guards.get(model)
        if guard is None:
            # This is a shallow copy: it shares the model's breaker and tally, so failures of all tenants count
            # together. What a 429 changes is replaced, because that limit belongs to one key.
            guard = holder.guards[model] = copy(self._guard_of(model))
            guard.gates, guard.cooldown, guard.pacer = holder.gates, Cooldown(), Pacer()
        return guard

    def gates(self, credential: str) -> Gates:
        """The gates of a credential, made on first use."""
        return (self._holders.get(credential) or self._make(credential)).gates

    def _make(self, credential: str) -> Holder:
        if len(self._holders) >= CREDENTIALS_MAX:
            self._drop(next(iter(self._holders)))
        # This copy is shallow too: limits, bulkhead and queues are shared with the service. With its own, each tenant
        # could use the whole limit.
        gates = copy(self._gates)
        gates.credential, gates.quiet = credential, False
        gates.quota, gates.key_blocks, gates.pacing = Cooldown(), KeyBlocks(by_calls=True), set()
        gates.kin.add(gates)
        holder = self._holders[credential] = Holder(gates)
        return holder

    def _drop(self, credential: str) -> None:
        gates = self._holders.pop(credential).gates
        gates.kin.discard(gates)

    # ── for display ───────────────────────────────────────────────────────────────────────────────────────────

    def refused(self, now: float, last_success_at: float | None) -> tuple[str, bool]:
        """How many keys are refused, as a sentence (empty if none is), and whether these are all that are in use."""
        blocks = [
            block
            for holder in self._holders.values()
            if holder.gates.key_blocks and (block := holder.gates.key_blocks.find(None, now)) is not None
        ]
        if not blocks:
            return "", False
        known, since = len(self._holders), max(block.since for block in blocks)
        # Calls whose credential koo does not see run under the same name. If one of them has succeeded since, the
        # service is not down, although every known key is refused.
        are_all = len(blocks) == known and (last_success_at is None or last_success_at < since)
        if known == 1 and are_all:
            return blocks[0].reason, True
        return f"the provider refused the keys of {len(blocks)} of {known} credentials", are_all

    def count(self, now: float) -> tuple[int, int]:
        """How many keys are refused for at least one model, and how many keys there are."""
        refused = sum(holder.gates.key_blocks.hold_any(now) for holder in self._holders.values())
        return refused, len(self._holders)

    def paused(self, now: float, last_success_at: float | None) -> Cooldown | None:
        """The pause that ends first, if all credentials are pausing; None if one of them is not."""
        pauses = [holder.paused(now) for holder in self._holders.values()]
        lasting = [pause for pause in pauses if pause is not None]
        if not lasting or len(lasting) < len(pauses):
            return None
        first = min(lasting, key=lambda pause: pause.until)
        return first if last_success_at is None or last_success_at < first.since else None

    # ── changes to all credentials ────────────────────────────────────────────────────────────────────────────

    def clear(self) -> Iterator[KeyUnblocked]:
        """Clear all pauses and blocks, on an operator's reset. Yields an event for each key that was blocked."""
        for credential, holder in self._holders.items():
            holder.gates.quota.clear()
            for guard in holder.guards.values():
                # A caller that is pausing compares `resets` about once a second, and ends its pause if it has changed.
                guard.cooldown.clear()
                guard.resets += 1
            for model in holder.gates.key_blocks.clear():
                yield KeyUnblocked(self._gates.name, model, credential)

    def tick(self, now: float) -> Iterator[KeyUnblocked]:
        """Do what is due every second: end expired blocks, and forget refused credentials that are not used."""
        for credential, holder in list(self._holders.items()):
            blocks = holder.gates.key_blocks
            if not blocks:
                continue
            for model in blocks.expire(now):
                yield KeyUnblocked(self._gates.name, model, credential)
            if all(now - block.check_at > UNUSED_S_MAX for block in blocks.by_model.values()):
                self._drop(credential)

    def skip(self, by_s: float) -> None:
        """Shorten all pauses by `by_s` seconds, which the monotonic clock has missed (suspend)."""
        for holder in self._holders.values():
            holder.gates.quota.skip(by_s)
            holder.gates.key_blocks.skip(by_s)
            for guard in holder.guards.values():
                guard.cooldown.skip(by_s)
                guard.pacer.skip(by_s)

    def forget(self, model: str | None, tally: Tally) -> None:
        """Drop the guards of a model that makes room for another. Calls still running are counted in `tally`."""
        for holder in self._holders.values():
            guard = holder.guards.pop(model, None)
            if guard is not None:
                guard.tally = tally
