"""The limit on tokens per minute: each attempt takes its tokens before its money is held, and settles what it used."""

from __future__ import annotations

from koo.ai.service import Service
from koo.errors import Cause, Kind, RateLimited
from koo.gates import WAITED_S
from koo.limit_gate import PATIENCE_S
from koo.options import NEVER
from koo.passage import LOOK_AGAIN_S


class Tokens:
    """The tokens that one attempt has taken of its service's limit per minute."""

    __slots__ = ("_at", "_service", "taken")

    def __init__(self, service: Service) -> None:
        self._service = service
        self._at = 0.0
        self.taken = 0

    async def take(self, tokens: int, deadline: float, *, waits: bool) -> None:
        """Take the most tokens that the attempt can need. Raises `RateLimited`; then nothing is taken.

        With `waits` it waits until enough tokens are free, at most until `deadline` (monotonic seconds).
        """
        limit, clock = self._service.tokens, self._service.clock
        if limit is None:
            return
        # This is set by the first look that finds too few tokens: most calls find enough, and need only that look.
        patient_until: float | None = None
        while not limit.take(tokens, now := clock.monotonic()):
            patient_until = patient_until or min(deadline, now + PATIENCE_S)
            # This process's share of the fleet's limit is too small, but other processes may have unused tokens. The
            # store is queried even for a call that must not wait for the limit. Without that, a call would be refused
            # while another process has tokens to spare, and the limit would be lower than the operator set it.
            if limit.ask is not None and now < deadline and limit.lacks(tokens, now):
                limit.waiting.append(tokens)
                try:
                    await limit.ask(deadline)
                finally:
                    limit.waiting.remove(tokens)
                continue
            # The limit as a whole has room, but the tokens are with another process, or with a store that has just
            # become unreachable. They usually return within seconds, so even a call that must not wait waits that long:
            # to its caller, a refusal under a limit that is not used up would look like an error.
            home_at = limit.comes_home_at(tokens, now)
            if home_at < patient_until:
                await clock.sleep(home_at - now)
                continue
            usable_at = limit.usable_at(tokens, now)
            if not waits or usable_at >= deadline:
                limit.refused_at = now
                raise self._refusal(tokens, usable_at - now)
            await clock.sleep(min(usable_at - now, LOOK_AGAIN_S))
        self.taken, self._at = tokens, now

    def take_again(self) -> bool:
        """After a wait for money: count the tokens from now on. False, with nothing taken, if too few are left."""
        limit, taken, now = self._service.tokens, self.taken, self._service.clock.monotonic()
        if limit is None or now - self._at <= WAITED_S:
            return True
        self.settle(0)
        if not limit.take(taken, now):
            return False
        self.taken, self._at = taken, now
        return True

    def _refusal(self, tokens: int, wait_s: float) -> RateLimited:
        assert self._service.tokens is not None
        count = self._service.tokens.count
        reason = f"koo's limit of {count.limit} tokens a minute has no room for the {tokens} that this call may take"
        if count.hand is not None and count.hand.is_alone:
            reason += f": {count.hand.sentence}"
        if wait_s == NEVER:
            reason += "; lower max_tokens to take fewer"
        known_s = None if wait_s == NEVER else wait_s
        return RateLimited(
            self._service.name, reason, known_s, kind=Kind.RATE_LIMITED, cause=Cause.TOKENS_PER_MINUTE
        )

    def settle(self, used: int | None) -> None:
        """Give back what was not used. `used` None: the number is unknown, so all of them count as used."""
        limit, taken, self.taken = self._service.tokens, self.taken, 0
        if limit is not None and used is not None:
            limit.settle(taken, used, self._at)
