"""Builds the views of koo itself, in the shapes of `own_shapes`."""

from __future__ import annotations

from koo.host import Disk, HostWatch
from koo.monitoring.own_shapes import DescriptorHealth, DiskHealth, DiskWord

FULL_BYTES = 64 * 2**20
"""With less than this, a busy log fills the disk within seconds, and then writes fail."""
NEARLY_FULL_BYTES = 2**30
NEARLY_FULL_SHARE = 0.05
"""On a small disk a gigabyte is a lot, so there a twentieth counts as nearly full."""


def disk_state(disk: Disk) -> DiskWord:
    """How full the disk is, in one word."""
    if disk.free_bytes < min(FULL_BYTES, NEARLY_FULL_SHARE * disk.total_bytes):
        return "full"
    little = min(NEARLY_FULL_BYTES, NEARLY_FULL_SHARE * disk.total_bytes)
    return "nearly_full" if disk.free_bytes < little else "ok"


def disks_view(watch: HostWatch) -> list[DiskHealth]:
    """The disks at the last check."""
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
    """The file descriptors at the last check."""
    found = watch.last.descriptors if watch.last is not None else None
    return None if found is None else {"used": found.used, "limit": found.limit}
