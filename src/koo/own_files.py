"""Files that koo creates: readable only by its user, and never created through a link or a file of another user.

koo's files contain costs of prompts, audit entries and rows of the user's database, so no other user may read them,
whatever the umask. In a folder that every user can write to, such as /tmp, another user may have created a link, a file
or a folder of the same name first. Then koo would write where that user wants, or read what that user wrote.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
BESIDE = ("", "-wal", "-shm", "-journal")
"""Files that SQLite creates next to a database, with the database's mode. SQLite replays some of them when it opens the
database."""


class PutThere(PermissionError):
    """Another user created the file, or a link in its place."""

    def __init__(self, path: Path) -> None:
        reason = "another user created it, or a link in its place, in a folder that all users can write to"
        super().__init__(errno.EACCES, reason, str(path))


def why_not_made(error: OSError) -> str:
    """The error of `make_database`, as a clause."""
    what = "its file cannot be used" if isinstance(error, PutThere) else "the file's folder cannot be created"
    return f"{what}: {error.strerror}"


def make_database(path: Path) -> None:
    """Create an SQLite file, and its folders, if it does not exist.

    Raises OSError if that is not possible, and `PutThere` if another user was first.
    """
    # The path is checked before and after links are resolved. Before: a link of another user must not be followed.
    # After: the target of the user's own link may be in a folder that everyone can write to. `realpath` also resolves a
    # link whose target does not exist yet. `O_EXCL` and `O_NOFOLLOW` close the gap between the check and the creation.
    path = path.absolute()
    _check(path)
    path = Path(os.path.realpath(path))
    _check(path)
    _make_folder(path.parent)
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    with suppress(FileExistsError):
        file = os.open(path, flags, FILE_MODE)
        with suppress(AttributeError):  # not on Windows
            os.fchmod(file, FILE_MODE)
        os.close(file)


def _check(database: Path) -> None:
    """Raise `PutThere` if another user owns a part of the path, or a file next to the database, in a shared folder."""
    if not hasattr(os, "geteuid"):
        return
    trusted = {0, os.geteuid()}
    files = [database.with_name(database.name + name) for name in BESIDE]
    for here in [*reversed(database.parents)][1:] + files:
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.lstat(here).st_uid not in trusted and here.parent.stat().st_mode & stat.S_IWOTH:
                raise PutThere(here)


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    with suppress(FileExistsError):
        path.mkdir(FOLDER_MODE)
        path.chmod(FOLDER_MODE)  # `mkdir` applies the umask
