"""Units of limits, fetched from the store behind the calls: what `policies/hand.py` decides, on one event loop.

A call with a unit in hand never comes here. A call without one waits for the answer to the next message, which goes out
at once and speaks for all waiting callers. One message at a time is under way; it reports every limit that is due. A
message that is not answered is given up: the next one reports the same totals, or larger ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from koo.clock import Clock
from koo.forks import forget_in_child
from koo.policies.day_hand import DayHand
from koo.policies.hand import LOOK_S, Hand
from koo.policies.limiter import DayCount, Limits, SlidingCount
from koo.policies.purse import Budget, Hold, Refusal
from koo.policies.token_limit import TokenLimit
from koo.policies.units import Grant, Told
from koo.refusals import not_begun
from koo.storage.base import StoreUnavailable
from koo.storage.executor import IN_USE, Executor
from koo.storage.ledger import Ledger
from koo.storage.windows import MemoryWindows, Windows, receive_in

log = logging.getLogger("koo")

AWAY_S = 1.0
"""How often an absent store is asked, in case its return went unnoticed."""
TOGETHER_S = 0.2
"""What is due this soon travels with what is due now."""


class Lessee(Protocol):
    """What has units in hand: a service's limits."""

    def hands(self) -> list[Hand]:
        """What is leased, without booking what was taken."""
        ...

    def leased(self, now: float) -> list[tuple[SlidingCount, Hand]]:
        """Its fleet-wide counts, as they are now; what was taken is booked."""
        ...

    def wanted(self) -> tuple[int, int]:
        """How many units the first waiting caller lacks, and all of them together."""
        ...


class LimitExchange(Protocol):
    """Where messages go."""

    async def send(self, process: str, told: Sequence[Told]) -> list[Grant]:
        """One transaction. Raises `StoreUnavailable`."""
        ...


class MemoryLimitExchange:
    """Limits that end with the process."""

    def __init__(self, clock: Clock, windows: Windows | None = None) -> None:
        self.windows = windows if windows is not None else MemoryWindows()
        self._clock = clock

    async def send(self, process: str, told: Sequence[Told]) -> list[Grant]:
        """Answer at once."""
        return self.windows.receive(process, told, int(self._clock.wall() * 1000))


class SqlLimitExchange:
    """Limits in a database, reached through the store's thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def send(self, process: str, told: Sequence[Told]) -> list[Grant]:
        """One transaction. Raises `StoreUnavailable`."""
        wall_ms = int(self._executor.clock.wall() * 1000)
        return await self._executor.run(lambda tx: receive_in(tx, process, told, wall_ms))


class Leasing:
    """The units of all limits of one process. `run` is its background task.

    Use it on one event loop at a time. Without `run`, a temporary task asks for what callers wait for.
    """

    def __init__(self, exchange: LimitExchange, ledger: Ledger, clock: Clock) -> None:
        self._exchange = exchange
        self._ledger = ledger
        self._now = clock.monotonic
        self._lessees: dict[str, Lessee] = {}
        self._days: list[DayHand] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._name = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._runs = 0
        self._is_closed = False
        self._helper: asyncio.Task[None] | None = None
        self.messages = 0
        ledger.before_beats = self._settle
        forget_in_child(self)

    # ── limits ────────────────────────────────────────────────────────────────────────────────────────────────

    def share(
        self, limits: Limits, name: str, requests: Budget | None = None, tokens: TokenLimit | None = None
    ) -> None:
        """Make limits hold for all processes on the store; earlier ones of the same name are forgotten.

        `requests`: the ledger's budget of a day's requests.
        """
        for count in limits.counts:
            if isinstance(count, SlidingCount):
                count.hand = self.hand(f"{count.name}/{name}", count.limit, count.period_s)
            elif requests is not None and requests.limit is not None:
                count.hand = self._day(count, requests)
        limits.ask = partial(self._ask, name, limits)
        self._lessees[name] = limits
        if tokens is not None:
            tokens.count.hand = self.hand(
                f"tokens a minute/{name}", tokens.count.limit, tokens.count.period_s
            )
            tokens.ask = partial(self._ask_tokens, name)
            self._lessees[f"{name}/tokens"] = tokens

    def hand(self, name: str, limit: int, period_s: float) -> Hand:
        """This process's units of one limit."""
        hand = Hand(name, limit, period_s, self.ring)
        hand.is_away = self._ledger.trouble is not None
        return hand

    def _day(self, count: DayCount, budget: Budget) -> DayHand:
        purses = self._ledger.purses
        hand = DayHand(
            budget,
            roll=lambda now: purses.roll((budget,), now),
            ring=self._ledger.ring,
            is_away=lambda: self._ledger.trouble is not None,
        )
        self._days.append(hand)
        return hand

    def know_processes(self, processes: int) -> None:
        """`processes` are on the store: a limit is divided among them while the store is away."""
        for hand in self._hands():
            hand.processes = max(1, processes)

    # ── a call ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, name: str, limits: Limits, deadline: float) -> None:
        """Wait for one answer about each limit without units in hand. Raises `ServiceRefused` once closed."""
        self._refuse_closed(name)
        self._come_to_this_loop()
        self.ring()
        for count in limits.counts:
            if isinstance(count.hand, DayHand) and count.hand.units(self._now(), count.used)[0] <= 0:
                await self._ask_day(count.hand, deadline)
                self._refuse_closed(name)
        if limits.lacks(self._now()):
            await self.answer(deadline)

    async def _ask_day(self, hand: DayHand, deadline: float) -> None:
        try:
            answer = await self._ledger.wait((hand.budget,), 1, deadline, is_patient=False)
        except TimeoutError:
            return
        if isinstance(answer, Hold):
            self._ledger.release(answer)
        elif answer[0] is not Refusal.CLOSED:
            hand.refused(self._now(), is_used_up=answer[0] is Refusal.NEVER)

    async def _ask_tokens(self, name: str, deadline: float) -> None:
        self._refuse_closed(name)
        await self.answer(deadline)

    def _refuse_closed(self, name: str) -> None:
        """A straggler would open the store again, and it would never be closed."""
        if self._is_closed:
            raise not_begun(name)

    async def answer(self, deadline: float) -> None:
        """Wait for the store's next answer, or until `deadline`."""
        self._come_to_this_loop()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.ring()
        if not self._runs and (self._helper is None or self._helper.done()):
            self._helper = asyncio.create_task(self._run(lambda: bool(self._waiting)))
        try:
            async with asyncio.timeout(deadline - self._now()):
                await future
        except TimeoutError:
            if future in self._waiting:
                self._waiting.remove(future)

    # ── the messages ──────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Report and ask, until cancelled."""
        await self._run(lambda: True)

    async def _run(self, goes_on: Callable[[], bool]) -> None:
        self._come_to_this_loop()
        loop = self._loop
        self._runs += 1
        try:
            while goes_on():
                await self._until_due()
                await self._try_to_exchange()
        finally:
            if self._loop is loop:
                self._runs -= 1

    async def _try_to_exchange(self) -> None:
        try:
            await self.exchange()
        except StoreUnavailable:
            pass  # the store itself logs this once, and again when it is back
        except Exception:
            log.exception("units of limits could not be fetched; koo tries again")

    async def exchange(self, *, is_last: bool = False) -> None:
        """One message about what is due, and its answer. Raises `StoreUnavailable`."""
        self._come_to_this_loop()
        async with self._one_at_a_time:
            self._look_at_name()
            now = self._now()
            waiting, self._waiting = self._waiting, []
            hands = self._due(now, is_last)
            try:
                if hands:
                    await self._tell(hands, now, is_last)
            finally:
                for future in waiting:
                    if not future.done():
                        future.set_result(None)

    async def _tell(self, hands: list[tuple[Lessee, SlidingCount, Hand]], now: float, is_last: bool) -> None:
        told = []
        for lessee, count, hand in hands:
            need, waiting = lessee.wanted() if now >= hand.shut_until else (0, 0)
            told.append(hand.ask(now, count, need, waiting, is_last=is_last))
        self.messages += 1
        try:
            grants = await self._exchange.send(self._name, told)
        except BaseException:
            for _, _, hand in hands:
                hand.give_up()
                hand.lose(now)
                hand.is_away = self._ledger.trouble is not None
                # If the answer is an error, each waiting caller would otherwise ask again at once.
                hand.shut_until = hand.due_at = now + AWAY_S
            raise
        for (lessee, _, hand), grant in zip(hands, grants, strict=True):
            lessee.leased(self._now())  # books what was taken of the units that were here before
            hand.is_away = False
            hand.hear(grant, now, self._now())

    def _due(self, now: float, is_last: bool) -> list[tuple[Lessee, SlidingCount, Hand]]:
        """What must be reported and requested."""
        is_waited_for = any(lessee.wanted()[1] for lessee in self._lessees.values())
        if not is_last and not is_waited_for and all(hand.due_at > now for hand in self._hands()):
            return []
        found = []
        for lessee in self._lessees.values():
            waits = lessee.wanted()[1] > 0
            for count, hand in lessee.leased(now):
                lacks = hand.units(now, count.used)[0] < max(1, lessee.wanted()[0])
                is_wanted = waits and now >= hand.shut_until and lacks
                found.append((is_wanted or hand.due_at <= now, hand.due_at, lessee, count, hand))
        if not is_last and not any(is_due for is_due, *_ in found):
            return []
        return [
            (lessee, count, hand)
            for is_due, due_at, lessee, count, hand in found
            if is_due or is_last or due_at <= now + TOGETHER_S
        ]

    def _hands(self) -> list[Hand]:
        return [hand for lessee in self._lessees.values() for hand in lessee.hands()]

    def _settle(self) -> None:
        """Book what was taken of the units granted ahead, if a beat is about to take from a purse."""
        # Not with each beat: the next call would have to check all its limits again.
        if any(self._ledger.purses.may_send_home(day.budget.purse) for day in self._days):
            for lessee in self._lessees.values():
                lessee.leased(self._now())

    def _look_at_name(self) -> None:
        """Under another name, what was granted to the old one no longer belongs to this process."""
        name = self._ledger.process
        if name != self._name:
            self._name = name
            self._begin_again()

    async def _until_due(self) -> None:
        now = self._now()
        for day in self._days:
            day.rest(now, LOOK_S)
        due_at = min((hand.due_at for hand in self._hands()), default=now + LOOK_S)
        delay_s = min(max(due_at - now, 0.0), LOOK_S)
        if self._ledger.trouble is not None:
            delay_s = AWAY_S
        timer = asyncio.get_running_loop().call_later(delay_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    def ring(self) -> None:
        """Report and ask now."""
        if self._loop is None or not self._loop.is_closed():
            self._wake.set()

    def store_changed(self, trouble: str | None) -> None:
        """The store was lost, or found again."""
        for hand in self._hands():
            hand.is_away = trouble is not None
            if trouble is None:
                hand.due_at = self._now()
            else:
                hand.lose(self._now())
        self._answer_all()
        self.ring()

    def _answer_all(self) -> None:
        """Let all waiting callers look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def reopen(self) -> None:
        """It was finished, and is used again."""
        self._is_closed = False

    async def begin(self) -> None:
        """Learn how the limits stand, before the first call. Raises `StoreUnavailable`."""
        await self.exchange()

    async def finish(self) -> None:
        """This process ends: report what was used, and give back the rest. Raises `StoreUnavailable`.

        Calls that wait for an answer are refused, and later ones too, until `reopen`.
        """
        self._is_closed = True
        self._answer_all()
        for lessee in self._lessees.values():
            lessee.leased(self._now())
        if self._name and any(hand.has_news() for hand in self._hands()):
            await self.exchange(is_last=True)

    def _come_to_this_loop(self) -> None:
        """Leave a loop that has ended: an event and a lock belong to one loop. Raises RuntimeError while it runs."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running() and self._runs:
            raise RuntimeError(IN_USE)
        self._loop, self._runs, self._helper = loop, 0, None
        self._wake, self._one_at_a_time = asyncio.Event(), asyncio.Lock()
        self._wake.set()
        self._waiting.clear()

    def forget_parent(self) -> None:
        """In a forked child: units in hand and waiting callers are the parent's."""
        self._loop, self._runs, self._helper = None, 0, None
        self._wake, self._one_at_a_time = asyncio.Event(), asyncio.Lock()
        self._waiting.clear()
        self._name = ""
        self._begin_again()

    def _begin_again(self) -> None:
        for lessee in self._lessees.values():
            lessee.leased(self._now())  # drops the units granted ahead
            for hand in lessee.hands():
                hand.begin_again()
