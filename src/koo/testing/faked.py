"""One service of a world: its fake, which is set up with verbs, and koo's view of the service."""

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
    """A service such as `koo.claude`: the verbs of its fake (`fails(529, times=3)`), and values to assert on.

    `fake`: the server itself, with `script`, all `requests`, `bills`, `connections` and `diary`.
    """

    def __init__(self, name: str, fake: FakeProvider, platform: Platform) -> None:
        self.name = name
        self.fake = fake
        self._platform = platform
        if not isinstance(fake, FakePerplexity):  # its responses contain their own cost
            fake.price_of = self._price_of

    def __repr__(self) -> str:
        return f"<{self.name}: {self.state} | {self.attempts} attempt(s), ${self.spent_usd} spent>"

    def do(self, step: Step, times: int | None = None) -> Self:
        self.fake.do(step, times)
        return self

    def script(self, *steps: Step) -> Self:
        """Set the steps for the next requests, one step each. Raises TypeError for a value that is not a step."""
        self.fake.script(*steps)
        return self

    def failure(self, status: int) -> Failure:
        return self.fake.failure(status)

    def complaints(self) -> list[str]:
        """Unused steps and unexpected requests, one sentence each; see `World`."""
        return self.fake.complaints()

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def attempts(self) -> int:
        """How many queries it has received, including repeats."""
        return self.fake.attempts

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The queries that it has received: `requests[-1].prompt`."""
        return self.fake.queries

    @property
    def billed_usd(self) -> Decimal:
        """What the provider would bill, at the prices of koo's table."""
        return self.fake.billed_usd

    # ── koo's view ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def spent_usd(self) -> Decimal:
        """The amount that koo has booked for it today."""
        return self._platform.parts.budgets.view(self.name).spent_usd

    @property
    def held_usd(self) -> Decimal:
        """The amount that koo holds for running calls."""
        return self._platform.parts.budgets.view(self.name).held_usd

    @property
    def state(self) -> str:
        """The service's state in koo: "healthy", "circuit_open", "rate_limited", …"""
        return self.health["state"]

    @property
    def health(self) -> ServiceHealth:
        """koo's full health view of the service."""
        return self._platform.service_health(self.name)

    def _price_of(self, model: str, tokens: Tokens) -> Decimal | None:
        """The cost by koo's own prices, so that a bill that differs from what koo booked shows a bug in koo."""
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
