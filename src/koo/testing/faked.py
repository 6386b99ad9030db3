"""One service of a world: its fake, set up in verbs, and what koo makes of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Self

from koo.ai.types import Usage
from koo.monitoring.shapes import ServiceHealth
from koo.platform import Platform
from koo.testing.providers.perplexity import FakePerplexity
from koo.testing.providers.script import Failure, Step
from koo.testing.providers.server import FakeProvider, Tokens
from koo.testing.providers.verbs import Verbs
from koo.testing.providers.wire import ReceivedRequest


class FakedService(Verbs):
    """`koo.claude` and its like: the verbs of its fake (`fails(529, times=3)`), and what to assert on.

    `fake`: the server itself, with `script`, `requests` of every kind, `bills`, `connections`, and `diary`.
    """

    def __init__(self, name: str, fake: FakeProvider, platform: Platform) -> None:
        self.name = name
        self.fake = fake
        self._platform = platform
        if not isinstance(fake, FakePerplexity):  # it says in each answer what that cost
            fake.price_of = self._price_of

    def __repr__(self) -> str:
        return f"<{self.name}: {self.state} | {self.attempts} attempt(s), ${self.spent_usd} spent>"

    def do(self, step: Step, times: int | None = None) -> Self:
        self.fake.do(step, times)
        return self

    def script(self, *steps: Step) -> Self:
        """What to do with the next requests, one step for each. Raises TypeError for what is not a step."""
        self.fake.script(*steps)
        return self

    def failure(self, status: int) -> Failure:
        return self.fake.failure(status)

    def complaints(self) -> list[str]:
        """What its test did not mean, one sentence each; see `World`."""
        return self.fake.complaints()

    # ── what came ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def attempts(self) -> int:
        """How many requests for answers came to it, repeats included."""
        return self.fake.attempts

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests for answers: `requests[-1].prompt`."""
        return self.fake.queries

    @property
    def billed_usd(self) -> Decimal:
        """What the provider would bill, at the prices of koo's table."""
        return self.fake.billed_usd

    # ── what koo makes of it ──────────────────────────────────────────────────────────────────────────────────

    @property
    def spent_usd(self) -> Decimal:
        """What koo booked for it today."""
        return self._platform.parts.budgets.view(self.name).spent_usd

    @property
    def held_usd(self) -> Decimal:
        """What koo holds for calls that run."""
        return self._platform.parts.budgets.view(self.name).held_usd

    @property
    def state(self) -> str:
        """What koo calls its state: "healthy", "circuit_open", "rate_limited", …"""
        return self.health["state"]

    @property
    def health(self) -> ServiceHealth:
        """All that koo says of it."""
        return self._platform.service_health(self.name)

    def _price_of(self, model: str, tokens: Tokens) -> Decimal | None:
        """As koo prices it, so that a bill that differs from what was spent is a fault and no other table."""
        options = self._platform.parts.ai_services[self.name].options
        price = self._platform.parts.prices.find(options, model)
        if price is None:
            return None
        used = Usage(
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cache_read_tokens=tokens.cache_read,
            cache_write_tokens=tokens.cache_write,
            reasoning_tokens=tokens.reasoning,
        )
        return price.cost_usd(used)
