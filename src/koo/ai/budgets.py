"""Which budgets a call is held in, and the sentence of a refusal.

Every service has a budget of its own for each UTC day. An operator may set more, for a day or a month: for one service,
one model, one tag, or all together. A call is held in all that apply, or in none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from koo.ai.service import Service
from koo.errors import BudgetExceeded, ExternalServiceError, Kind, ServiceRefused
from koo.events import BillExceededHold, Event
from koo.options import BudgetOptions
from koo.policies.money import from_pico, in_words, limit_to_pico
from koo.policies.purse import Budget, Hold, Refusal
from koo.policies.treasury import Standing
from koo.storage.base import Allowance, Bill, BudgetView, Ledger

AWAY_RETRY_S = 5.0
"""When to ask again while the store is away: it is found within this time of being back."""
RECALL_RETRY_S = 2.0
"""Two beats: one in which other processes hear that they should send money home, one in which it arrives."""
SETS_MAX = 1000
"""Sets of budgets remembered, by service, model and tag: callers choose models and tags."""


def day_budget(service: str) -> str:
    """The name of a service's own budget in the ledger."""
    return f"service/{service}"


def requests_count(service: str) -> str:
    """The name under which the ledger counts a service's requests of the day."""
    return f"requests/{service}"


class Budgets:
    """All budgets of one platform, over its ledger."""

    def __init__(
        self,
        ledger: Ledger,
        options: Sequence[BudgetOptions] = (),
        publish: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.ledger = ledger
        self._publish = publish
        self.options = tuple(options)
        self._sets: dict[tuple[str, str, str | None], tuple[Budget, ...]] = {}
        self._names: dict[str, Budget] = {}
        self._models = {one.model for one in options if one.model is not None}
        self._tags = {one.tag for one in options if one.tag is not None}
        for one in options:
            if one.tag != "*":
                self._add(f"budget/{one.name}", one)

    def add_service(self, name: str, allowance: Allowance) -> None:
        """Know a service's daily budget, and count its requests."""
        limit = None if allowance.limit_usd is None else limit_to_pico(allowance.limit_usd)
        self._names[day_budget(name)] = self.ledger.budget(
            day_budget(name), limit, "day", is_default=not allowance.explicit
        )
        self._names[requests_count(name)] = self.ledger.budget(requests_count(name), None)
        self._sets.clear()

    def _add(self, name: str, one: BudgetOptions) -> Budget:
        budget = self.ledger.budget(name, limit_to_pico(one.limit_usd), one.period)
        self._names[name] = budget
        return budget

    def of(self, service: str, model: str = "", tag: str | None = None) -> tuple[Budget, ...]:
        """The budgets in which a call is held."""
        # Models and tags that no budget names make no difference, and must not fill the memory.
        key = (
            service,
            model if model in self._models else "",
            tag if tag in self._tags or "*" in self._tags else None,
        )
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= SETS_MAX:
                self._sets.clear()
            found = self._sets[key] = self._find(*key)
        return found

    def _find(self, service: str, model: str, tag: str | None) -> tuple[Budget, ...]:
        budgets = [self._names[day_budget(service)]]
        for one in self.options:
            if one.service in (None, service) and one.model in (None, model):
                if one.tag == "*" and tag is not None:
                    name = f"budget/{one.name}/{tag}"
                    budgets.append(self._names.get(name) or self._add(name, one))
                elif one.tag in (None, tag):
                    budgets.append(self._names[f"budget/{one.name}"])
        return tuple(budgets)

    def settle(self, hold: Hold, service: str, bill: Bill) -> None:
        """Book what a call cost. A bill above its hold is booked whole, and published."""
        bound = hold.amount
        cost = self.ledger.settle(hold, service, bill)
        if cost > bound:
            self._publish(BillExceededHold(service, str(from_pico(cost)), str(from_pico(bound))))

    def keep_count(self, service: Service) -> None:
        """Have the day's requests of a service counted in the store, and learn what others have counted."""
        budget = self._names[requests_count(service.name)]
        day, count = service.take_unstored()
        if count:
            self.ledger.count(budget, day, count)
        if day:
            service.note_elsewhere(day, self.ledger.counted_elsewhere(budget, day))

    def view(self, service: str) -> BudgetView:
        """A service's own budget of today."""
        return self.ledger.view(day_budget(service))

    def refusal(
        self,
        service: str,
        budgets: tuple[Budget, ...],
        amount: int,
        why: Refusal,
        short: str | None,
        now_s: float,
    ) -> ExternalServiceError:
        """The error of a call that got no hold. `short` names the budget without room, where one is known."""
        if why is Refusal.AWAY:
            reason = (
                f"it is unknown whether the budget covers this call, because {self.ledger.trouble}; "
                "a budget that was set refuses until the state store is back"
            )
            return ServiceRefused(service, reason, AWAY_RETRY_S, kind=Kind.CIRCUIT_OPEN)
        name = short or next(b.name for b in budgets if b.limit is not None)
        standing, resets_at = self.ledger.standing(name), self.ledger.view(name).resets_at
        is_recalled = why is Refusal.NOT_MET and standing.idle > 0
        retry_after_s = RECALL_RETRY_S if is_recalled else max(0.0, resets_at - now_s)
        return BudgetExceeded(service, _sentence(_title(name), standing, amount), retry_after_s)


def _title(name: str) -> str:
    kind, _, rest = name.partition("/")
    return "the day's budget" if kind == "service" else f"the budget {rest!r}"


def _sentence(title: str, standing: Standing, amount: int) -> str:
    """The arithmetic that led to a refusal."""
    limit = "" if standing.limit is None else f" of {_usd(standing.limit)}"
    parts = [
        f"{_usd(standing.spent)} spent",
        f"{_usd(max(0, standing.held))} held for calls that are running",
    ]
    if standing.unsettled:
        parts.append(f"{_usd(standing.unsettled)} unsettled by processes that no longer report")
    if standing.idle:
        parts.append(f"{_usd(standing.idle)} idle in {standing.processes} processes and recalled")
    parts.append(f"up to {_usd(amount)} needed")
    return f"{title}{limit} does not cover this call: {', '.join(parts)}"


def _usd(pico: int) -> str:
    return in_words(Decimal(from_pico(pico)))
