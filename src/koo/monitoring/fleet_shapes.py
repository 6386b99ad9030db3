"""The shapes of the processes on one state store; the rules of `shapes` apply here too."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal

from koo.monitoring.breaker_shapes import Doc, Time, TypedDict, Usd
from koo.monitoring.own_shapes import StoreHealth


class FleetProcess(TypedDict):
    """One koo process."""

    id: Annotated[str, Doc("its name in the state store; a new one each time it opens the store")]
    host: Annotated[str, Doc("the machine's name; in Kubernetes, the pod's")]
    worker: Annotated[str, Doc("its number if the server has several workers; otherwise empty")]
    pid: int
    version: Annotated[str, Doc("koo's version")]
    label: Annotated[str, Doc("KOO_VERSION_LABEL")]
    started_at: Time
    seen_at: Annotated[Time, Doc("the time of its last beat, by the store's clock")]
    beat_age: Annotated[float, Doc("seconds since the last beat")]
    state: Annotated[
        Literal["live", "silent"],
        Doc("silent if five beats are missing: the process was killed, is stopped, or is cut off"),
    ]
    in_flight: Annotated[int, Doc("running calls in its guards")]
    leads: Annotated[bool, Doc("it cleans up the store, and checks the services for all processes")]
    answers: Annotated[bool, Doc("this process answered the request")]


class FleetGuard(TypedDict):
    """One guard in all live processes that called it recently or whose breaker is not closed."""

    name: Annotated[str, Doc("database, SERVICE or SERVICE/MODEL")]
    place: Annotated[str, Doc("a digest of the address, because two servers may have the same name")]
    open: Annotated[int, Doc("the number of processes in which it is open")]
    half_open: Annotated[int, Doc("the number of processes that are testing recovery")]
    processes: Annotated[
        int, Doc("the number of processes that called it in the last minute or whose breaker is not closed")
    ]
    open_in: Annotated[list[str], Doc("ids of the processes in which it is open")]
    open_since: Annotated[Time | None, Doc("the earliest opening; null if it is not open anywhere")]
    primed: Annotated[str, Doc("why a single failure opens it where it is closed; otherwise empty")]
    calls: Annotated[int, Doc("calls in the last minute, including refused ones, as last reported")]


class FleetPurse(TypedDict):
    """One budget in its current period: the treasury, and the money in purses."""

    budget: Annotated[str, Doc("ai:SERVICE, budget:NAME or budget:NAME/TAG")]
    limit: Annotated[Usd | None, Doc("null if there is none")]
    spent: Usd
    held: Annotated[Usd, Doc("held by running calls")]
    idle: Annotated[Usd, Doc("unused in the purses of live processes; it can be recalled")]
    unsettled: Annotated[Usd, Doc("granted to processes that no longer report")]
    granted: Annotated[Usd, Doc("granted to purses and not yet spent: held + idle + unsettled")]
    resets_at: Time


class FleetUnits(TypedDict):
    """A limit per minute or hour, from which processes lease units in blocks."""

    limit: Annotated[str, Doc("the service, and what is counted per which period")]
    units: Annotated[int, Doc("the limit itself")]
    leased: Annotated[int, Doc("units leased to processes that have not reported their use yet")]
    processes: Annotated[int, Doc("the number of processes with leased units")]


class FleetLeader(TypedDict):
    """The process that acts for the whole fleet."""

    process: str
    epoch: Annotated[int, Doc("grows with each new leader; the store refuses acts of an earlier one")]


class FleetDifference(TypedDict):
    """An option whose value differs between live processes. The values are not shown."""

    section: Annotated[str, Doc("koo, database, network, alerts, log, ai_services.NAME or ai_budgets.NAME")]
    option: Annotated[str, Doc("its name in docs/configuration.md; empty if some processes lack the section")]
    groups: Annotated[list[list[str]], Doc("groups of process ids with the same value, the largest first")]


class FleetStatus(TypedDict):
    """The processes on the state store. While the store is unreachable, only the responding process is listed."""

    processes: Annotated[list[FleetProcess], Doc("the oldest first; closed processes are not listed")]
    guards: list[FleetGuard]
    purses: list[FleetPurse]
    leases: list[FleetUnits]
    leader: Annotated[
        FleetLeader | None, Doc("null if there is none; each process then checks the services itself")
    ]
    differences: list[FleetDifference]
    state_store: StoreHealth
    timestamp: Time
