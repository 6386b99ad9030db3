"""What is seen of the processes on one state store; `shapes` says how keys are promised and described."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal

from koo.monitoring.breaker_shapes import Doc, Time, TypedDict, Usd
from koo.monitoring.own_shapes import StoreHealth


class FleetProcess(TypedDict):
    """One process of koo."""

    id: Annotated[str, Doc("its name on the state store: a new one each time it opens")]
    host: Annotated[str, Doc("of its machine; in Kubernetes of its pod")]
    worker: Annotated[str, Doc("which one of a server with several; empty: the server is one process")]
    pid: int
    version: Annotated[str, Doc("of koo")]
    label: Annotated[str, Doc("KOO_VERSION_LABEL")]
    started_at: Time
    seen_at: Annotated[Time, Doc("its last beat, by the store's clock")]
    beat_age: Annotated[float, Doc("seconds since then")]
    state: Annotated[
        Literal["live", "silent"],
        Doc("silent: five beats are missing; it was killed, or is stopped or cut off"),
    ]
    in_flight: Annotated[int, Doc("calls behind its guards")]
    leads: Annotated[bool, Doc("it sweeps the store, and asks services for all")]
    answers: Annotated[bool, Doc("it answers this request")]


class FleetGuard(TypedDict):
    """One guard over the live processes that called it lately, or whose breaker is not closed."""

    name: Annotated[str, Doc("database, SERVICE or SERVICE/MODEL")]
    place: Annotated[str, Doc("a digest of the address: one name may stand for two servers")]
    open: Annotated[int, Doc("in how many processes it is open")]
    half_open: Annotated[int, Doc("in how many recovery is being tested")]
    processes: Annotated[
        int, Doc("of how many: those that called it in the last minute, or whose breaker is not closed")
    ]
    open_in: Annotated[list[str], Doc("ids of the processes where it is open")]
    open_since: Annotated[Time | None, Doc("the earliest; null: it is open nowhere")]
    primed: Annotated[str, Doc("why one failure opens it where it is closed; empty: it takes more")]
    calls: Annotated[int, Doc("of the last minute, as last reported, refused ones included")]


class FleetPurse(TypedDict):
    """One budget in its current period: the treasury, and what of it lies in purses."""

    budget: Annotated[str, Doc("ai:SERVICE, budget:NAME or budget:NAME/TAG")]
    limit: Annotated[Usd | None, Doc("null: there is none")]
    spent: Usd
    held: Annotated[Usd, Doc("by calls that run")]
    idle: Annotated[Usd, Doc("in purses of live processes, not held: it can be recalled")]
    unsettled: Annotated[Usd, Doc("granted to processes that no longer report")]
    granted: Annotated[Usd, Doc("to purses, and not yet spent: held, idle and unsettled")]
    resets_at: Time


class FleetUnits(TypedDict):
    """A limit a minute or an hour, of which processes lease units in blocks."""

    limit: Annotated[str, Doc("the service, and what is counted in which time")]
    units: Annotated[int, Doc("the limit itself")]
    leased: Annotated[int, Doc("units leased to processes that have not reported their use yet")]
    processes: Annotated[int, Doc("how many processes hold some")]


class FleetLeader(TypedDict):
    """The process that acts for all."""

    process: str
    epoch: Annotated[int, Doc("grows with each new leader; acts of an older one are refused")]


class FleetDifference(TypedDict):
    """An option that is not the same in all live processes. Values are never shown."""

    section: Annotated[str, Doc("koo, database, network, alerts, log, ai_services.NAME or ai_budgets.NAME")]
    option: Annotated[str, Doc("its name in docs/configuration.md; empty: the section is not everywhere")]
    groups: Annotated[
        list[list[str]], Doc("ids of the processes that agree with one another, the largest group first")
    ]


class FleetStatus(TypedDict):
    """The processes on the state store. While it is away: this process alone."""

    processes: Annotated[list[FleetProcess], Doc("the oldest first; those that closed are gone")]
    guards: list[FleetGuard]
    purses: list[FleetPurse]
    leases: list[FleetUnits]
    leader: Annotated[FleetLeader | None, Doc("null: none; each process then checks the services itself")]
    differences: list[FleetDifference]
    state_store: StoreHealth
    timestamp: Time
