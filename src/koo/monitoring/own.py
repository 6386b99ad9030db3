"""Koo itself as it is seen: the shapes are those of `own_shapes`."""

from __future__ import annotations

from koo.host import Disk, HostWatch
from koo.monitoring.own_shapes import DescriptorHealth, DiskHealth, DiskWord

FULL_BYTES = 64 * 2**20
"""Less is a few seconds of a busy log: writes begin to fail."""
NEARLY_FULL_BYTES = 2**30
NEARLY_FULL_SHARE = 0.05
"""Of a small disk a gigabyte is much: then a twentieth is little."""


def disk_state(disk: Disk) -> DiskWord:
    """How much room there is, in a word."""
    if disk.free_bytes < min(FULL_BYTES, NEARLY_FULL_SHARE * disk.total_bytes):
        return "full"
    little = min(NEARLY_FULL_BYTES, NEARLY_FULL_SHARE * disk.total_bytes)
    return "nearly_full" if disk.free_bytes < little else "ok"


def disks_view(watch: HostWatch) -> list[DiskHealth]:
    """The disks of the last look."""
    disks = watch.last.disks if watch.last is not None else ()
    return [
        {
            "name": disk.name,
            "state": disk_state(disk),
            "free_bytes": disk.free_bytes,
            "total_bytes": disk.total_bytes,
        }
        for disk in disks
    ]


def descriptors_view(watch: HostWatch) -> DescriptorHealth | None:
    """The descriptors of the last look."""
    found = watch.last.descriptors if watch.last is not None else None
    return None if found is None else {"used": found.used, "limit": found.limit}
