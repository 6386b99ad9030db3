"""Runs a list of queries of any length, starting each one when its service has a free slot.

If a long list were sent all at once, its first thousand queries would fill koo's own queue, and the queue would refuse
the rest. So a list starts its next query only when the service has a slot for it. Each service is fed separately, so a
slow one delays only its own queries.

Each service has as many slots for listed queries as queries may run there at the same time. All lists share these
slots and take turns. So there are never more tasks than slots, however long the list is. A query's deadline begins
when its turn comes, not while it waits behind others of its list. If other calls have taken the guard's slots by then,
the query waits in the guard's queue, even if that is full (`gates.is_fed`).

Limits and budgets still apply to each query. If queries may wait for koo's limit, or if koo paces calls because of the
provider's limit, only one query of a list waits at a time, and the rest of the list waits behind it. Otherwise a
hundred queries would spend their deadlines in that queue.

The outcome of one query does not affect the others. If a list is cancelled, its running queries are cancelled, and it
waits until they have given back what they held.
"""

from __future__ import annotations

import logging
from asyncio import Task, TaskGroup, sleep
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from koo.ai.service import AIService
from koo.ai.types import Answer, Query
from koo.deadlines import ends_at
from koo.errors import ExternalServiceError, Kind, name_of
from koo.gates import is_fed
from koo.passage import LOOK_AGAIN_S
from koo.policies.bulkhead import Bulkhead

LOCAL_SLOTS = 2
"""The local model writes one answer at a time. The second slot keeps the next query ready when the first one ends."""

Outcome = Answer | ExternalServiceError
Ask = Callable[[Query], Awaitable[Answer]]
log = logging.getLogger("koo")


class Lists:
    """Feeds lists of queries to `services`. `ask` runs one query."""

    def __init__(self, services: Mapping[str, AIService], ask: Ask) -> None:
        self._services = services
        self._ask = ask
        self._slots: dict[str, Bulkhead] = {}

    async def ask_all(self, queries: Sequence[Query]) -> list[Outcome]:
        """An answer or an error for each, in order."""
        lanes: dict[str, list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            lanes[name_of(query.service)].append(number)
        outcomes: dict[int, Outcome] = {}
        async with TaskGroup() as group:
            for name, numbers in lanes.items():
                group.create_task(self._feed(self._services.get(name), queries, numbers, outcomes, group))
        # A task that was cancelled from outside, without its list, has left no outcome.
        return [outcomes.get(number) or _cancelled(query) for number, query in enumerate(queries)]

    async def _feed(
        self,
        one: AIService | None,
        queries: Sequence[Query],
        numbers: Sequence[int],
        outcomes: dict[int, Outcome],
        group: TaskGroup,
    ) -> None:
        """Run those of `queries` with the given `numbers`, all for the same service (None if it is unknown)."""
        is_fed.set(True)
        slots = None if one is None else self._slots_of(one)
        for number in numbers:
            query = queries[number]
            if one is None or slots is None or not await self._wait_for_turn(one, query, slots):
                # The service is unknown, or the caller's deadline has passed. Either way the query ends immediately
                # with the gateway's own error. It runs in a separate task, because the error's traceback would
                # otherwise include this frame: the frame refers to `outcomes` and that to the error, a cycle that would
                # keep every answer of the list in memory.
                outcomes[number] = await group.create_task(outcome_of(self._ask, query))
                continue
            task = group.create_task(outcome_of(self._ask, query))
            # A done callback gives the slot back, not a `finally` in the task: a task that is cancelled before its
            # first step never enters its `try`, and its slot would be lost.
            task.add_done_callback(_Landing(number, slots, outcomes))
            # Let the other lists run after each start. When several slots become free in one step, the first list to
            # wake would otherwise take all that are left, and the lists would not take turns.
            await sleep(0)

    def _slots_of(self, one: AIService) -> Bulkhead:
        options = one.options
        slots = self._slots.get(options.name)
        if slots is None:
            most = options.concurrency_max
            slots = Bulkhead(min(most, LOCAL_SLOTS) if options.kind == "local" else most)
            self._slots[options.name] = slots
        return slots

    async def _wait_for_turn(self, one: AIService, query: Query, slots: Bulkhead) -> bool:
        """Wait until the query has a slot and can proceed; False if the caller's deadline passed first."""
        gates, ends = one.service.gates, ends_at.get()
        # Wait for koo's limit and for the provider's pace before taking a slot. The slot is needed only to run; taken
        # first, it would be idle during these waits, while other lists' queries could use it.
        if query.on_limit == "wait":
            if not await gates.stand_in(gates.limit_queue, ends):
                return False
            gates.limit_queue.give_back()
        while wait_s := one.service.pace_s(query.model, now := gates.clock.monotonic()):
            if now >= ends:
                return False
            await gates.clock.sleep(min(wait_s, LOOK_AGAIN_S))
        return await gates.stand_in(slots, ends)


async def outcome_of(ask: Ask, query: Query) -> Outcome:
    """Run one query and return its answer or its error."""
    # The error is returned, not stored from within the `except` block of a frame that its traceback includes. So there
    # is no reference cycle, and it is freed together with the list.
    try:
        return await ask(query)
    except ExternalServiceError as error:
        return error
    except Exception as error:
        log.exception("a query of a list failed with an unexpected error; please report it")
        return _unexpected(query, error)


class _Landing:
    """Records the outcome of a query's task when that ends, and frees its slot."""

    __slots__ = ("_number", "_outcomes", "_slots")

    def __init__(self, number: int, slots: Bulkhead, outcomes: dict[int, Outcome]) -> None:
        self._number = number
        self._slots = slots
        self._outcomes = outcomes

    def __call__(self, task: Task[Outcome]) -> None:
        self._slots.give_back()
        if not task.cancelled() and task.exception() is None:
            self._outcomes[self._number] = task.result()


def _cancelled(query: Query) -> ExternalServiceError:
    return ExternalServiceError(name_of(query.service), "the query was cancelled", kind=Kind.CANCELLED)


def _unexpected(query: Query, error: Exception) -> ExternalServiceError:
    reason = f"unexpected error ({type(error).__name__}); please report it"
    failure = ExternalServiceError(name_of(query.service), reason)
    failure.__cause__ = error
    return failure
