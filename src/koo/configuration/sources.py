"""The sources of values: KOO_HOME, the `.env` in it, and the process's environment.

Apart from reading the one file, this module is pure: the environment and the working directory are arguments, and only
`koo.settings` reads those of the process.

The `.env` has python-dotenv's grammar, parsed strictly. Nothing in it is expanded, because a `$` in a password is just
a `$`. A line that cannot be parsed stops the start, because its variable would otherwise silently keep its default. No
message quotes a line, because it may contain a secret.
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
from koo.paths import absolute, path_trouble

ENV_FILE = ".env"

Source = Literal["default", ".env", "environment", "argument"]


@dataclass(frozen=True, slots=True)
class Found:
    """A variable from one source; an empty value counts as not set."""

    variable: str
    value: object = field(repr=False)
    source: Source


# ── KOO_HOME ──────────────────────────────────────────────────────────────────────────────────────────────────────


def find_home(given: str, working_directory: Path) -> Path:
    """The folder in KOO_HOME; otherwise the nearest one upwards with a `.env`; otherwise the working directory.

    Raises `ConfigurationError` if KOO_HOME is not a folder.
    """
    # A missing folder is not created: with a typo in KOO_HOME, koo would start with an empty state store, and
    # the budgets and the history would seem to be lost.
    if given:
        wrong = "expected an existing folder"
        try:
            home = absolute(given, working_directory)
            if home.is_dir():
                return home
        except (ValueError, OSError) as error:
            wrong = path_trouble(error)
        raise ConfigurationError("", f'KOO_HOME is "{given}"; {wrong}')
    upwards = (working_directory, *working_directory.parents)
    return next((folder for folder in upwards if _holds_env_file(folder)), working_directory)


def _holds_env_file(folder: Path) -> bool:
    # A folder named .env is a virtual environment. A broken link counts as a file: it is usually a mounted secret that
    # is missing, and reading it then reports that. If it were skipped, koo would start with defaults.
    file = folder / ENV_FILE
    try:
        return (file.exists() or file.is_symlink()) and not file.is_dir()
    except PermissionError:  # koo may not read this folder, so its `.env` is not meant for koo
        return False


def check_home(found: Found | None, home: Path) -> None:
    """Raises `ConfigurationError` if the `.env` sets KOO_HOME to a folder other than its own."""
    if found is None or found.source != ENV_FILE or not found.value:
        return
    if not _is_same(str(found.value), home):
        raise ConfigurationError(
            "",
            f"KOO_HOME is {quoted(str(found.value))} in {home / ENV_FILE}, but that file is itself found by KOO_HOME; "
            "set it in the environment",
        )


def _is_same(given: str, home: Path) -> bool:
    try:
        return absolute(given, home) == home.resolve()
    except ValueError:
        return False


def check_env_file(path: Path, environ: Mapping[str, str], *, by_hand: bool) -> Iterator[str]:
    """Warnings to log about a `.env`. `by_hand`: its folder is set by KOO_HOME, so users who can change it are trusted.

    Raises `ConfigurationError` for a file that was found by searching and that other users can change.
    """
    if not _holds_env_file(path.parent):
        return
    try:
        doubt, is_readable_by_all = look_at(path, environ)
    except OSError:
        return  # reading the file will report this error
    if doubt and not by_hand:
        raise ConfigurationError(
            "",
            f"{path} is not read, because {doubt}: change that, or set KOO_HOME={path.parent} to trust the file, or "
            "set KOO_HOME to another folder",
        )
    if doubt:
        yield f"{path} is read because KOO_HOME names its folder, but {doubt}"
    if is_readable_by_all:
        yield f"every user of this machine can read {path}: chmod o-r {path}"


# ── .env ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def read_env_file(path: Path) -> dict[str, str]:
    """The settings in a `.env`, in order; {} if the file does not exist.

    Raises `ConfigurationError` with the file and the number of a line that is not `NAME=value`.
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
    # Only dotenv's parser is used. dotenv's own readers log a line that they cannot parse and go on, and they expand
    # ${NAME} by default. It is imported here because loading it takes longer than all settings, and most processes in
    # production have no `.env`.
    from dotenv.parser import parse_stream

    found = {}
    for one in parse_stream(io.StringIO(text)):
        if one.error or (one.key is not None and (one.value is None or not _NAME.fullmatch(one.key))):
            # The parser counts blank lines in front of a binding as part of it, so its line number is too low.
            blank = one.original.string[: -len(one.original.string.lstrip()) or None].count("\n")
            line = one.original.line + blank
            raise ConfigurationError(
                "",
                f"{path}, line {line}: this is not NAME=value, or its quote is not closed; comments start with #",
            )
        if one.key is not None and one.value is not None:
            found[one.key] = one.value
    return found


# ── both together ─────────────────────────────────────────────────────────────────────────────────────────────────


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""Variables that other software writes in lower case, often in both forms."""


def gather(environ: Mapping[str, str], env_file: Path) -> dict[str, Found]:
    """All variables that are set, by name; the environment takes precedence over the file.

    An empty variable in the environment hides the file's, so `OPENAI_API_KEY= koo serve` starts without the key.
    """
    return _read(read_env_file(env_file), ".env") | _read(without_links(environ), "environment")


def _read(variables: Mapping[str, str], source: Source) -> dict[str, Found]:
    found = {name: Found(name, text.strip(), source) for name, text in variables.items()}
    if "REQUEST_METHOD" in found:
        # "httpoxy": in a CGI process a client's header `Proxy: …` arrives as HTTP_PROXY. Any client could send koo's
        # requests, with their keys, through its own proxy.
        found.pop("HTTP_PROXY", None)
    for name in PROXIES:
        # Lower case takes precedence, as in curl and requests. That includes an empty value, so that a shell can turn
        # off the machine's proxy.
        small = found.pop(name.lower(), None)
        if small is not None:
            found[name] = Found(name, small.value, source)
    return found
