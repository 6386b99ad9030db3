"""Who else controls a `.env`: those who can write it, replace it, or read it.

A `.env` decides which address receives the keys of the environment. One that is found by searching upwards may be in a
folder that many use, where any of them could have put it; so it is obeyed only if no one but its reader and root can
change it, as git does with a repository's configuration. Every folder on the way counts, links included: a user who can
rename one of them can replace the file. In a folder with the sticky bit (/tmp, a mounted secret) only their owners can
replace entries.

If the operating system has no user ids, nothing is checked.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LINKS_MAX = 40
"""As many as Linux follows before it gives up."""


class Seen(NamedTuple):
    """The result of a look at the way to a file. `doubt`: who else can change it, as a clause; empty if no one can."""

    doubt: str
    is_readable_by_all: bool


def look_at(path: Path, environ: Mapping[str, str]) -> Seen:
    """Walk from the root to `path`, following links. Raises OSError if a part of the way is missing."""
    if not hasattr(os, "geteuid"):
        return Seen("", False)
    trusted = _trusted(environ)
    left, here, links = list(path.absolute().parts[1:]), Path("/"), 0
    doubt, is_open = "", True
    while True:
        found = os.lstat(here)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, "too many links")
            target = here.readlink()
            here, left = (Path("/") if target.is_absolute() else here.parent), [*target.parts, *left]
            continue
        doubt = doubt or _doubt_about(here, found, trusted)
        if not left:
            return Seen(doubt, is_open and bool(found.st_mode & stat.S_IROTH))
        is_open = is_open and bool(found.st_mode & stat.S_IXOTH)
        inside = left.pop(0)
        here = here.parent if inside == ".." else here / inside
        if found.st_mode & stat.S_ISVTX and (owner := os.lstat(here).st_uid) not in trusted:
            doubt = doubt or f"{here} belongs to {_user(owner)}"


def _trusted(environ: Mapping[str, str]) -> set[int]:
    """The user, root, and the user behind sudo: a command of theirs may read their files."""
    caller = environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    return {0, os.geteuid()} | ({int(caller)} if caller.isdecimal() else set())


def _doubt_about(path: Path, found: os.stat_result, trusted: set[int]) -> str:
    if found.st_uid not in trusted:
        return f"{path} belongs to {_user(found.st_uid)}"
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return ""
    if found.st_mode & stat.S_IWOTH:
        return f"every user of this machine can write {path}"
    if found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid):
        return f"a group of several users can write {path}"
    return ""


def _is_private(gid: int) -> bool:
    """Root's group, or the user's own: many systems make one for each user, and make files writable by it."""
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user with id {uid}"
