"""The world of a user's own operation on virtual time: its service, its money, and streams in every form that a library
may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from koo.ai.budgets import Budgets
from koo.ai.operation_money import Money
from koo.ai.operation_stream import OperationStream, Terms
from koo.ai.operations import execute
from koo.ai.registration import compose, read_credential, read_options
from koo.ai.service import Service
from koo.deadlines import Deadlines
from koo.events import Event
from koo.policies.breaker import Breaker
from koo.storage.memory import MemoryLedger
from koo.testing.clock import VirtualClock

PRICED: dict[str, Any] = {"max_cost_usd": 5, "daily_budget": 100}


class Own:
    """A service named "own". Make it on the virtual loop. `options` are those of a registration."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.events: list[Event] = []
        self.money = Money(options)
        self.deadlines = Deadlines()
        self.service = Service(
            "own", read_options(options), default_model=None, clock=self.clock, deadlines=self.deadlines,
            classify=compose(options.get("classify"), "own"), allowance=self.money.allowance,
            publish=self.events.append, credential_of=read_credential(options.get("credential")),
        )  # fmt: skip
        ledger = MemoryLedger(self.clock)
        self.beats = asyncio.create_task(ledger.run())
        self.budgets = Budgets(ledger)
        self.budgets.add_service("own", self.service.allowance)

    def stream(self, operation: Callable[..., object], *args: Any, **kwargs: Any) -> OperationStream[Any]:
        async def find() -> Terms:
            return Terms(self.service, self.money, self.budgets)

        return OperationStream("own", find, operation, args, kwargs, self.deadlines)

    async def execute(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await execute(self.service, self.money, self.budgets, operation, args, kwargs)

    @property
    def breaker(self) -> Breaker:
        return self.service.default_guard.breaker

    @property
    def verdicts(self) -> list[int]:
        """The numbers of successful, failed, neutral and throttled calls."""
        return self.service.default_guard.tally.totals().verdicts

    @property
    def spent_usd(self) -> Decimal:
        return self.budgets.view("own").spent_usd

    def nothing_is_taken(self) -> bool:
        """True if no slot, no permit and no money is taken."""
        running = bool(self.breaker.running or self.breaker.leases)
        return not (self.service.gates.bulkhead.used or running or self.budgets.view("own").held_usd)


class Library:
    """Returns `pieces` in each of the forms that libraries have. A number is a pause; an exception is raised.

    `asked` counts requests, `open` streams that have not been closed. `left_by` is what a manager's `__aexit__`
    received.
    """

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces
        self.asked = self.open = 0
        self.left_by: list[BaseException | None] = []
        self.failures: list[Exception] = []

    async def generator(self) -> AsyncGenerator[Any, None]:
        """A lazy generator: it sends nothing before it is read."""
        await self._ask()
        try:
            async for piece in self._play():
                yield piece
        finally:
            self.open -= 1

    async def awaited(self) -> AsyncGenerator[Any, None]:
        """An awaitable that returns a lazy generator."""
        return self.generator()

    async def answered(self) -> Eager:
        """An iterator whose request has been answered when it is returned, like `create(stream=True)`."""
        await self._ask()
        return Eager(self)

    @asynccontextmanager
    async def manager(self) -> AsyncIterator[Reader]:
        """A context manager that sends when it is entered, and yields another object."""
        await self._ask()
        error: BaseException | None = None
        try:
            yield Reader(self)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.left_by.append(error)
            self.open -= 1

    async def awaited_manager(self) -> Any:
        return self.manager()

    async def _ask(self) -> None:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        self.open += 1

    async def _play(self) -> AsyncGenerator[Any, None]:
        for piece in self.pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            elif isinstance(piece, BaseException):
                raise piece
            else:
                yield piece


class Eager:
    """Like an SDK's stream: an iterator that is closed with `close`."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._pieces = library._play()
        self.request_id = "req_1"

    def __aiter__(self) -> Eager:
        return self

    async def __anext__(self) -> Any:
        return await self._pieces.__anext__()

    async def close(self) -> None:
        self._library.open -= 1
        await self._pieces.aclose()


class Reader:
    """The object that a manager yields: it can be read in several ways, by name."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.headers = {"x-request-id": "req_1"}
        self.text_stream = self._texts()

    async def _texts(self) -> AsyncGenerator[str, None]:
        async for piece in self._library._play():
            yield str(piece)

    def iter_lines(self) -> AsyncIterator[str]:
        return self._texts()

    async def whole(self) -> str:
        return "".join([str(piece) async for piece in self._library._play()])

    def check(self) -> None:
        """Raises the library's next failure, like `raise_for_status`."""
        raise self._library.failures.pop()

    async def wrong(self) -> None:
        raise ValueError("no such row")

    async def count(self) -> int:
        return len(self._library.pieces)

    async def parse(self) -> AsyncIterator[str]:
        return self._texts()
