"""Keys that the other side refused: nothing is sent with them until they work again.

A refused key, an empty account or a spent quota does not pass by trying: each try is one more refused request, and some
providers lock accounts for it. So the first refusal blocks the key (or the key for one model). An unbilled check with
a growing interval (1 to 15 minutes) clears it when the key works again; so does a reset, a new key, or the time that
the provider named.
"""

from __future__ import annotations

from dataclasses import dataclass

from koo.options import NEVER

CHECK_S_MIN = 60.0
CHECK_S_MAX = 900.0


@dataclass(slots=True)
class KeyBlock:
    """Why a key is not used, and until when (infinite: until a check), in monotonic seconds."""

    reason: str
    until: float
    check_at: float
    interval_s: float = CHECK_S_MIN


class KeyBlocks:
    """The blocks of one credential: by model, or None for all of them."""

    __slots__ = ("by_model",)

    def __init__(self) -> None:
        self.by_model: dict[str | None, KeyBlock] = {}

    def __bool__(self) -> bool:
        return bool(self.by_model)

    def set(self, model: str | None, reason: str, now: float, until: float = NEVER) -> bool:
        """Block the key; True if this is new."""
        known = self.by_model.get(model)
        if known is not None:
            known.until = max(known.until, until)
            return False
        self.by_model[model] = KeyBlock(reason, until, now + CHECK_S_MIN)
        return True

    def find(self, model: str | None, now: float) -> KeyBlock | None:
        """The block that refuses this model now. Changes nothing."""
        for key in (None, model):
            block = self.by_model.get(key)
            if block is not None and now < block.until:
                return block
        return None

    def expire(self, now: float) -> list[str | None]:
        """Drop what is over by its own time; gives the models."""
        over = [model for model, block in self.by_model.items() if now >= block.until]
        for model in over:
            del self.by_model[model]
        return over

    def due(self, now: float) -> bool:
        """Is it time for an unbilled check? A block with a known end is not asked about."""
        return any(block.check_at <= now and block.until == NEVER for block in self.by_model.values())

    def postpone(self, now: float) -> None:
        """A check failed: look again later, and later still."""
        for block in self.by_model.values():
            block.interval_s = min(block.interval_s * 2, CHECK_S_MAX)
            block.check_at = now + block.interval_s

    def remove(self, model: str | None) -> None:
        """Unblock the key for one model, or with None the key itself; the other blocks stay."""
        self.by_model.pop(model, None)

    def clear(self) -> list[str | None]:
        """The key works again, or somebody says so; gives the models that were blocked."""
        models = list(self.by_model)
        self.by_model.clear()
        return models
