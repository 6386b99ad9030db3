"""What is seen of koo itself, once; `koo.monitoring.shapes` says how keys are promised and described."""

# Without `from __future__ import annotations`: the types are read at run time, where the API is described.

from typing import Annotated, Literal

from koo.monitoring.breaker_shapes import Doc, Time, TypedDict

DiskWord = Literal["ok", "nearly_full", "full"]


class StoreHealth(TypedDict):
    """The state store, as this process finds it."""

    reachable: bool
    reason: Annotated[str, Doc("why it cannot be used; empty if it can")]
    lost_at: Annotated[Time | None, Doc("null: it can be used")]
    refuses: Annotated[list[str], Doc("the services whose calls are refused while it is away")]


class DiskHealth(TypedDict):
    """A disk that koo writes to."""

    name: Annotated[str, Doc("home: where KOO_HOME lies; state_store: where the state store's file does")]
    state: DiskWord
    free_bytes: int
    total_bytes: int


class DescriptorHealth(TypedDict):
    """File descriptors of this process."""

    used: int
    limit: int


class KooHealth(TypedDict):
    """This process of koo, and what it stands on."""

    state_store: StoreHealth
    disks: list[DiskHealth]
    descriptors: Annotated[DescriptorHealth | None, Doc("null: not looked yet, or the system does not say")]
    short_of: Annotated[
        str,
        Doc("file descriptors, memory or threads that calls lacked within the last minute; empty: nothing"),
    ]
    late: Annotated[list[str], Doc("watchers that have not run for too long; empty: none")]
    blocked_s: Annotated[
        float, Doc("how long the event loop was blocked within the last five minutes; 0: it was not")
    ]
