"""A list of queries, of any length, fed through as places come free.

Sent all at once, the first thousand of a list would fill koo's own queue, and the queue would refuse the rest. So a
list starts its next query when the service has a place for it. Each service is fed separately, so that a slow one
delays only its own queries.

Each service has as many places for queries of lists as queries may run there at once; all lists share them and take
turns. So there are never more tasks than places, however long the list; and a query's own deadline begins when its turn
has come, not while it waits behind its list. If other calls have taken the places meanwhile, a query of a list waits in
the guard's queue, however long that is (`gates.is_fed`).

Limits and budgets still decide about each query. But if queries may wait for our limit, or the provider's is paced, one
of them waits at a time, and the list behind it: otherwise a hundred would spend their deadlines in that queue.

The outcome of one query does not affect another's. A cancelled list ends its queries and waits until they have given
back what they held.
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

LOCAL_PLACES = 2
"""The local model makes one answer at a time: one runs, and the next is ready when it ends."""

Outcome = Answer | ExternalServiceError
Ask = Callable[[Query], Awaitable[Answer]]
log = logging.getLogger("koo")


class Lists:
    """Feeds lists to `services`; `ask` asks one query."""

    def __init__(self, services: Mapping[str, AIService], ask: Ask) -> None:
        self._services = services
        self._ask = ask
        self._places: dict[str, Bulkhead] = {}

    async def ask_all(self, queries: Sequence[Query]) -> list[Outcome]:
        """An answer or an error for each, in order."""
        lanes: dict[str, list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            lanes[name_of(query.service)].append(number)
        outcomes: dict[int, Outcome] = {}
        async with TaskGroup() as group:
            for name, numbers in lanes.items():
                group.create_task(self._feed(self._services.get(name), queries, numbers, outcomes, group))
        # A query that was cancelled on its own, from outside, left no outcome.
        return [outcomes.get(number) or _cancelled(query) for number, query in enumerate(queries)]

    async def _feed(
        self,
        one: AIService | None,
        queries: Sequence[Query],
        numbers: Sequence[int],
        outcomes: dict[int, Outcome],
        group: TaskGroup,
    ) -> None:
        """Ask the `numbers` of `queries`, which begin at the same service; None: the service is unknown."""
        is_fed.set(True)
        places = None if one is None else self._places_of(one)
        for number in numbers:
            query = queries[number]
            if one is None or places is None or not await self._wait_for_turn(one, query, places):
                # It ends at once: its service is unknown, or the caller's deadline is over. The gateway raises that. In
                # a task of its own: this frame, which holds the outcomes, would otherwise stay in the error's
                # traceback.
                outcomes[number] = await group.create_task(outcome_of(self._ask, query))
                continue
            task = group.create_task(outcome_of(self._ask, query))
            # A callback, because a task cancelled before its first step runs no `finally`.
            task.add_done_callback(_Landing(number, places, outcomes))
            # Of places that come free together the first list to wake would otherwise take all but one.
            await sleep(0)

    def _places_of(self, one: AIService) -> Bulkhead:
        options = one.options
        places = self._places.get(options.name)
        if places is None:
            most = options.concurrency_max
            places = Bulkhead(min(most, LOCAL_PLACES) if options.kind == "local" else most)
            self._places[options.name] = places
        return places

    async def _wait_for_turn(self, one: AIService, query: Query, places: Bulkhead) -> bool:
        """Wait until it has a place and could proceed; False if the caller's deadline passed first."""
        gates, ends = one.service.gates, ends_at.get()
        if query.on_limit == "wait":
            if not await gates.stand_in(gates.limit_queue, ends):
                return False
            gates.limit_queue.give_back()
        while wait_s := one.service.pace_s(query.model, now := gates.clock.monotonic()):
            if now >= ends:
                return False
            await gates.clock.sleep(min(wait_s, LOOK_AGAIN_S))
        return await gates.stand_in(places, ends)


async def outcome_of(ask: Ask, query: Query) -> Outcome:
    """Ask one query. Nothing reachable from its error's traceback holds the error: it is freed with its list."""
    try:
        return await ask(query)
    except ExternalServiceError as error:
        return error
    except Exception as error:
        log.exception("a query of a list failed with an unexpected error; please report it")
        return _unexpected(query, error)


class _Landing:
    """What happens when a query's task ends: record its outcome, and free its place."""

    __slots__ = ("_number", "_outcomes", "_places")

    def __init__(self, number: int, places: Bulkhead, outcomes: dict[int, Outcome]) -> None:
        self._number = number
        self._places = places
        self._outcomes = outcomes

    def __call__(self, task: Task[Outcome]) -> None:
        self._places.give_back()
        if not task.cancelled() and task.exception() is None:
            self._outcomes[self._number] = task.result()


def _cancelled(query: Query) -> ExternalServiceError:
    return ExternalServiceError(name_of(query.service), "the query was cancelled", kind=Kind.CANCELLED)


def _unexpected(query: Query, error: Exception) -> ExternalServiceError:
    reason = f"unexpected error ({type(error).__name__}); please report it"
    failure = ExternalServiceError(name_of(query.service), reason)
    failure.__cause__ = error
    return failure
