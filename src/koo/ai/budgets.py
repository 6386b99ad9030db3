"""Decides which budgets a call is held in, and writes the message of a refusal.

Every service has its own budget for each UTC day. An operator may set more budgets, per day or per month: for one
service, one model, one tag, or for everything together. A call is held in all budgets that apply to it, or in none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

from koo.ai.service import Service
from koo.budget_options import BudgetOptions
from koo.errors import BudgetExceeded, Cause, Kind, ServiceRefused
from koo.events import BillExceededHold, Event
from koo.policies.forecast import SpendingPace, pace_of_period, run_out
from koo.policies.money import from_pico, in_words, limit_to_pico
from koo.policies.purse import Budget, Hold, Refusal
from koo.policies.treasury import REQUESTS, Standing, starts_ms
from koo.refusals import not_begun
from koo.storage.base import UNTOLD, Allowance, Bill, BudgetView, How, Ledger, OwnBudgetView, Short

AWAY_RETRY_S = 5.0
"""When to retry while the store is unreachable: koo notices its return within this time."""
RECALL_RETRY_S = 2.0
"""Two beats: with the first, other processes learn that they should return money; with the second, it arrives."""
SETS_MAX = 1000
"""The most sets of budgets remembered, by service, model and tag: callers choose models and tags."""
TAGS_MAX = 1000
"""The most tags with a separate budget, for one `TAG=*`. Later tags share one more. Each beat reports all of these."""
TAG_LENGTH_MAX = 200
EACH = "*"
"""The tag of a budget that applies to each tag separately."""
TAGS_SHOWN = 20
OTHER_TAGS = EACH
"""The tag of the budget that all tags beyond `TAGS_MAX` share."""


def day_budget(service: str) -> str:
    """The name of a service's daily budget in the ledger."""
    return f"service/{service}"


def requests_count(service: str) -> str:
    """The name under which the ledger counts a service's requests of the day."""
    return f"{REQUESTS}{service}"


SHORT_KEPT_S = 300.0
"""How long a refusal for lack of money keeps its alert while smaller calls to the service succeed."""


class Shortage(NamedTuple):
    """A refusal for lack of money: the budget without room, its period, what the call needed, and when."""

    name: str
    period: int
    amount: int
    at_wall_s: float


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
        self._options: dict[str, BudgetOptions] = {}
        self._of_tags: dict[str, set[str]] = {one.name: set() for one in options if one.tag == EACH}
        self._shortages: dict[str, Shortage] = {}  # by service, until a call succeeds
        self._last_shortages: dict[str, Shortage] = {}
        self._paces: dict[str, SpendingPace] = {}
        self.not_spent: Counter[str] = Counter()
        """The worst cases of refused calls, added up in pico-dollars, by service."""
        self._models = {one.model for one in options if one.model is not None}
        self._tags = {one.tag for one in options if one.tag is not None}
        for one in options:
            if one.tag != EACH:
                self._add(f"budget/{one.name}", one)

    def add_service(self, name: str, allowance: Allowance, requests_a_day: int | None = None) -> Budget:
        """Add a service's daily budget and its count of requests; returns the budget that counts the requests."""
        limit = None if allowance.limit_usd is None else limit_to_pico(allowance.limit_usd)
        self._names[day_budget(name)] = self.ledger.budget(
            day_budget(name), limit, "day", is_default=not allowance.explicit
        )
        # This is a default budget: while the store is unreachable, the limit is counted in memory. A budget that was
        # set would refuse every call then, but a limit on requests protects no money, so nothing would justify that.
        requests = self.ledger.budget(requests_count(name), requests_a_day, is_default=True)
        self._names[requests_count(name)] = requests
        self._sets.clear()
        return requests

    def _add(self, name: str, one: BudgetOptions) -> Budget:
        budget = self.ledger.budget(name, limit_to_pico(one.limit_usd), one.period)
        self._names[name], self._options[name] = budget, one
        return budget

    def of(self, service: str, model: str = "", tag: str | None = None) -> tuple[Budget, ...]:
        """The budgets in which a call is held."""
        # Models and tags without a budget are left out of the key. They do not change the result, and callers choose
        # them, so each new one would push a useful entry out of the cache.
        key = (
            service,
            model if model in self._models else "",
            tag if tag in self._tags or EACH in self._tags else None,
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
                if one.tag == EACH:
                    if tag is not None:
                        budgets.append(self._of_tag(one, tag))
                elif one.tag in (None, tag):
                    budgets.append(self._names[f"budget/{one.name}"])
        return tuple(budgets)

    def _of_tag(self, one: BudgetOptions, tag: str) -> Budget:
        tags = self._of_tags[one.name]
        # The ledger stores names as text. PostgreSQL rejects NUL in text, and neither database can encode a lone
        # surrogate: one such tag would make the whole beat fail, and with it everyone's bookings.
        clean = tag[:TAG_LENGTH_MAX].replace("\0", "").encode(errors="replace").decode()
        if clean not in tags and len(tags) >= TAGS_MAX:
            clean = OTHER_TAGS
        tags.add(clean)
        name = f"budget/{one.name}/{clean}"
        return self._names.get(name) or self._add(name, one)

    def forget_unused_tags(self) -> None:
        """Make room for other tags by dropping the budgets of those that were not used in this period."""
        for one, tags in self._of_tags.items():
            for tag in list(tags):
                name = f"budget/{one}/{tag}"
                if self.ledger.forget(name):
                    tags.discard(tag)
                    for known in (self._names, self._options, self._paces):
                        known.pop(name, None)
        if self._of_tags:
            self._sets.clear()

    def is_capped(self, service: str) -> bool:
        """Whether an operator has set a limit that applies to the service's calls without a tag."""
        own = self._names[day_budget(service)]
        if own.limit is not None and not own.is_default:
            return True
        return any(one.tag is None and one.service in (None, service) for one in self.options)

    def settle(self, hold: Hold, service: str, bill: Bill, how: How = UNTOLD) -> None:
        """Book what a call cost. A bill above its hold is booked in full, and published as an event."""
        if self._shortages:
            self._shortages.pop(service, None)
        bound = hold.amount
        cost = self.ledger.settle(hold, service, bill, how)
        if cost > bound:
            self._publish(BillExceededHold(service, str(from_pico(cost)), str(from_pico(bound))))

    def room(self, budgets: tuple[Budget, ...]) -> int | None:
        """How much more a call can hold in all of these budgets, in pico-dollars; None if none has a limit.

        Money that is spent, held by calls, or left unsettled by dead processes is subtracted, as last known.
        """
        lefts = [_left(self.ledger.standing(budget.name)) for budget in budgets]
        return min((left for left in lefts if left is not None), default=None)

    def keep_count(self, service: Service) -> None:
        """Exchange the service's requests per day with the store: store this process's, read the other processes'."""
        budget = self._names[requests_count(service.name)]
        if budget.limit is not None:
            service.note_day(budget.purse.key.period, self._requests_of(budget))
            return
        day, count = service.take_unstored()
        if count:
            self.ledger.count(budget, day, count)
        if day:
            service.note_elsewhere(day, self.ledger.counted_elsewhere(budget, day))

    def _requests_of(self, budget: Budget) -> int:
        """How many requests all processes have made today."""
        standing = self.ledger.standing(budget.name)
        # `spent` only grows. What an operator's reset has taken back is missing only from `booked`, so the smaller of
        # the two is the number that counts.
        return (
            min(standing.spent, max(0, standing.booked))
            if self.ledger.knows(budget.name)
            else budget.purse.spent
        )

    # ── for display ───────────────────────────────────────────────────────────────────────────────────────────

    def note_paces(self, now_s: float) -> None:
        """Record the spending of each budget with a limit, for forecasts. `now_s` is in wall seconds."""
        for name, budget in self._names.items():
            standing = self.ledger.standing(name)
            # Other processes' spending is unknown until the store has been read once. If zero were recorded until then,
            # the first reading would look like a sudden jump, and the forecast would be that the budget runs out within
            # minutes.
            if budget.limit is not None and self.ledger.knows(name):
                pace = self._paces.setdefault(name, SpendingPace())
                pace.note(now_s, budget.purse.key.period, standing.spent)

    def view(self, service: str, model: str | None = None, now_s: float | None = None) -> BudgetView:
        """A service's daily budget; its `shortage` also covers the other budgets that apply to the service.

        `model` is the default model. Without `now_s` (wall seconds) the view has no forecast.
        """
        view = self._view(day_budget(service), now_s)
        short = None if now_s is None else self._short(service, now_s)
        return replace(view, shortage=self._shortage(service, model or ""), short=short)

    def views(self, now_s: float) -> list[OwnBudgetView]:
        """The budgets that an operator has set. For a budget per tag, the 20 tags that have spent most."""
        found = []
        for one in self.options:
            if one.tag != EACH:
                found.append(OwnBudgetView(one, None, self._view(f"budget/{one.name}", now_s)))
                continue
            tags = sorted(self._of_tags[one.name], key=lambda tag: self._by_use(one, tag))[:TAGS_SHOWN]
            found += [OwnBudgetView(one, tag, self._view(f"budget/{one.name}/{tag}", now_s)) for tag in tags]
        return found

    def _by_use(self, one: BudgetOptions, tag: str) -> tuple[int, str]:
        standing = self.ledger.standing(f"budget/{one.name}/{tag}")
        return -standing.spent - standing.held, tag

    def _view(self, name: str, now_s: float | None) -> BudgetView:
        view, budget = self.ledger.view(name), self._names[name]
        if now_s is None or view.limit_usd is None:
            return view
        spent, period = limit_to_pico(view.spent_usd), budget.purse.key.period
        left = limit_to_pico(max(Decimal(0), view.limit_usd - view.unsettled_usd - view.spent_usd))
        paces = (
            self._paces[name].of_last_hour(now_s, period, spent) if name in self._paces else None,
            pace_of_period(spent, starts_ms(budget.kind, period) / 1000, now_s),
        )
        return replace(view, runs_out=run_out(left, paces, now_s, view.resets_at))

    def _shortage(self, service: str, model: str) -> str:
        """Why calls to the service are refused for lack of money now; empty if they are not."""
        noted = self._shortages.get(service)
        left = None if noted is None else self._lack(noted)
        if noted is not None and left is not None:
            return (
                f"{_titled(noted.name, self.ledger.standing(noted.name))} does not cover the last call: "
                f"up to {_usd(noted.amount)} needed, {_usd(left)} left"
            )
        for budget in self.of(service, model)[1:]:
            standing = self.ledger.standing(budget.name)
            if standing.limit is not None and standing.spent >= standing.limit:
                return f"{_titled(budget.name, standing)} is used up"
        return ""

    def _lack(self, noted: Shortage) -> int | None:
        """What is left of the budget if the refused call would be refused again; None if it would succeed now."""
        if noted.period != self._names[noted.name].purse.key.period:
            return None
        left = _left(self.ledger.standing(noted.name))
        return max(0, left) if left is not None and left < noted.amount else None

    def _short(self, service: str, now_s: float) -> Short | None:
        """The latest refusal for lack of money, as long as an alert about it is justified; else None."""
        # `_shortages` ends with the first call that succeeds. If small calls succeed while large ones are refused, an
        # alert that follows it would start and end every few seconds. So a refusal also counts for `SHORT_KEPT_S`.
        noted = self._last_shortages.get(service)
        if noted is None or (now_s - noted.at_wall_s >= SHORT_KEPT_S and service not in self._shortages):
            return None
        left = self._lack(noted)
        if left is None:
            return None
        return Short(
            budget=noted.name.removeprefix("budget/") if noted.name in self._options else "",
            title=_titled(noted.name, self.ledger.standing(noted.name)),
            needed_usd=from_pico(noted.amount),
            left_usd=from_pico(left),
            resets_at=self.ledger.view(noted.name).resets_at,
        )

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────

    def refusal(
        self,
        service: str,
        budgets: tuple[Budget, ...],
        amount: int,
        why: Refusal,
        short: str | None,
        now_s: float,
    ) -> ServiceRefused:
        """The error for a call that got no hold. `short` names the budget without room, if it is known."""
        error = self._refusal(service, budgets, amount, why, short, now_s)
        names = [short] if short else [budget.name for budget in budgets]
        wanted = [self._options[name].on_exhausted for name in names if name in self._options]
        error.instead = next((name for name in wanted if name != "refuse"), None)
        return error

    def _refusal(
        self,
        service: str,
        budgets: tuple[Budget, ...],
        amount: int,
        why: Refusal,
        short: str | None,
        now_s: float,
    ) -> ServiceRefused:
        if why is Refusal.CLOSED:
            return not_begun(service)
        if why is Refusal.AWAY:
            reason = (
                f"koo cannot check whether the budget covers this call: {self.ledger.trouble}; "
                "calls under a budget that was set are refused until the state store is back"
            )
            return ServiceRefused(service, reason, AWAY_RETRY_S, kind=Kind.STORE_UNAVAILABLE)
        name = short or next(b.name for b in budgets if b.limit is not None)
        standing = self.ledger.standing(name)
        # Retrying soon makes sense in two cases. Other processes have idle money, which arrives within two beats of the
        # recall. Or running calls hold what is missing, and they seldom cost as much as they hold. Otherwise only a new
        # period helps.
        fits_soon = standing.limit is None or amount <= standing.limit - standing.spent - standing.unsettled
        is_soon = why is Refusal.NOT_MET and (standing.idle > 0 or fits_soon)
        retry_after_s = (
            RECALL_RETRY_S if is_soon else max(0.0, self._resets_at(name, budgets, amount) - now_s)
        )
        if name not in self._options or self._options[name].tag is None:
            # A tag's budget is not recorded as the service's shortage: callers with other tags can still use the
            # service, and one tenant at its limit must not raise an alert for all.
            noted = Shortage(name, self._names[name].purse.key.period, amount, now_s)
            self._shortages[service] = self._last_shortages[service] = noted
        self.not_spent[service] += amount
        cause = Cause.BUDGET_USED_UP if _is_used_up(standing) else Cause.BUDGET_TOO_SMALL
        reason = _sentence(_titled(name, standing), standing, amount)
        return BudgetExceeded(service, reason, retry_after_s, cause=cause)

    def _resets_at(self, name: str, budgets: tuple[Budget, ...], amount: int) -> float:
        """When the last of the budgets without room resets, in wall seconds.

        Not the first: if a month's budget is full too, the new day does not help.
        """
        full = {name}
        for one in budgets:
            standing = self.ledger.standing(one.name)
            if standing.limit is not None and amount > standing.limit - standing.spent - standing.unsettled:
                full.add(one.name)
        return max(self.ledger.view(one).resets_at for one in full)


def _left(standing: Standing) -> int | None:
    """What calls can still hold, including idle money of other processes; None if there is no limit."""
    if standing.limit is None:
        return None
    return standing.limit - standing.spent - max(0, standing.held) - standing.unsettled


def _is_used_up(standing: Standing) -> bool:
    return standing.limit is not None and standing.spent + standing.unsettled >= standing.limit


def _titled(name: str, standing: Standing) -> str:
    limit = "" if standing.limit is None else f" of {_usd(standing.limit)}"
    return f"{_title(name)}{limit}"


def _title(name: str) -> str:
    kind, _, rest = name.partition("/")
    return "the day's budget" if kind == "service" else f"the budget {rest!r}"


def _sentence(title: str, standing: Standing, amount: int) -> str:
    """The message of a refusal, with the amounts that led to it."""
    parts = [
        f"{_usd(standing.spent)} spent",
        f"{_usd(max(0, standing.held))} held for running calls",
    ]
    if standing.unsettled:
        parts.append(f"{_usd(standing.unsettled)} unsettled by processes that no longer report")
    if standing.idle:
        parts.append(f"{_usd(standing.idle)} idle in {standing.processes} processes and recalled")
    parts.append(f"up to {_usd(amount)} needed")
    why = "is used up" if _is_used_up(standing) else "does not cover this call"
    return f"{title} {why}: {', '.join(parts)}"


def _usd(pico: int) -> str:
    return in_words(Decimal(from_pico(pico)))
