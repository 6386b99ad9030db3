"""Fetches units of limits from the store in the background: it carries out the decisions of `policies/hand.py`.

A call that finds a unit in hand never comes here. A call that finds none waits for the reply to the next message, which
is sent immediately, on behalf of all waiting callers. One message at a time is in flight, and it reports every
limit that is due. A message without a reply is dropped, and the next one reports the same totals or larger ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
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
from koo.storage.executor import Executor
from koo.storage.ledger import Ledger
from koo.storage.rounds import Rounds
from koo.storage.windows import MemoryWindows, Windows, receive_in

log = logging.getLogger("koo")

AWAY_S = 1.0
"""How often an unreachable store is tried, in case its return went unnoticed."""
TOGETHER_S = 0.2
"""Limits that are due within this time are reported in the same message."""


class Lessee(Protocol):
    """Something that leases units: a service's limits."""

    def hands(self) -> list[Hand]:
        """The limits' hands, without booking the units that calls have taken."""
        ...

    def leased(self, now: float) -> list[tuple[SlidingCount, Hand]]:
        """The limits' fleet-wide counts and hands, after booking the units that calls have taken."""
        ...

    def wanted(self) -> tuple[int, int]:
        """How many units the first waiting caller lacks, and how many all waiting callers lack together."""
        ...


class LimitExchange(Protocol):
    """Where messages are sent."""

    async def send(self, process: str, told: Sequence[Told]) -> list[Grant]:
        """One transaction. Raises `StoreUnavailable`."""
        ...


class MemoryLimitExchange:
    """Limits in memory; they end with the process."""

    def __init__(self, clock: Clock, windows: Windows | None = None) -> None:
        self.windows = windows if windows is not None else MemoryWindows()
        self._clock = clock

    async def send(self, process: str, told: Sequence[Told]) -> list[Grant]:
        """Reply immediately."""
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

    Use it on one event loop at a time. Without `run`, a temporary task serves waiting callers.
    """

    def __init__(self, exchange: LimitExchange, ledger: Ledger, clock: Clock) -> None:
        self._exchange = exchange
        self._ledger = ledger
        self._now = clock.monotonic
        self._lessees: dict[str, Lessee] = {}
        self._days: list[DayHand] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._name = ""
        self._rounds = Rounds(self._try_to_exchange, self._pause_s)
        self._is_closed = False
        self.messages = 0
        ledger.before_beats = self._settle
        forget_in_child(self)

    # ── limits ────────────────────────────────────────────────────────────────────────────────────────────────

    def share(
        self, limits: Limits, name: str, requests: Budget | None = None, tokens: TokenLimit | None = None
    ) -> None:
        """Share limits among all processes on the store; they replace earlier ones of the same name.

        `requests` is the ledger's budget of the day's requests.
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
        """Set the number of processes among which a limit is divided while the store is unreachable."""
        for hand in self._hands():
            hand.processes = max(1, processes)

    # ── a call ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, name: str, limits: Limits, deadline: float) -> None:
        """Wait for one reply about each limit that has no units in hand. Raises `ServiceRefused` once closed."""
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
        # The hold only makes the ledger fetch units. It is released, which leaves them in the purse, and the caller
        # takes one from there like every other call. If the hold were kept, the same call would be counted twice.
        if isinstance(answer, Hold):
            self._ledger.release(answer)
        elif answer[0] is not Refusal.CLOSED:
            hand.refused(self._now(), is_used_up=answer[0] is Refusal.NEVER)

    async def _ask_tokens(self, name: str, deadline: float) -> None:
        self._refuse_closed(name)
        await self.answer(deadline)

    def _refuse_closed(self, name: str) -> None:
        # A call that arrives after `finish` would open the store's thread again, and nothing would close that one.
        if self._is_closed:
            raise not_begun(name)

    async def answer(self, deadline: float) -> None:
        """Wait for the store's next reply, or until `deadline`."""
        self._come_to_this_loop()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.ring()
        self._rounds.serve(lambda: bool(self._waiting))
        try:
            async with asyncio.timeout(deadline - self._now()):
                await future
        except TimeoutError:
            if future in self._waiting:
                self._waiting.remove(future)

    # ── the messages ──────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Report use and request units, until cancelled."""
        self._come_to_this_loop()
        await self._rounds.run()

    async def _try_to_exchange(self) -> None:
        try:
            await self.exchange()
        except StoreUnavailable:
            pass  # the store itself logs this once, and again when it is back
        except Exception:
            log.exception("units of limits could not be fetched; koo will try again")

    async def exchange(self, *, is_last: bool = False) -> None:
        """Send one message about the limits that are due, and process the reply. Raises `StoreUnavailable`."""
        self._come_to_this_loop()
        # With two messages in flight, a hand would take the reply to the second for the reply to the first, and the
        # lease would count from the wrong moment.
        async with self._rounds.one_at_a_time:
            self._look_at_name()
            # The time is read before the message leaves, because a lease counts from here. If it counted from the
            # reply, it would outlast the store's own count by the time that the reply took, and a unit could be spent
            # twice.
            now = self._now()
            # Only callers that wait now are woken by this reply. One that starts to wait during the exchange is not
            # in this message, so it must wait for the next one.
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
            # The store has said when a unit can be free again. Before that moment a need is not repeated, so a
            # thousand refused calls cost the store nothing.
            need, waiting = lessee.wanted() if now >= hand.shut_until else (0, 0)
            told.append(hand.ask(now, count, need, waiting, is_last=is_last))
        self.messages += 1
        try:
            grants = await self._exchange.send(self._name, told)
        except BaseException:
            # The store may have committed the message or not. The hand keeps its totals, which only grow, so the next
            # message repairs either case: a total that arrives twice changes nothing, and units that were granted
            # without this process learning of them count as used when their lease ends.
            for _, _, hand in hands:
                hand.give_up()
                hand.lose(now)
                hand.is_away = self._ledger.trouble is not None
                # Otherwise each waiting caller would trigger the next attempt immediately, and a store that replies
                # with an error would be queried in a tight loop.
                hand.shut_until = hand.due_at = now + AWAY_S
            raise
        for (lessee, _, hand), grant in zip(hands, grants, strict=True):
            # Calls took units during the exchange. They are booked on the lease they came from, before `hear` may begin
            # another one; if they were booked later, they would be reported as used from the new lease.
            lessee.leased(self._now())
            hand.is_away = False
            hand.hear(grant, now, self._now())

    def _due(self, now: float, is_last: bool) -> list[tuple[Lessee, SlidingCount, Hand]]:
        """The limits to report or to request units for."""
        is_waited_for = any(lessee.wanted()[1] for lessee in self._lessees.values())
        # This cheap check comes first, because `leased` below books what was taken and drops the units granted ahead,
        # after which the next call has to check all of its limits again.
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
        """Book the units that calls have taken, if a beat is about to return units of a purse."""
        # This is not done before every beat, because booking drops the units granted ahead, and the next call would
        # have to check all of its limits again. But if a beat returned units that a call has taken, the store could
        # grant them to another process, so the daily limit would be exceeded by that many.
        if any(self._ledger.purses.may_send_home(day.budget.purse) for day in self._days):
            for lessee in self._lessees.values():
                lessee.leased(self._now())

    def _look_at_name(self) -> None:
        """Drop all units if the ledger has taken another name: they were granted to the old one."""
        name = self._ledger.process
        if name != self._name:
            self._name = name
            self._begin_again()

    def _pause_s(self) -> float:
        now = self._now()
        for day in self._days:
            day.rest(now, LOOK_S)
        if self._ledger.trouble is not None:
            return AWAY_S
        due_at = min((hand.due_at for hand in self._hands()), default=now + LOOK_S)
        return min(max(due_at - now, 0.0), LOOK_S)

    def ring(self) -> None:
        """Send a message now."""
        self._rounds.ring()

    def store_changed(self, trouble: str | None) -> None:
        """React to the loss or the return of the store."""
        for hand in self._hands():
            hand.is_away = trouble is not None
            # Units used in the meantime must be reported now. The store grants nothing of a limit until every process
            # has had time to report, and a later report would be counted after other processes were granted units.
            if trouble is None:
                hand.due_at = self._now()
            else:
                hand.lose(self._now())
        self._answer_all()
        self.ring()

    def _answer_all(self) -> None:
        """Wake all waiting callers, so they check their limits again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def reopen(self) -> None:
        """Accept calls again after `finish`."""
        self._is_closed = False

    async def begin(self) -> None:
        """Read the state of the limits before the first call. Raises `StoreUnavailable`."""
        await self.exchange()

    async def finish(self) -> None:
        """Report what was used and return the rest, because this process ends. Raises `StoreUnavailable`.

        Calls that wait for a reply are refused, and so are later ones until `reopen`.
        """
        self._is_closed = True
        self._answer_all()
        for lessee in self._lessees.values():
            lessee.leased(self._now())
        if self._name and any(hand.has_news() for hand in self._hands()):
            await self.exchange(is_last=True)

    def _come_to_this_loop(self) -> None:
        """Move to the running loop. Raises RuntimeError while a background task runs on another loop."""
        if self._rounds.come(may_move=not self._rounds.is_running):
            self._waiting.clear()

    def forget_parent(self) -> None:
        """In a forked child, drop the units in hand and the waiting callers: they are the parent's."""
        self._rounds.forget_parent()
        self._waiting.clear()
        self._name = ""
        self._begin_again()

    def _begin_again(self) -> None:
        for lessee in self._lessees.values():
            lessee.leased(self._now())  # drops the units granted ahead
            for hand in lessee.hands():
                hand.begin_again()
