"""A service that has begun to answer, whole or streamed: what is open until the answer ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from koo.ai.providers.base import Completion
from koo.ai.query_charge import QueryCharge
from koo.ai.service import AIService, Service
from koo.ai.types import Answer
from koo.guard import Guard, Scope

T = TypeVar("T")


@dataclass(slots=True)
class Begun(Generic[T]):
    """The permit and the money of an answer, and how the `Answer` is made of what the provider said.

    `scope.value` is what the provider gave: a whole completion, or a streamed one that has its first content.
    `began_at` is when the query began, in monotonic seconds.
    """

    service: AIService
    guard: Guard
    charge: QueryCharge
    scope: Scope[T]
    began_at: float

    @property
    def guarded(self) -> Service:
        """The guarded service, without its provider."""
        return self.service.service

    def end(
        self,
        completion: Completion,
        *,
        slow: bool | None = None,
        took_s: float | None = None,
        away_s: float = 0.0,
    ) -> Answer:
        """Book what it cost and settle the permit as a success. `slow` and `took_s`: see `Scope.settle`.

        `away_s`: for so long the reader of a stream had the turn, which is nobody's latency.
        """
        bill = self.charge.note(completion)
        self.scope.settle(slow=slow, took_s=took_s)
        self.guarded.last_usage = completion.usage
        return Answer(
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
