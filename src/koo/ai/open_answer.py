"""A service that has begun to answer, and what must be settled when the answer ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from koo.ai.providers.base import Completion, Pace
from koo.ai.query_charge import QueryCharge
from koo.ai.service import AIService, Service
from koo.ai.types import Answer, Usage
from koo.ai.watching import UNWATCHED, Watched
from koo.guard import Guard, Scope
from koo.policies.permit import Permit

T = TypeVar("T")


@dataclass(slots=True)
class Begun(Generic[T]):
    """An answer in progress, with its permit and its charge. `end` settles both and builds the `Answer`.

    `scope.value` is the provider's result: a whole completion, or a streamed one whose first content has arrived.
    `began_at` is when the query began, in monotonic seconds.
    """

    service: AIService
    guard: Guard
    charge: QueryCharge
    scope: Scope[T]
    began_at: float
    watched: Watched = UNWATCHED

    @property
    def guarded(self) -> Service:
        """The guarded service, without its provider."""
        return self.service.service

    def learn_pace(self, paces: tuple[Pace, ...], usage: Usage | None) -> None:
        """Record what the response headers say about the provider's limits."""
        if paces or self.guard.pacer.asks:
            learn_pace(self.guarded, self.guard, self.scope.permit, self.charge, paces, usage)

    def end(
        self,
        completion: Completion,
        *,
        slow: bool | None = None,
        took_s: float | None = None,
        away_s: float = 0.0,
    ) -> Answer:
        """Book the cost and settle the permit as a success. `slow` and `took_s`: see `Scope.settle`.

        `away_s` is how long a stream's reader had the turn; it does not count as latency.
        """
        # The order matters: `settle` ends the permit and books `charge.bill`. Without `note` before it there would be
        # no bill, and the whole hold would be booked as an estimate.
        bill = self.charge.note(completion)
        self.charge.is_whole = True
        self.scope.settle(slow=slow, took_s=took_s)
        answer = Answer(
            text=completion.text,
            service=self.guard.name,
            model=completion.model,
            usage=completion.usage,
            cost_usd=bill.amount_usd,
            cost_source=bill.source,
            attempts=self.scope.attempts,
            latency_s=self.guard.now() - self.began_at - away_s,
            stop_reason=completion.stop_reason,
            request_id=completion.request_id,
            max_tokens=self.charge.request.max_tokens,
            clamped=self.charge.clamped,
        )
        self.watched.answered(answer, away_s)
        return answer


def learn_pace(
    service: Service,
    guard: Guard,
    permit: Permit,
    charge: QueryCharge,
    paces: tuple[Pace, ...],
    usage: Usage | None,
) -> None:
    """Record what the headers of a call's response say. `usage` is None if it is not known yet."""
    most = None
    if usage is None and not guard.pacer.sizes:
        # The headers say how many tokens are left, and the pacer needs to know how many calls that is. Before the first
        # usage report no size is known; a guess that is too small would send a burst into the provider's limit. So
        # assume the most that this call can use. The first real usage replaces it.
        most = Usage(input_tokens=charge.input_tokens_max, output_tokens=charge.request.max_tokens)
    service.learn_pace(guard, paces, permit, usage or most, is_most=most is not None)
