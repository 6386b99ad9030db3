"""The ledger in a database: holds are durable before `hold` returns; everything else is written a moment later.

What is said to the ledger waits in one queue, in order. The store's thread takes all that waits (up to five hundred
acts) and does it in one transaction (`koo.storage.books`), so fifty calls that hold at the same moment cost one
commit. A hold is urgent. A settlement waits some hundredths of a second for company; losing it is no harm to the cap,
because a hold whose end was not written is booked at its bound when its lease is over.

A hold ends once, whatever happens:

* Who asked for it left before it was answered (cancelled, or the store was too slow): if it was not yet taken up, it
  never is; if it was, the ledger itself releases it, and takes its request back.
* The store was lost and nobody knows whether the hold was committed: the caller is told that the store is
  unavailable, and a release follows as soon as the store is back; a release of what is not there does nothing.
* A settlement that cannot be written waits, in order, and is written when the store is back. The queue is bounded:
  what does not fit is dropped, counted in `dropped`, logged, and booked at its bound by the sweeper.
* The process dies: its holds are booked at their bounds by any other process's sweep, or by its own after a restart.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeGuard

from koo.clock import utc_day
from koo.options import DAY_S
from koo.storage.base import Bill, BudgetView, Hold, HoldRequest, StoreUnavailable
from koo.storage.books import Act, Booking, Count, End, Key, Posting, Put, Totals, post, read_days, sweep
from koo.storage.executor import Executor
from koo.storage.memory import Ids
from koo.storage.money import from_pico, limit_to_pico, refusal, to_pico
from koo.storage.transaction import Row, StatementRejected, Transaction

log = logging.getLogger("koo")

ACTS_PER_COMMIT = 500
WAITING_MAX = 100_000
FRESH_S = 1.0
"""A refusal may rest on a view that is younger than this: what is settled never becomes less within a day."""
SKEW_S = 5.0
"""Leases are in wall time, and the clocks of two machines differ: a sweeper is so late, so as not to be early."""
DAYS_KNOWN_MAX = 1000
TEXT_MAX = 256
INTEGER_MAX = 2**63 - 1


class SqlLedger:
    """Money that is shared by all processes on the same store."""

    def __init__(self, executor: Executor, linger_s: float) -> None:
        self.dropped = 0
        self._executor = executor
        self._clock = executor.clock
        self._linger_s = linger_s
        self._ids = Ids()
        self._acts: deque[Act] = deque()
        self._batch_waits = False
        self._batches = 0  # that are not yet told
        self._timer: asyncio.TimerHandle | None = None
        self._views: dict[str, tuple[int, int, int, float]] = {}  # service → day, settled, held, as of
        self._begun: set[Key] = set()

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used now; None: nothing is known against it."""
        return self._executor.trouble

    @property
    def waiting(self) -> int:
        """Bookings that are not written yet."""
        return len(self._acts)

    # ── money ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def hold(self, request: HoldRequest) -> Hold:
        """Put the worst case aside, durably, and count a request. What costs nothing does not wait for the store.

        Raises `BudgetExceeded`, `StoreUnavailable` (after the store's `timeout_s` at the latest), and ValueError for an
        amount that is no money.
        """
        wall = self._clock.wall()
        put = self._put(request, self._ids.new(), utc_day(wall), to_pico(request.amount_usd), wall)
        hold = Hold(put.id, request.service, put.day, from_pico(put.amount))
        if put.amount == 0:
            self._add(put)
            return hold
        put.limit = limit_to_pico(request.allowance.limit_usd)
        self._refuse_early(request, put, wall)
        totals = await self._answer(put)
        if totals is not None:
            raise refusal(request, from_pico(totals.settled), from_pico(totals.held), wall)
        return hold

    def adopt(self, hold: Hold, request: HoldRequest) -> None:
        """Take a hold that was given elsewhere while the store was away, without asking whether it fits."""
        wall = self._clock.wall()
        put = self._put(request, hold.id, hold.day, to_pico(hold.amount_usd), wall)
        day, settled, held, as_of = self._views.get(put.service, (put.day, 0, 0, 0.0))
        if day == put.day:  # Seen at once: the store may be lost again before it is written.
            self._views[put.service] = (day, settled, held + put.amount, as_of)
        self._add(put)

    def settle(self, hold: Hold, bill: Bill) -> None:
        """Book what it cost, to the hold's own day. A cost that is no money is booked at the hold's bound."""
        try:
            amount: int | None = to_pico(bill.amount_usd)
        except ValueError:
            log.error("%s: a cost of %s USD is no money; its bound was booked", hold.service, bill.amount_usd)
            amount = None
        self._add(
            End(service=hold.service, day=hold.day, id=hold.id, booking=Booking(amount, _columns(bill)))
        )

    def release(self, hold: Hold) -> None:
        """Nothing was billed. The request stays counted: it was made."""
        self._add(End(service=hold.service, day=hold.day, id=hold.id))

    def count(self, service: str, day: int, count: int) -> None:
        """So many requests more (or less) of that service on that day, without money."""
        self._add(Count(service=service, day=day, count=count))

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────

    def view(self, service: str) -> BudgetView:
        """Today's numbers as this process last saw them: after its own holds, and after each `refresh`."""
        wall = self._clock.wall()
        today = utc_day(wall)
        day, settled, held, as_of = self._views.get(service, (0, 0, 0, 0.0))
        if day != today:
            return BudgetView(today, Decimal(0), Decimal(0), max(as_of, today * DAY_S))
        return BudgetView(day, from_pico(settled), from_pico(held), as_of)

    async def refresh(self) -> None:
        """Read today's numbers of all services anew. Raises `StoreUnavailable`."""
        today = utc_day(self._clock.wall())
        days = await self._executor.run(lambda tx: read_days(tx, today), exclusive=False)
        self._see({(service, today): totals for service, totals in days.items()})

    async def sweep(self) -> list[Hold]:
        """Book what dead processes left, at its bound; gives the holds that were booked. Raises `StoreUnavailable`."""
        swept: list[Hold] = []
        while True:
            now_ms = int((self._clock.wall() - SKEW_S) * 1000)
            posting: Posting = await self._executor.run(
                lambda tx, now_ms=now_ms: sweep(tx, self._executor.process, now_ms, self._begun)  # type: ignore[misc]
            )
            if not posting.totals:
                return swept
            self._see(posting.totals)
            swept += [_hold(row) for row in posting.ended.values()]

    async def flush(self) -> None:
        """Wait until everything said so far is written. Raises `StoreUnavailable`."""
        while self._acts or self._batches:
            self.submit()
            # Done in its turn: after the batches before it.
            await self._executor.run(lambda tx: None, exclusive=False)
            if self._acts and self.trouble is not None:
                raise StoreUnavailable(self.trouble)

    # ── the queue ─────────────────────────────────────────────────────────────────────────────────────────────

    def _add(self, act: Act) -> None:
        """Write it a moment later."""
        if len(self._acts) >= WAITING_MAX:
            self._drop()
            return
        self._acts.append(act)
        if self._timer is None and self._executor.is_open:
            self._timer = asyncio.get_running_loop().call_later(self._linger_s, self._linger_ended)

    def _linger_ended(self) -> None:
        self._timer = None
        self.submit()

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped % 1000 == 1:
            log.error(
                "the state store is away and %d bookings wait; %d were dropped (holds are booked at their bound)",
                len(self._acts),
                self.dropped,
            )

    def begin(self) -> None:
        """A thread has begun: what waits is for this one.

        A thread before it, whose loop is gone, may still be at work, and could tell nobody that it took a hold. So it
        keeps the old queue, empty.
        """
        old, self._acts = self._acts, deque()
        try:
            while True:
                self._acts.append(old.popleft())
        except IndexError:
            pass
        self._timer = None
        self._batch_waits = False
        self._batches = 0
        if self._acts:
            self.submit()

    def store_changed(self, trouble: str | None) -> None:
        """The store was lost, or is back: then what could not be written is."""
        if trouble is None:
            self.submit()

    def submit(self) -> None:
        """Have the store's thread take what waits."""
        self._executor.start()
        if not self._batch_waits:
            self._batch_waits = True
            self._submit(self._acts)

    def one_by_one(self, acts: list[Act]) -> None:
        """On the loop: one of them is at fault, so each gets a transaction of its own."""
        self._batches -= 1
        for act in acts:
            self._submit(deque([act]))

    def _submit(self, queue: deque[Act]) -> None:
        self._batches += 1
        self._executor.submit(Batch(self, queue))

    def take(self, queue: deque[Act]) -> list[Act]:
        """In the thread: what waits, without holds that nobody waits for any more."""
        if queue is self._acts:
            # Before anything is taken out: what comes in from now on gets a batch of its own.
            self._batch_waits = False
        acts: list[Act] = []
        while queue and len(acts) < ACTS_PER_COMMIT:
            act = queue.popleft()
            if not (isinstance(act, Put) and act.answer is not None and act.answer.cancelled()):
                acts.append(act)
        return acts

    def post(self, tx: Transaction, acts: list[Act]) -> Posting:
        """In the thread, in a transaction."""
        now_ms = int(self._clock.wall() * 1000)
        if len(self._begun) > DAYS_KNOWN_MAX:
            self._begun.clear()
        return post(tx, acts, self._executor.process, now_ms, self._begun)

    def put_back(self, acts: list[Act]) -> None:
        """In the thread: they are not written, or nobody knows. A hold is not asked for again: its caller is told."""
        self._acts.extendleft(act for act in reversed(acts) if not _asked(act))

    def done(self, acts: list[Act], posting: Posting) -> None:
        """On the loop: it is written."""
        self._batches -= 1
        self._see(posting.totals)
        for act in acts:
            if _asked(act):
                self._tell(act, posting.totals[act.key])
        if len(acts) == ACTS_PER_COMMIT:  # There may be more, for which nobody has asked for a turn.
            self.submit()

    def failed(self, acts: list[Act], error: Exception, *, begun: bool) -> None:
        """On the loop: nothing is written, or nobody knows."""
        self._batches -= 1
        for act in acts:
            if _asked(act):
                assert act.answer is not None
                if not act.answer.done():
                    act.answer.set_exception(_as_unavailable(error))
                if begun:
                    self._forget(act)
            elif not _is_away(error):
                self.dropped += 1
                log.error("the state store does not take a booking: %s", error)

    def _tell(self, put: Put, totals: Totals) -> None:
        assert put.answer is not None
        if not put.answer.done():
            put.answer.set_result(None if put.admitted else totals)
        elif put.admitted:
            self._forget(put)

    async def _answer(self, put: Put) -> Totals | None:
        """None: admitted; else the totals that left no room. Whoever is cancelled here keeps no hold."""
        put.answer = asyncio.get_running_loop().create_future()
        self._executor.start()  # Before it is in a queue that a thread of another loop might still look into.
        self._acts.append(put)
        self.submit()
        try:
            return await self._executor.wait(put.answer)
        except BaseException:
            # Cancelled in the very moment when the answer was there already.
            if _answered(put.answer) and put.admitted:
                self._forget(put)
            raise

    def _forget(self, put: Put) -> None:
        """As if it had never been asked for."""
        self._add(End(service=put.service, day=put.day, id=put.id, uncount=True))

    def _refuse_early(self, request: HoldRequest, put: Put, wall: float) -> None:
        """Refuse without asking, where what is settled alone leaves no room: that cannot change before midnight."""
        day, settled, held, as_of = self._views.get(put.service, (0, 0, 0, 0.0))
        if put.limit is None or day != put.day or not 0 <= wall - as_of < FRESH_S:
            return
        if settled + put.amount > put.limit:
            raise refusal(request, from_pico(settled), from_pico(held), wall)

    def _see(self, totals: dict[Key, Totals]) -> None:
        wall = self._clock.wall()
        today = utc_day(wall)
        for (service, day), row in totals.items():
            if day == today:
                self._views[service] = (day, row.settled, row.held, wall)

    def _put(self, request: HoldRequest, id_: str, day: int, amount: int, wall: float) -> Put:
        return Put(
            service=request.service,
            day=day,
            id=id_,
            model=_cut(request.model),
            amount=amount,
            lease_ends_ms=int((wall + request.lease_s) * 1000),
            tag=None if request.tag is None else _cut(request.tag),
            metadata=_as_json(request.metadata),
        )


class Batch:
    """The ledger's turn in the thread: everything that waits, in one transaction."""

    exclusive = True

    def __init__(self, ledger: SqlLedger, queue: deque[Act]) -> None:
        self._ledger = ledger
        self._queue = queue
        self._acts: list[Act] = []
        self._begun = False
        self._posting = Posting()
        self._alone: list[Act] = []

    def wanted(self) -> bool:
        self._acts = self._ledger.take(self._queue)
        return bool(self._acts)

    def write(self, tx: Transaction) -> None:
        self._begun = True
        self._posting = self._ledger.post(tx, self._acts)

    def after(self, error: Exception | None) -> None:
        if error is None:
            return
        if self._begun:
            for act in self._acts:
                act.tried = True
        if _is_away(error):
            self._ledger.put_back(self._acts)
        elif len(self._acts) > 1:
            self._alone = self._acts

    def finished(self, error: Exception | None) -> None:
        if error is None:
            self._ledger.done(self._acts, self._posting)
        elif self._alone:
            self._ledger.one_by_one(self._alone)
        else:
            self._ledger.failed(self._acts, error, begun=self._begun)


class SqlQuotas:
    """How many requests a service had today; a hold of the same store's ledger counts as one already."""

    def __init__(self, executor: Executor, ledger: SqlLedger) -> None:
        self._executor = executor
        self._ledger = ledger

    async def used_today(self, service: str) -> int:
        """Requests of all processes on this UTC day. Raises `StoreUnavailable`."""
        today = utc_day(self._executor.clock.wall())
        await self._ledger.flush()
        days = await self._executor.run(lambda tx: read_days(tx, today), exclusive=False)
        totals = days.get(service)
        return 0 if totals is None else totals.requests

    def add(self, service: str, day: int, count: int) -> None:
        """Count `count` requests on `day`; a negative number gives some back. Written a moment later."""
        if count:
            self._ledger.count(service, day, count)


def _is_away(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable) and not isinstance(error, StatementRejected)


def _asked(act: Act) -> TypeGuard[Put]:
    return isinstance(act, Put) and act.answer is not None


def _answered(answer: asyncio.Future[Totals | None]) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None


def _as_unavailable(error: Exception) -> Exception:
    if isinstance(error, StoreUnavailable):
        return type(error)(str(error))  # A fresh one each: a shared one grows its traceback without end.
    return error


def _hold(row: Row) -> Hold:
    id_, service, day, _, amount, *_ = row
    return Hold(id_, service, day, from_pico(amount))


def _columns(bill: Bill) -> dict[str, Any]:
    return {
        "model": _cut(bill.model),
        "source": _cut(bill.source),
        "estimated": int(bill.source == "estimate"),
        "input_tokens": _fit(bill.input_tokens),
        "cache_read_tokens": _fit(bill.cache_read_tokens),
        "cache_write_tokens": _fit(bill.cache_write_tokens),
        "output_tokens": _fit(bill.output_tokens),
        "reasoning_tokens": _fit(bill.reasoning_tokens),
        "unit_prices": json.dumps(bill.unit_prices, default=str),
        "price_version": _cut(bill.price_version),
    }


def _cut(said: str) -> str:
    """What a text column takes: PostgreSQL has no NUL in a text, neither database a lone surrogate."""
    if said.isascii() and len(said) <= TEXT_MAX and "\0" not in said:
        return said
    return said[:TEXT_MAX].replace("\0", "").encode(errors="replace").decode()


def _as_json(metadata: Mapping[str, str]) -> str | None:
    """ASCII alone, so that any text fits into any database."""
    if not metadata:
        return None
    return json.dumps({str(key)[:TEXT_MAX]: str(value)[:TEXT_MAX] for key, value in metadata.items()})


def _fit(tokens: int) -> int:
    return max(0, min(int(tokens), INTEGER_MAX))
