"""What happened, in the past tense: frozen facts with a severity, published in order after the state is set.

Events are for logs, alerts and metrics. They carry no prompt, key or DSN, and no state depends on them.
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
    """A breaker tripped: why, for how many seconds at least, and what the last failure met (None: calls were slow).

    `trip`: the arithmetic, and the calls behind it. `is_shadow`: it only counts, so nothing is refused.
    """

    reason: str
    open_for_s: float
    last_error: Failure | None = None
    trip: Trip | None = field(default=None, compare=False, repr=False)
    is_shadow: bool = field(default=False, compare=False)

    severity = "critical"


@dataclass(frozen=True, slots=True)
class CircuitPrimed(Event):
    """Enough other processes have it open that one failure here opens this breaker, which is closed.

    `told`: how many of how many, in words.
    """

    told: str

    severity = "warning"


@dataclass(frozen=True, slots=True)
class CircuitHalfOpened(Event):
    """An open breaker's time is over; probes decide. `why`: what brought it about, in words."""

    why: str = field(default="", compare=False)

    severity = "warning"


@dataclass(frozen=True, slots=True)
class CircuitClosed(Event):
    """Enough probes succeeded, or an operator reset it (`by_operator`).

    `why`: what closed it, in words; `probes`: those that tried it; `act`: the operator's.
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
    """The other side asked for a pause, in seconds: for one model, or for the `whole_service`.

    `credential`: the digest of the one that it asked, where that is not the service's own. `last_error`: its answer.
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
    """The other side refused the key, or its account: nothing is sent until it works again.

    `credential`: the digest of the key, where that is not the service's own. `last_error`: the refusal. `again_in_s`:
    when the key is tried again, by an unbilled check or by one call.
    """

    reason: str
    model: str | None = None
    credential: str = field(default="", repr=False)
    last_error: Failure | None = None
    again_in_s: float | None = None

    severity = "critical"


@dataclass(frozen=True, slots=True)
class KeyUnblocked(Event):
    """The key works again, or an operator said so."""

    model: str | None = None
    credential: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class BillExceededHold(Event):
    """A bill was above its worst case: booked whole. Amounts in USD as strings."""

    billed_usd: str
    held_usd: str

    severity = "critical"


@dataclass(frozen=True, slots=True)
class StoreForgot(Event):
    """The state store is older than what this process reported to it: it was restored, or lost acknowledged writes.

    The amount, in USD as a string, was booked here and was not known there. Nothing is granted for six seconds, while
    every live process reports its own; what dead ones had drawn since the copy was made is missing from the ledger.
    """

    forgotten_usd: str

    severity = "critical"


@dataclass(frozen=True, slots=True)
class ProcessRenamed(Event):
    """Another process spoke to the state store under this one's name: a machine was copied, or it was written off.

    This process goes on as `name`, and what it holds and has not reported is booked a second time.
    """

    name: str = ""

    severity = "warning"


@dataclass(frozen=True, slots=True)
class StoreLost(Event):
    """The state store cannot be reached: what that means for budgets."""

    reason: str

    severity = "critical"


@dataclass(frozen=True, slots=True)
class StoreFound(Event):
    """The state store is back."""


@dataclass(frozen=True, slots=True)
class DeliveryFailed(Event):
    """A channel fails to send alerts: the first failure of a run, why, and in how many seconds it tries again."""

    reason: str
    next_in_s: float

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DeliveryGivenUp(Event):
    """A message with a number of alerts was given up: its attempts failed for too long."""

    reason: str
    notices: int

    severity = "critical"


@dataclass(frozen=True, slots=True)
class HealthCheckFailed(Event):
    """A health check failed, the first of a run: a service's unbilled check, or the database's probe."""

    reason: str
    kind: Kind

    severity = "warning"


@dataclass(frozen=True, slots=True)
class HealthCheckPassed(Event):
    """A health check succeeded again, after `failed` that had not."""

    failed: int


@dataclass(frozen=True, slots=True)
class CommitUnknown(Event):
    """A connection was lost during COMMIT: the transaction may have happened or not, and was not run again.

    `where` the scope stands in the program, and the first words of its last statement. `key`: of its marker, or empty.
    """

    where: str
    statement: str
    key: str = ""

    severity = "critical"


@dataclass(frozen=True, slots=True)
class DatabaseReadOnly(Event):
    """The database takes no writes: a standby, or a full disk."""

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DatabaseWritable(Event):
    """The database takes writes again."""


@dataclass(frozen=True, slots=True)
class DatabasePaused(Event):
    """An operator lets new scopes wait, each until its own deadline; `running` are inside."""

    running: int

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DatabaseDraining(Event):
    """An operator has new scopes refused; `running` are inside."""

    running: int

    severity = "warning"


@dataclass(frozen=True, slots=True)
class DatabaseResumed(Event):
    """An operator lets new scopes begin again."""


@dataclass(frozen=True, slots=True)
class DatabaseRotated(Event):
    """Every connection of the pool is replaced by a new one; `running` scopes still have an old one."""

    running: int


Listener = Callable[[Event], None]


class EventBus:
    """Keeps the last events, and calls listeners with them in order.

    An event that a listener publishes waits until all have heard the current one. What a listener raises is logged,
    and the others hear the event (see `callbacks.py`).
    """

    __slots__ = ("_delivering", "_listeners", "_queue", "recent")

    def __init__(self, keep: int = 1000) -> None:
        self.recent: deque[Event] = deque(maxlen=keep)
        self._queue: deque[Event] = deque(maxlen=keep)
        self._listeners: list[Listener] = []
        self._delivering = False

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each later event; returns a function that ends that, and may be called again."""
        entry = partial(listener)  # Its own object: the same function may listen twice, and stop once.
        self._listeners.append(entry)

        def stop() -> None:
            with suppress(ValueError):  # it has stopped already
                self._listeners.remove(entry)

        return stop

    def publish(self, event: Event) -> None:
        self.recent.append(event)
        self._queue.append(event)
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
