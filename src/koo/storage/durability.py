"""Finds out what the state store's database may lose, from its own settings and without special privileges."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from koo.storage.transaction import Transaction

NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gfs2", "glusterfs", "lustre", "ncpfs",
    "nfs", "nfs4", "smb2", "smb3", "smbfs", "virtiofs",
})  # fmt: skip
"""File systems that other machines can write to at the same time, where SQLite's locks are missing or unreliable."""
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
TEMPORARY = tuple(Path(one) for one in ("/tmp", "/var/tmp", "/dev/shm", "/run"))


@dataclass(frozen=True, slots=True)
class Risk:
    """What may be lost, what that means for money, and what to do. `is_serious` means that a cap may be overspent."""

    found: str
    advice: str
    is_serious: bool = True


SETTINGS = """SELECT current_setting('fsync'), current_setting('full_page_writes'),
    current_setting('synchronous_commit'), current_setting('synchronous_standby_names'),
    pg_is_in_recovery(), (SELECT count(*) FROM pg_stat_replication)"""


def risks_of_server(tx: Transaction) -> list[Risk]:
    """The risks of a PostgreSQL server, read in a transaction."""
    fsync, full_pages, commit, names, is_standby, followers = tx.rows(SETTINGS)[0]
    return risks_of_settings(fsync, full_pages, commit, names, bool(is_standby), int(followers))


def risks_of_settings(
    fsync: str, full_pages: str, commit: str, names: str, is_standby: bool, followers: int
) -> list[Risk]:
    """The risks of these settings."""
    found = []
    if is_standby:
        found.append(
            Risk("this server is a standby, which accepts no writes", "point KOO_STATE_URL at the primary")
        )
    if fsync == "off":
        found.append(
            Risk(
                "fsync is off: a crash of the server's machine may damage the store and lose all bookings",
                "set fsync = on",
            )
        )
    elif full_pages == "off":
        found.append(
            Risk(
                "full_page_writes is off: a crash of the server's machine may damage the store and its bookings",
                "set full_page_writes = on, unless the file system writes pages atomically",
            )
        )
    found += _of_commits(commit, names, followers)
    return found


def _of_commits(commit: str, names: str, followers: int) -> list[Risk]:
    if commit == "off":
        return [
            Risk(
                "COMMIT does not wait for the disk (synchronous_commit = off): a crash of the server loses the last "
                "bookings; live processes report theirs again, but money spent by processes that died with the server "
                "may be spent a second time",
                "ALTER ROLE … SET synchronous_commit = on, for koo's role",
            )
        ]
    if names and commit == "local":
        return [
            Risk(
                "a synchronous standby is configured, but COMMIT does not wait for it (synchronous_commit = local)",
                "ALTER ROLE … SET synchronous_commit = on, for koo's role; otherwise a promotion may break the cap",
            )
        ]
    if followers and not names:
        those = "1 standby is" if followers == 1 else f"{followers} standbys are"
        return [
            Risk(
                f"{those} connected but not synchronous: a promotion loses the last bookings; live processes report "
                "theirs again, but money spent by processes that died at that moment may be spent a second time",
                "set synchronous_standby_names if a cap must survive a promotion",
            )
        ]
    return []


def risks_of_file(path: Path, mounts: str, memory_folders: tuple[Path, ...] = TEMPORARY) -> list[Risk]:
    """The risks of an SQLite file. `mounts` is the content of /proc/mounts, or empty if the system has none."""
    path = path.resolve()
    kind = _kind_of(path, mounts)
    if kind in NETWORK:
        return [
            Risk(
                f"the file is on a network file system ({kind}), where SQLite's locks do not hold between machines: "
                "two processes may spend the same money, and the file may be damaged",
                "put it on a local disk, or set KOO_STATE_URL=postgresql://… for several machines",
            )
        ]
    folders = {*memory_folders, Path(tempfile.gettempdir()).resolve()}
    if kind in IN_MEMORY or any(path.is_relative_to(one) for one in folders):
        where = "in memory" if kind in IN_MEMORY else "in a folder for temporary files"
        return [
            Risk(
                f"the file is {where}: a restart of the machine removes it, and koo forgets what was spent today",
                "put it on a permanent disk with KOO_STATE_URL or KOO_HOME",
                is_serious=False,
            )
        ]
    return []


def _kind_of(path: Path, mounts: str) -> str:
    """The type of the file system that contains a path."""
    # The longest mount point that contains the path is the right one. If several have the same length, the last one
    # was mounted over the others.
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind
