"""Files that koo makes: only its user can read them, and none is made through what another user put in the way.

What koo writes holds prompts' costs, audit entries and the rows of its user's database, so no other user is to read it,
whatever the umask says. In a folder that every user can write, such as /tmp, another user may have put a link, a file
or a folder under the name first: then koo would write where they want, or read what they wrote.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
BESIDE = ("", "-wal", "-shm", "-journal")
"""What SQLite makes beside a database, and replays from, with the mode of the database."""


class PutThere(PermissionError):
    """Another user put something in the way."""

    def __init__(self, path: Path) -> None:
        reason = "another user put it, or a link in its place, into a folder that all users can write"
        super().__init__(errno.EACCES, reason, str(path))


def why_not_made(error: OSError) -> str:
    """What `make_database` raised, as half a sentence."""
    what = (
        "its file cannot be used" if isinstance(error, PutThere) else "the folder of the file cannot be made"
    )
    return f"{what}: {error.strerror}"


def make_database(path: Path) -> None:
    """Make an SQLite file that is not there, and the folders on the way to it.

    Raises OSError where that is not possible, and `PutThere` where another user was first.
    """
    path = path.absolute()
    _check(path)
    path = Path(os.path.realpath(path))  # a link of the user's own is followed, to what is not there yet too
    _check(path)
    _make_folder(path.parent)
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    with suppress(FileExistsError):
        file = os.open(path, flags, FILE_MODE)
        with suppress(AttributeError):  # Windows
            os.fchmod(file, FILE_MODE)
        os.close(file)


def _check(database: Path) -> None:
    """Raises `PutThere` for what others put on the way, or beside it."""
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
        path.chmod(FOLDER_MODE)  # whatever the umask left of it
