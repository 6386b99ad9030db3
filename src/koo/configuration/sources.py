"""Where values come from: KOO_HOME, the `.env` in it, the process's environment, and names that nobody knows.

Pure but for reading the one file: the environment and the working directory are handed in, so that `koo.settings`
stays the one reader of the process's own.

The `.env` is read strictly, in the usual grammar. Nothing in it is expanded, because a `$` in a password is a `$`; and
a line that cannot be read stops the start, because the variable that it meant would else keep its default in silence.
No message repeats what a line holds: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from koo.errors import ConfigurationError

PREFIXES = ("DATABASE_", "DB_", "AI_", "KOO_")
SERVICE_PREFIX = "AI_SERVICES__"
ENV_FILE = ".env"

Source = Literal["default", ".env", "environment", "argument"]


@dataclass(frozen=True, slots=True)
class Found:
    """One variable that somebody set; an empty value means that it is not set."""

    variable: str
    value: str = field(repr=False)
    source: Source


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that looks like one of koo's and is none; `meant` is the known one that is nearest, if one is near."""

    name: str
    source: Source
    meant: str | None = None

    def __str__(self) -> str:
        hint = f": did you mean {self.meant}?" if self.meant else "."
        return f"{self.name}, set in {_place(self.source)}, is no variable of koo and has no effect{hint}"


def _place(source: Source) -> str:
    return "the environment" if source == "environment" else source


# ── KOO_HOME ──────────────────────────────────────────────────────────────────────────────────────────────────────


def find_home(given: str, working_directory: Path) -> Path:
    """The folder that KOO_HOME names, else the nearest one upwards that holds a `.env`, else the working directory.

    Raises `ConfigurationError` where KOO_HOME names no folder: it would be made, empty, and the data not be found.
    """
    if given:
        home = (working_directory / Path(given).expanduser()).resolve()
        if not home.is_dir():
            raise ConfigurationError("", f'KOO_HOME holds "{given}"; allowed is a folder that exists')
        return home
    upwards = (working_directory, *working_directory.parents)
    return next((folder for folder in upwards if _holds_env_file(folder)), working_directory)


def _holds_env_file(folder: Path) -> bool:
    # A folder named .env is a virtual environment, and no settings.
    try:
        return (folder / ENV_FILE).exists() and not (folder / ENV_FILE).is_dir()
    except PermissionError:  # A folder above that may not be looked into holds nothing for us.
        return False


# ── .env ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_BLANK = re.compile(r"[^\S\n]*(?:#[^\n]*)?(?:\n|\Z)")
_SETTING = re.compile(
    r"""
    [^\S\n]* (?: export [^\S\n]+ )? (?P<name> (?! export [^\S\n]* = ) [A-Za-z_][A-Za-z0-9_.-]* ) [^\S\n]* =
    (?:
        [^\S\n]* ' (?P<single> (?: \\. | [^'\\] )* ) ' [^\S\n]* (?: \# [^\n]* )?
      | [^\S\n]* " (?P<double> (?: \\. | [^"\\] )* ) " [^\S\n]* (?: \# [^\n]* )?
      | (?! [^\S\n]* ['"] ) (?P<bare> [^\n]* )
    )
    (?: \n | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"\s+#.*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def read_env_file(path: Path) -> dict[str, str]:
    """The settings of a `.env`, in order; none where there is no such file.

    Raises `ConfigurationError` naming the file, and the line where one is not `NAME=value`.
    """
    if not _holds_env_file(path.parent):
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError("", f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigurationError("", f"{path} cannot be read: {error.strerror}") from None
    return dict(_parse(text, path))


def _parse(text: str, path: Path) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        if blank := _BLANK.match(text, at):
            at = max(blank.end(), at + 1)
            continue
        setting = _SETTING.match(text, at)
        if setting is None:
            line = text.count("\n", 0, at) + 1
            raise ConfigurationError(
                "", f"{path}, line {line}: this is not NAME=value; a comment begins with #"
            )
        at = setting.end()
        yield setting["name"], _value(setting)


def _value(setting: re.Match[str]) -> str:
    if (quoted := setting["single"]) is not None:
        return re.sub(r"\\([\\'])", r"\1", quoted)
    if (quoted := setting["double"]) is not None:
        return re.sub(r"""\\([\\'"abfnrtv])""", lambda one: _ESCAPES.get(one[1], one[1]), quoted)
    return _COMMENT.sub("", setting["bare"]).strip()


# ── both together ─────────────────────────────────────────────────────────────────────────────────────────────────


def gather(environ: Mapping[str, str], env_file: Path) -> dict[str, Found]:
    """What is set, by name; the environment wins over the file.

    An empty variable of the environment hides the file's, so `OPENAI_API_KEY= koo serve` is a start without the key.
    """
    found = {name: Found(name, text.strip(), ".env") for name, text in read_env_file(env_file).items()}
    found |= {name: Found(name, text.strip(), "environment") for name, text in environ.items()}
    return found


def tell_unknown(found: Iterable[Found], known: set[str]) -> tuple[UnknownVariable, ...]:
    """Names that look like koo's and are not: under koo's prefixes, or in the `.env` and one slip from a known one."""
    unknown = []
    for one in found:
        if one.variable in known or one.variable.startswith(SERVICE_PREFIX) or not one.value:
            continue
        ours = one.variable.upper().startswith(PREFIXES) or one.variable.upper() in known
        # The .env may be shared with other software: outside of the prefixes only a near miss is worth a word.
        meant = (
            nearest(one.variable.upper(), known, 0.75 if ours else 0.9)
            if ours or one.source == ".env"
            else None
        )
        if ours or meant:
            unknown.append(UnknownVariable(one.variable, one.source, meant))
    return tuple(unknown)


def nearest(name: str, known: Iterable[str], likeness: float = 0.75) -> str | None:
    """The known name that is most like this one, if one is like it at all; `likeness` is a ratio, 1 the same."""
    return next(iter(get_close_matches(name, list(known), 1, likeness)), None)
