"""Events: frozen facts with a severity, named in the past tense, published in order after the state is set.

Events are for logs, alerts and metrics. They contain no prompt, key or DSN, and no state depends on them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from koo.callbacks import outlive
from koo.errors import Failure, Kind
from koo.openings import Act, SeenCall, Trip

Severity = Literal["critical", "warning", "info"]

log = logging.getLogger("koo")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. `source` is the guard's or component's name."""

    source: str

    severity = "info"


@dataclass(frozen=True, slots=True)
class CircuitOpened(Event):
    """A breaker tripped: why, for how many seconds at least, and the last failure (None: calls were slow).

    `trip`: the counts and the calls that opened it. `is_shadow`: the breaker only counts, so nothing is refused.
    """

    reason: str
    open_for_s: float
    last_error: Failure | None = None
    trip: Trip | None = field(default=None, compare=False, repr=False)
    is_shadow: bool = field(default=False, compare=False)

    severity = "critical"


@dataclass(frozen=True, slots=True)
class CircuitPrimed(Event):
    """Enough other processes have this breaker open that one failure here will open it; here it is still closed.

    `told`: how many of the processes have it open, as text.
    """

    told: str

    severity = "warning"


@dataclass(frozen=True, slots=True)
class CircuitHalfOpened(Event):
    """An open breaker's time is over, and probes decide. `why`: what caused it, as text."""

    why: str = field(default="", compare=False)

    severity = "warning"


@dataclass(frozen=True, slots=True)
class CircuitClosed(Event):
    """Enough probes succeeded, or an operator reset it (`by_operator`).

    `why`: what closed it, as text; `probes`: the probe calls; `act`: the operator's act.
    """

    by_operator: bool = False
    why: str = field(default="", compare=False)
    probes: tuple[SeenCall, ...] = field(default=(), compare=False, repr=False)
    act: Act | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class OverrideSet(Event):
    """An operator changed what the breaker may do: "none", "forced_open", "disabled" or "metrics_only" (a shadow).

    `act`: by whom, why, and until when.
    """

    override: str
    act: Act | None = field(default=None, compare=False)

    severity = "warning"


@dataclass(frozen=True, slots=True)
class CooldownBegan(Event):
    """The provider requested a pause, in seconds: for one model, or for the `whole_service`.

    `credential`: the digest of the key that the pause is for, if it is not the service's own. `last_error`: the
    provider's response.
    """

    for_s: float
    reason: str
    kind: Kind = Kind.THROTTLED
    whole_service: bool = False
    credential: str = field(default="", repr=False)
    last_error: Failure | None = None

    severity = "warning"


@dataclass(frozen=True, slots=True)
class KeyBlocked(Event):
    """The provider refused the key or its account: nothing is sent until it works again.

    `credential`: the digest of the key, if it is not the service's own. `last_error`: the refusal. `again_in_s`: when
    the key is tested again, by an unbilled check or by one call.
    """

    reason: str
    model: str | None = None
    credential: str = field(default="", repr=False)
    last_error: Failure | None = None
    again_in_s: float | None = None

    severity = "critical"


@dataclass(frozen=True, slots=True)
class KeyUnblocked(Event):
    """The key works again, or an operator unblocked it."""

    model: str | None = None
    credential: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class BillExceededHold(Event):
    """A bill exceeded the call's worst case, and was booked in full. Amounts in USD as strings."""

    billed_usd: str
    held_usd: str

    severity = "critical"


@dataclass(frozen=True, slots=True)
class StoreForgot(Event):
    """The state store is older than what this process reported to it: it was restored, or lost acknowledged writes.

    The amount, in USD as a string, was booked here and is missing there. No money is granted for six seconds, while
    every live process reports its own bookings. If a process drew money after the copy was made and has ended since,
    that money is missing from the ledger.
    """

    forgotten_usd: str

    severity = "critical"


@dataclass(frozen=True, slots=True)
class ProcessRenamed(Event):
    """Another process used this one's name in the state store (a machine was copied), or this one was written off.

    This process continues as `name`. What it holds and has not reported is booked a second time.
    """

    name: str = ""

    severity = "warning"


@dataclass(frozen=True, slots=True)
class StoreLost(Event):
    """The state store cannot be reached. `reason` also says what that means for budgets."""

    reason: str

    severity = "critical"


@dataclass(frozen=True, slots=True)
class StoreFound(Event):
    """The state store is reachable again."""


@dataclass(frozen=True, slots=True)
class DeliveryFailed(Event):
    """A channel failed to send alerts: the first failure in a row, its reason, and the seconds until the next
    attempt."""

    reason: str
    next_in_s: float

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DeliveryGivenUp(Event):
    """A message with this number of alerts was given up, because its attempts failed for too long."""

    reason: str
    notices: int

    severity = "critical"


@dataclass(frozen=True, slots=True)
class HealthCheckFailed(Event):
    """A health check failed, the first in a row: a service's unbilled check, or the database's probe."""

    reason: str
    kind: Kind

    severity = "warning"


@dataclass(frozen=True, slots=True)
class HealthCheckPassed(Event):
    """A health check succeeded again, after `failed` failures."""

    failed: int


@dataclass(frozen=True, slots=True)
class CommitUnknown(Event):
    """A connection was lost during COMMIT: the transaction may or may not have happened, and was not run again.

    `where`: the scope's place in the program. `statement`: the first words of its last statement. `key`: the key of its
    marker, or empty.
    """

    where: str
    statement: str
    key: str = ""

    severity = "critical"


@dataclass(frozen=True, slots=True)
class DatabaseReadOnly(Event):
    """The database accepts no writes: it is a standby, or its disk is full."""

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DatabaseWritable(Event):
    """The database accepts writes again."""


@dataclass(frozen=True, slots=True)
class DatabasePaused(Event):
    """An operator paused new scopes, which wait until their own deadlines; `running` are open; `act`: who and why."""

    running: int
    act: Act | None = field(default=None, compare=False)

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DatabaseDraining(Event):
    """An operator made koo refuse new scopes; `running` are open; `act`: who and why."""

    running: int
    act: Act | None = field(default=None, compare=False)

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DatabaseResumed(Event):
    """An operator let new scopes start again; `act`: who and why."""

    act: Act | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class DatabaseRotated(Event):
    """Every connection of the pool is being replaced; `running` scopes still have an old one."""

    running: int


Listener = Callable[[Event], None]


class EventBus:
    """Keeps the last events, and calls listeners with each, in order.

    An event that a listener publishes waits until all listeners have received the current one. An exception from a
    listener is logged, and the other listeners still receive the event (see `callbacks.py`).
    """

    __slots__ = ("_delivering", "_listeners", "_queue", "recent")

    def __init__(self, keep: int = 1000) -> None:
        self.recent: deque[Event] = deque(maxlen=keep)
        # The number is bounded: a listener that publishes an event for each event that it receives would otherwise fill
        # the memory.
        self._queue: deque[Event] = deque(maxlen=keep)
        self._listeners: list[Listener] = []
        self._delivering = False

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each later event. Returns a function that stops this; calling it twice does no harm."""
        entry = partial(
            listener
        )  # an object of its own, so that a function registered twice can be removed once
        self._listeners.append(entry)

        def stop() -> None:
            with suppress(ValueError):  # already removed
                self._listeners.remove(entry)

        return stop

    def publish(self, event: Event) -> None:
        self.recent.append(event)
        self._queue.append(event)
        # A listener published this. It is delivered after the current event: delivered now, the listeners that come
        # later in the list would receive the consequence before its cause (closed before opened).
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._queue:
                self._deliver(self._queue.popleft())
        finally:
            self._delivering = False

    def _deliver(self, event: Event) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except BaseException as error:  # noqa: BLE001 - the publisher has a permit or money to return
                outlive(error, f"a listener failed on {type(event).__name__}")
