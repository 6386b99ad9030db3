"""Check which other users can write, replace or read a `.env`.

A `.env` decides which URL receives the API keys of the environment. koo finds it by searching upwards, so it may be in
a shared folder where any user could have put it. So it is used only if no one except the current user and root can
change it; git has the same rule for a repository's configuration. All folders of the path count, links included,
because a user who can rename one of them can replace the file. In a folder with the sticky bit (/tmp, a mounted
secret), only the owner of an entry can replace it.

Nothing is checked if the operating system has no user ids.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LINKS_MAX = 40
"""Symbolic links to follow; the same limit as Linux has."""


class Seen(NamedTuple):
    """The result for a file. `doubt`: who else can change it, as a clause for a message; "" if no one can."""

    doubt: str
    is_readable_by_all: bool


def look_at(path: Path, environ: Mapping[str, str]) -> Seen:
    """Check each part of `path` from the root, following links. Raises OSError if a part is missing."""
    if not hasattr(os, "geteuid"):
        return Seen("", False)
    trusted = _trusted(environ)
    left, here, links = list(path.absolute().parts[1:]), Path("/"), 0
    doubt, is_open = "", True
    while True:
        # This uses `lstat` and not `stat`: every link has to be resolved here, step by step. The folders that contain a
        # link and its target both have to be trusted, and `stat` would show only the target.
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
        # In a folder with the sticky bit everyone may create entries, but only an entry's owner may replace it. So the
        # owner of the next part has to be trusted, even if that part is a link.
        if found.st_mode & stat.S_ISVTX and (owner := os.lstat(here).st_uid) not in trusted:
            doubt = doubt or f"{here} belongs to {_user(owner)}"


def _trusted(environ: Mapping[str, str]) -> set[int]:
    """The ids of the current user, of root, and of the user who called sudo, whose files the command may read."""
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
    """Whether the group is root's, or contains only the current user.

    Many systems create a group for each user, and make new files writable by it.
    """
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
