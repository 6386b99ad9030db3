"""Where values come from: KOO_HOME, the `.env` in it, and the process's environment.

Pure except for reading the one file: the environment and the working directory are passed in, so that `koo.settings` is
the only reader of the process's own.

The `.env` has python-dotenv's grammar, read strictly. Nothing in it is expanded, because a `$` in a password is a `$`;
and a line that cannot be read stops the start, because the variable that it meant would otherwise silently keep its
default. No message repeats the content of a line: it may be a secret.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from koo.configuration.service_links import without_links
from koo.configuration.trust import look_at
from koo.configuration.values import quoted
from koo.errors import ConfigurationError

ENV_FILE = ".env"

Source = Literal["default", ".env", "environment", "argument"]


@dataclass(frozen=True, slots=True)
class Found:
    """One variable that was set; an empty value means that it is not set."""

    variable: str
    value: object = field(repr=False)
    source: Source


# ── KOO_HOME ──────────────────────────────────────────────────────────────────────────────────────────────────────


def find_home(given: str, working_directory: Path) -> Path:
    """The folder that KOO_HOME names, else the nearest one upwards that holds a `.env`, else the working directory.

    Raises `ConfigurationError` if KOO_HOME names no folder: it would be made, empty, and the data would not be found.
    """
    if given:
        home = (working_directory / Path(given).expanduser()).resolve()
        if not home.is_dir():
            raise ConfigurationError("", f'KOO_HOME holds "{given}"; allowed is a folder that exists')
        return home
    upwards = (working_directory, *working_directory.parents)
    return next((folder for folder in upwards if _holds_env_file(folder)), working_directory)


def _holds_env_file(folder: Path) -> bool:
    # A folder named .env is a virtual environment, not settings. A link that leads nowhere is a mounted secret that is
    # missing, and reading it reports that.
    file = folder / ENV_FILE
    try:
        return (file.exists() or file.is_symlink()) and not file.is_dir()
    except PermissionError:  # a parent folder that may not be read holds nothing for us
        return False


def check_home(found: Found | None, home: Path) -> None:
    """Raises `ConfigurationError` if the `.env` names another KOO_HOME than the folder it was found in."""
    if found is None or found.source != ENV_FILE or not found.value:
        return
    if (home / Path(str(found.value)).expanduser()).resolve() != home.resolve():
        raise ConfigurationError(
            "",
            f"KOO_HOME holds {quoted(str(found.value))} in {home / ENV_FILE}, which is found by KOO_HOME itself; "
            "allowed is to set it in the environment",
        )


def check_env_file(path: Path, environ: Mapping[str, str], *, by_hand: bool) -> Iterator[str]:
    """Warnings to log. `by_hand`: KOO_HOME names its folder, so other users who can change it are trusted.

    Raises `ConfigurationError` for one that was found by searching and that others can change.
    """
    if not _holds_env_file(path.parent):
        return
    try:
        doubt, is_readable_by_all = look_at(path, environ)
    except OSError:
        return  # reading it reports this in words
    if doubt and not by_hand:
        raise ConfigurationError(
            "",
            f"{path} is not read, because {doubt}: change that, or set KOO_HOME={path.parent} to trust the file, or "
            "KOO_HOME to another folder",
        )
    if doubt:
        yield f"{path} is read because KOO_HOME says so, but {doubt}"
    if is_readable_by_all:
        yield f"every user of this machine can read {path}: chmod o-r {path}"


# ── .env ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def read_env_file(path: Path) -> dict[str, str]:
    """The settings of a `.env`, in order; none if the file does not exist.

    Raises `ConfigurationError` naming the file, and the line that is not `NAME=value`.
    """
    if not _holds_env_file(path.parent):
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError("", f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigurationError("", f"{path} cannot be read: {error.strerror}") from None
    return _parse(text, path)


def _parse(text: str, path: Path) -> dict[str, str]:
    # Only the parser: dotenv's readers log a line that they cannot read and continue, and expand ${NAME} by default.
    # Imported here, because it takes longer to load than all settings, and most processes in production have no file.
    from dotenv.parser import parse_stream

    found = {}
    for one in parse_stream(io.StringIO(text)):
        if one.error or (one.key is not None and (one.value is None or not _NAME.fullmatch(one.key))):
            # A binding begins with the blank lines in front of it.
            blank = one.original.string[: -len(one.original.string.lstrip()) or None].count("\n")
            line = one.original.line + blank
            raise ConfigurationError(
                "",
                f"{path}, line {line}: this is not NAME=value, or its quote is not closed; a comment begins with #",
            )
        if one.key is not None and one.value is not None:
            found[one.key] = one.value
    return found


# ── both together ─────────────────────────────────────────────────────────────────────────────────────────────────


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""Variables that other software writes in lower case, often in both forms."""


def gather(environ: Mapping[str, str], env_file: Path) -> dict[str, Found]:
    """What is set, by name; the environment overrides the file.

    An empty variable of the environment hides the file's, so `OPENAI_API_KEY= koo serve` starts without the key.
    """
    return _read(read_env_file(env_file), ".env") | _read(without_links(environ), "environment")


def _read(variables: Mapping[str, str], source: Source) -> dict[str, Found]:
    found = {name: Found(name, text.strip(), source) for name, text in variables.items()}
    if "REQUEST_METHOD" in found:
        # In a CGI process a client's header `Proxy: …` arrives as HTTP_PROXY, and would choose our requests' route.
        found.pop("HTTP_PROXY", None)
    for name in PROXIES:
        # As in other programs, lower case wins, even if empty: so a shell can bypass the machine's proxy.
        small = found.pop(name.lower(), None)
        if small is not None:
            found[name] = Found(name, small.value, source)
    return found
