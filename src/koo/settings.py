"""Settings: the one reader of the environment.

A value goes one way: the environment and the `.env` in KOO_HOME → `Settings`, where each is checked → the frozen
options of `koo.options`, which is all that the rest of koo ever sees. What can be set is declared, with its words, in
`koo.configuration.variables`.

What cannot be right stops the start with one sentence: the variable, what it holds (of a secret no more than "…"), what
is allowed. A name that is only nearly one of ours is told and goes on, because it may belong to other software; but
`AI_SERVICES__…` belongs to nobody else, so there a wrong name is an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from koo.configuration.becoming import platform_options
from koo.configuration.fields import Explained, about, as_text, describe_allowed, is_secret, shown
from koo.configuration.merging import find_unknown, merge
from koo.configuration.refusing import DATABASE_URLS, check_together, refusal
from koo.configuration.sources import ENV_FILE, Found, Source, UnknownVariable, find_home, gather
from koo.configuration.urls import mask_url
from koo.configuration.variables import ServiceSettings, Variables, variable_of_service
from koo.errors import ConfigurationError
from koo.options import PlatformOptions

log = logging.getLogger("koo.settings")


class Settings(Variables):
    """What is in force, one attribute a variable: `DATABASE_POOL_SIZE` is `settings.database_pool_size`.

    Read from the keyword arguments, else the environment, else the `.env` in KOO_HOME, else the default. Keys, tokens
    and the URLs of databases are `SecretStr`, so that nothing shows them; `get_secret_value()` gives them. Durations
    are seconds, money is `Decimal` USD, None is no limit. `environ` and `working_directory` replace the process's own.
    Raises `ConfigurationError`.
    """

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)
    _unknown: tuple[UnknownVariable, ...] = PrivateAttr(default=())

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        working_directory: Path | None = None,
        **values: Any,
    ) -> None:
        environ = os.environ if environ is None else environ
        here = _working_directory() if working_directory is None else working_directory
        home = find_home(str(values.pop("koo_home", "")) or environ.get("KOO_HOME", "").strip(), here)
        found = gather(environ, home / ENV_FILE)
        _check_home(found.get("KOO_HOME"), home)
        read, sources = merge(found, values)
        wrong: list[ErrorDetails] = []
        try:
            super().__init__(**read | {"koo_home": home})
        except ValidationError as error:
            wrong = error.errors(include_url=False)
        if wrong:  # Not raised above: pydantic's own error, which holds every value, would come along as its context.
            raise refusal(wrong[0], sources, home)
        self._sources = sources
        self._unknown = find_unknown(found.values())
        check_together(self)
        for unknown in self._unknown:
            _tell_once(str(unknown))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `__init__` gathered: pydantic's own readers tell neither a misspelt name nor a value's origin."""
        return (init_settings,)

    @property
    def unknown_variables(self) -> tuple[UnknownVariable, ...]:
        """Variables that look like koo's and are none; as text each is a sentence for people."""
        return self._unknown

    def platform_options(self) -> PlatformOptions:
        """The frozen options: everything that one process of koo needs to know. Raises `ConfigurationError`."""
        return platform_options(self)

    def explain(self) -> list[Explained]:
        """What is in force and where it came from, without secrets: each variable, and what each service was given."""
        rows = [
            self._row(name.upper(), name, one, getattr(self, name))
            for name, one in Variables.model_fields.items()
            if name != "ai_services"
        ]
        for service, own in self.ai_services.items():
            for name, one in ServiceSettings.model_fields.items():
                if name in own.model_fields_set:
                    rows.append(self._row(variable_of_service(service, name), name, one, getattr(own, name)))
        return rows

    def _row(self, variable: str, name: str, one: FieldInfo, value: Any) -> Explained:
        text = "none" if value is None and about(one).may_be_none else as_text(value)
        if value is not None and is_secret(one):
            text = mask_url(text) if name in DATABASE_URLS else "…"
        source = self._sources.get(variable, "default")
        return Explained(variable, text, source, about(one).meaning, describe_allowed(one))

    def __repr__(self) -> str:
        unknown = f", {len(self._unknown)} unknown" if self._unknown else ""
        return f"<Settings {self.koo_home}: {len(self._sources)} set{unknown}>"

    __str__ = __repr__


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigurationError("", "the working directory is gone; change to one that exists") from None


def _check_home(found: Found | None, home: Path) -> None:
    if found is None or found.source != ENV_FILE or not found.value:
        return
    if (home / Path(found.value).expanduser()).resolve() != home.resolve():
        raise ConfigurationError(
            "",
            f"KOO_HOME holds {shown(found.value)} in {home / ENV_FILE}, which is found by KOO_HOME itself; allowed is "
            "to set it in the environment",
        )


@cache
def _tell_once(sentence: str) -> None:
    log.warning("%s", sentence)
