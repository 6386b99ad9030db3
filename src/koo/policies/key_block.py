"""Keys that the provider refused: nothing is sent with them until they work again.

A refused key, an empty account or a spent quota does not recover through retries. Each retry is one more refused
request, and some providers lock accounts for that. So the first refusal blocks the key (or the key for one model). An
unbilled check at a growing interval (1 to 15 minutes) removes the block when the key works again. A reset, a new key,
or the time that the provider named also removes it.

A check proves that the key works, not that it may use a model. So a block for a model is removed only when its own
check is due. If the model is blocked again soon after, the interval continues from its last length. Otherwise a model
that the key may not use would be called, and refused, once a minute forever.

If koo cannot check a key because the key belongs to a client, a call serves as the check: when a check is due, one call
is admitted, and its success ends the block (`by_calls`).
"""

from __future__ import annotations

from dataclasses import dataclass

from koo.options import NEVER

CHECK_S_MIN = 60.0
CHECK_S_MAX = 900.0
"""The first and the longest interval between checks. A person has to repair a key: that rarely takes less than a
minute, and with more than a quarter of an hour a repaired key would stay unused for long."""
BLOCKS_MAX = 1024
"""Beyond this many blocks the oldest is dropped. Model names come from callers, and wrong ones must not fill memory."""


@dataclass(slots=True)
class KeyBlock:
    """Why a key is not used, since when, and until when (infinite: until a check), in monotonic seconds.

    `tried`: a call was admitted to test whether the key works again.
    """

    reason: str
    since: float
    until: float
    check_at: float
    interval_s: float = CHECK_S_MIN
    tried: bool = False


class KeyBlocks:
    """The blocks of one credential by model; the key None blocks all models. `by_calls`: calls serve as the checks."""

    __slots__ = ("_lifted", "by_calls", "by_model")

    def __init__(self, *, by_calls: bool = False) -> None:
        self.by_calls = by_calls
        self.by_model: dict[str | None, KeyBlock] = {}
        # Blocks that were lifted lately: when, and how long their interval was.
        self._lifted: dict[str | None, tuple[float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self.by_model)

    def set(self, model: str | None, reason: str, now: float, until: float = NEVER) -> bool:
        """Block the key; True if it was not blocked before."""
        known = self.by_model.get(model)
        if known is not None:
            known.until = max(known.until, until)
            # The call that was admitted as a check was refused too. A success that arrives now belongs to a call from
            # before the block, and must not end it.
            known.tried = False
            return False
        # If a block returns within fifteen minutes, its cause was never really removed: its interval goes on growing.
        interval_s = CHECK_S_MIN
        lifted_at, grown_s = self._lifted.pop(model, (-CHECK_S_MAX, 0.0))
        if now - lifted_at <= CHECK_S_MAX:
            interval_s = min(max(2 * grown_s, CHECK_S_MIN), CHECK_S_MAX)
        self.by_model[model] = KeyBlock(reason, now, until, now + interval_s, interval_s)
        # The block of the key itself (None) is never dropped: without it, calls would be sent with a key that the
        # provider has refused.
        if len(self.by_model) > BLOCKS_MAX:
            del self.by_model[next(one for one in self.by_model if one is not None)]
        return True

    def find(self, model: str | None, now: float) -> KeyBlock | None:
        """The block that refuses this model now. Changes nothing."""
        for key in (None, model):
            block = self.by_model.get(key)
            if block is not None and now < block.until:
                return block
        return None

    def began_after(self, since: float, model: str | None) -> bool:
        """Whether a block of this model began after `since`. An older one admitted the call as a check."""
        return any(one in self.by_model and self.by_model[one].since > since for one in (None, model))

    def hold_any(self, now: float) -> bool:
        """Whether any model is refused now. Changes nothing."""
        return any(now < block.until for block in self.by_model.values())

    def refuses(self, model: str | None, now: float) -> KeyBlock | None:
        """Like `find`; None if a call may pass as a check."""
        if self.by_calls and all(self._is_due(block, now) for block in self._of(model, now)):
            return None
        return self.find(model, now)

    def let_out(self, model: str | None, now: float) -> None:
        """A call is sent. If it serves as a check, the next one follows after a longer interval."""
        # The next check is postponed when the call is sent, not when it returns. Otherwise all callers that arrive in
        # between would pass as checks too.
        for block in self._of(model, now):
            if self._is_due(block, now):
                self._postpone(block, now)
                block.tried = True

    def end_by_success(self, model: str | None, now: float) -> list[str | None]:
        """A call succeeded: end the blocks that it was testing; returns the models."""
        # Only `tried` blocks end. A call that was already running when the key was refused proves nothing.
        over = [one for one in {None, model} if one in self.by_model and self.by_model[one].tried]
        for one in over:
            self.remove(one, now)
        return over

    def _of(self, model: str | None, now: float) -> list[KeyBlock]:
        blocks = (self.by_model.get(one) for one in {None, model})
        return [block for block in blocks if block is not None and now < block.until]

    @staticmethod
    def _is_due(block: KeyBlock, now: float) -> bool:
        return block.check_at <= now and block.until == NEVER

    def expire(self, now: float) -> list[str | None]:
        """Drop the blocks whose known end has passed; returns the models."""
        self._lifted = {model: one for model, one in self._lifted.items() if now - one[0] <= CHECK_S_MAX}
        over = [model for model, block in self.by_model.items() if now >= block.until]
        for model in over:
            del self.by_model[model]
        return over

    def due(self, now: float) -> bool:
        """Whether an unbilled check is due. A block with a known end is not checked."""
        return any(self._is_due(block, now) for block in self.by_model.values())

    def postpone(self, now: float) -> None:
        """A check that was due has failed: check again after a longer interval."""
        for block in self.by_model.values():
            if block.check_at <= now:
                self._postpone(block, now)

    @staticmethod
    def _postpone(block: KeyBlock, now: float) -> None:
        block.interval_s = min(block.interval_s * 2, CHECK_S_MAX)
        block.check_at = now + block.interval_s

    def lift(self, now: float) -> list[str | None]:
        """A check succeeded: lift the block of the key, and those of models whose check was due; returns the models."""
        models = [
            model
            for model, block in self.by_model.items()
            if block.until == NEVER and (model is None or block.check_at <= now)
        ]
        for model in models:
            self.remove(model, now)
        return models

    def skip(self, by_s: float) -> None:
        """The machine was suspended for `by_s` seconds that the clock does not show."""
        for block in self.by_model.values():
            block.until -= by_s

    def remove(self, model: str | None, now: float) -> None:
        """Unblock the key for one model, or with None the key itself; the other blocks stay."""
        block = self.by_model.pop(model, None)
        if block is not None:
            self._lifted[model] = now, block.interval_s

    def clear(self) -> list[str | None]:
        """An operator's reset: remove all blocks; returns the models that were blocked."""
        models = list(self.by_model)
        self.by_model.clear()
        self._lifted.clear()
        return models
