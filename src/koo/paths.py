"""Paths in settings: `~` stands for the user's home folder, and a relative path starts at a given folder."""

from __future__ import annotations

import errno
from pathlib import Path


def placed(text: str, home: Path) -> Path:
    """The absolute path, with no link followed; `home` contains none. Raises `ValueError` if it cannot be known."""
    # RuntimeError is what pathlib raises: for a `~` if HOME is not set and the user id has no name, as in a container
    # with a random one; for `~name` if there is no such user.
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError("expected a path without ~, because its home folder is unknown") from None
    while path.parts[:1] == ("..",):
        home, path = home.parent, Path(*path.parts[1:])
    return home / path


def absolute(text: str, home: Path) -> Path:
    """The absolute path, with its links followed. Raises `ValueError` if it cannot be known.

    Not for a file that koo creates: `own_files.py` must see a link in its place, which another user may have made.
    """
    path = placed(text, home)
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:  # `resolve` reports it only before Python 3.13
            raise ValueError("expected a path whose links do not form a loop") from None
    return path.resolve()


def path_trouble(error: ValueError | OSError) -> str:
    """What is wrong with a path. An `OSError` means that this user may not look at it, because a folder is closed to
    them."""
    if isinstance(error, OSError):
        return f"expected a path that can be followed, but: {error.strerror}"
    return str(error)
