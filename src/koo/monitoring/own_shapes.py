"""The shapes of koo itself; the rules of `shapes` apply here too."""

# There is no `from __future__ import annotations` here, because the API description reads the types at run time.

from typing import Annotated, Literal

from koo.monitoring.breaker_shapes import Doc, Time, TypedDict

DiskWord = Literal["ok", "nearly_full", "full"]


class StoreHealth(TypedDict):
    """The state store as this process sees it."""

    reachable: bool
    reason: Annotated[str, Doc("why it is unreachable; empty if it is reachable")]
    lost_at: Annotated[Time | None, Doc("when it became unreachable; null if it is reachable")]
    refuses: Annotated[
        list[str],
        Doc("services whose calls are refused while it is unreachable, once this process's money is used up"),
    ]


class DiskHealth(TypedDict):
    """A disk that koo writes to."""

    name: Annotated[str, Doc("home: the disk of KOO_HOME; state_store: the disk of the state store's file")]
    state: DiskWord
    free_bytes: int
    total_bytes: int


class DescriptorHealth(TypedDict):
    """File descriptors of this process."""

    used: int
    limit: int


class KooHealth(TypedDict):
    """This koo process and the resources it depends on."""

    state_store: StoreHealth
    disks: list[DiskHealth]
    descriptors: Annotated[
        DescriptorHealth | None, Doc("null if not checked yet, or if the system does not report it")
    ]
    short_of: Annotated[
        str,
        Doc(
            "what calls ran out of within the last minute: file descriptors, memory or threads; otherwise empty"
        ),
    ]
    late: Annotated[list[str], Doc("background checks that have not run for too long")]
    blocked_s: Annotated[
        float, Doc("how long the event loop was blocked within the last five minutes; 0 if it was not")
    ]
