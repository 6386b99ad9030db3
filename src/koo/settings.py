"""Settings: the only reader of the environment.

A value takes one path: the environment and the `.env` in KOO_HOME → `Settings`, which checks each value → the frozen
options of `koo.options`, which is all that the rest of koo sees. Each variable is a row in
`koo.configuration.variables`.

An invalid value stops the start with one sentence: the variable, its value ("…" for a secret), and the allowed values.
A name that is close to one of koo's is logged as a warning and ignored, because it may belong to other software. But
`AI_SERVICES__…` and `AI_BUDGETS__…` belong to koo alone, so a wrong name there is an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from koo.configuration.cross_checks import contradictions
from koo.configuration.doubts import doubts
from koo.configuration.names import UnknownVariable, merge, unknown
from koo.configuration.reading import read_rows, where
from koo.configuration.sources import (
    ENV_FILE,
    Found,
    Source,
    check_env_file,
    check_home,
    find_home,
    gather,
)
from koo.configuration.table import Row
from koo.configuration.to_options import platform_options
from koo.configuration.urls import url_of
from koo.configuration.values import SecretStr
from koo.configuration.variables import FAMILIES, Name, Variables
from koo.errors import ConfigurationError
from koo.options import PlatformOptions

__all__ = ["Explained", "SecretStr", "Settings"]
log = logging.getLogger("koo.settings")


class Explained(NamedTuple):
    """One row of `koo config`: the value in force and its source. A secret's value is masked."""

    variable: str
    value: str
    source: Source
    meaning: str
    allowed: str


class Settings(Variables):
    """The settings in force, with an attribute for each variable: `DATABASE_POOL_SIZE` is
    `settings.database_pool_size`.

    A value comes from the keyword arguments, else the environment, else the `.env` in KOO_HOME, else the default. Keys,
    tokens and database URLs are `SecretStr`, which hides them; `get_secret_value()` returns the value. Durations are
    seconds, money is `Decimal` USD, and None means no limit. `environ` and `working_directory` replace the process's
    own. Raises `ConfigurationError`.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        working_directory: Path | None = None,
        **values: Any,
    ) -> None:
        environ = os.environ if environ is None else environ
        here = _working_directory() if working_directory is None else working_directory
        home = find_home(str(values.get("koo_home", "")) or environ.get("KOO_HOME", "").strip(), here)
        by_hand = bool(values.get("koo_home") or environ.get("KOO_HOME", "").strip())
        for sentence in check_env_file(home / ENV_FILE, environ, by_hand=by_hand):
            _warn_once(sentence)
        found = gather(environ, home / ENV_FILE)
        check_home(found.get("KOO_HOME"), home)
        merged = merge(found.values(), values)
        read, given = read_rows(merged, home)
        if "koo_url" not in given:
            read["koo_url"] = url_of(read["koo_host"], read["koo_port"])
        for family, (table, _) in FAMILIES.items():
            names = [*values.get(family, ()), *(name.whose for name in merged if name.family == family)]
            read[family] = {one: table(*read_rows(merged, home, family, one)) for one in dict.fromkeys(names)}
        super().__init__(read, given)
        vars(self).update(_merged=merged, _unknown=unknown(found.values()))
        for name, sentence in contradictions(self):
            raise ConfigurationError("", f"{name.variable} {sentence}{where(merged.get(name), home)}")
        vars(self).update(
            _doubts=tuple(
                f"{name.variable} {sentence}{where(merged.get(name), home)}"
                for name, sentence in doubts(self)
            )
        )
        for told in (*map(str, self._unknown), *self._doubts):
            _warn_once(told)

    # This is set on the class, because error reporters call `repr` on this object when reading the settings fails
    # halfway.
    _merged: Mapping[Name, Found] = MappingProxyType({})
    _unknown: tuple[UnknownVariable, ...] = ()
    _doubts: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Valid values that another value makes pointless, each as a sentence for people."""
        return self._doubts

    @property
    def unknown_variables(self) -> tuple[UnknownVariable, ...]:
        """Variables that look like koo's but are not. Converted to text, each is a sentence for people."""
        return self._unknown

    def platform_options(self) -> PlatformOptions:
        """The frozen options: everything that a process of koo needs to know."""
        return platform_options(self)

    def explain(self) -> list[Explained]:
        """The values in force and their sources, without secrets.

        One row for each variable, and for each value that was set for a service or a budget.
        """
        rows = [
            self._explain(Name("", "", name), row, getattr(self, name)) for name, row in self.rows.items()
        ]
        return rows + [
            self._explain(Name(family, whose, name), row, getattr(table, name))
            for family in FAMILIES
            for whose, table in getattr(self, family).items()
            for name, row in table.rows.items()
            if name in table.given
        ]

    def _explain(self, name: Name, row: Row, value: object) -> Explained:
        inside = f"{name.attribute}__"
        found = next(
            (
                one
                for own, one in self._merged.items()
                if own == name or (row.many and own[:2] == name[:2] and own.attribute.startswith(inside))
            ),
            None,
        )
        source: Source = "default" if found is None else found.source
        return Explained(name.variable, row.explain(value), source, row.meaning, row.allowed)

    def __repr__(self) -> str:
        unknown = f", {len(self._unknown)} unknown" if self._unknown else ""
        return f"<Settings {vars(self).get('koo_home', '')}: {len(self._merged)} set{unknown}>"


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigurationError(
            "", "the working directory no longer exists; change to one that does"
        ) from None


@cache
def _warn_once(sentence: str) -> None:
    log.warning("%s", sentence)


def variables_of(value: str) -> list[str]:
    """The names of the environment's variables with this value, also those of other software."""
    return [name for name, its in os.environ.items() if its == value]


def environment_with(more: Mapping[str, str]) -> dict[str, str]:
    """The process's environment with `more`, for `Settings(environ=…)`."""
    return {**os.environ, **more}
