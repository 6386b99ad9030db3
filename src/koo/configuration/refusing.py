"""The one sentence that a value gets which cannot be right: the variable, what it holds, what is allowed.

Of a secret it shows no more than "…", also where the secret stands in a wrong place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from koo.configuration.becoming import local_model_path
from koo.configuration.fields import describe_allowed, is_secret, shown
from koo.configuration.sources import ENV_FILE, Source, nearest
from koo.configuration.urls import is_loopback, mask_to_scheme, mask_url
from koo.configuration.variables import BUILT_IN, ServiceSettings, Variables, variable_of_service
from koo.errors import ConfigurationError

DATABASE_URLS = {"database_url", "koo_state_url"}
WEB_URLS = {"koo_url", "base_url"}
ORDERED = [("db_retry_base_delay", "db_retry_max_delay"), ("ai_retry_base_delay", "ai_retry_max_delay")]
"""Where somebody set both, the first must not be larger than the second."""


# ── one value ─────────────────────────────────────────────────────────────────────────────────────────────────────


def refusal(wrong: ErrorDetails, sources: Mapping[str, Source], home: Path) -> ConfigurationError:
    """What pydantic refused, as our sentence."""
    place, value = wrong["loc"], wrong["input"]
    name = str(place[-1])
    of_service = place[0] == "ai_services" and len(place) > 2
    variable = variable_of_service(str(place[1]), name) if of_service else name.upper()
    where = f" (set in {home / ENV_FILE})" if sources.get(variable) == ENV_FILE else ""
    cls: type[BaseModel] = ServiceSettings if of_service else Variables
    one = cls.model_fields.get(name)
    if one is None:
        return _unknown(variable, name, cls, of_service, value, where)
    error = wrong.get("ctx", {}).get("error")
    said = str(error) if isinstance(error, ValueError) else ""
    return ConfigurationError(
        "",
        f"{variable} holds {held(one, name, value)}; {said or 'allowed is ' + describe_allowed(one)}{where}",
    )


def _unknown(
    variable: str, name: str, cls: type[BaseModel], of_service: bool, value: Any, where: str
) -> ConfigurationError:
    known = [one.upper() if of_service else one for one in cls.model_fields]
    meant = nearest(name.upper() if of_service else name, known)
    # Of a name that nobody knows only a number is shown: the rest may be a key.
    text = f'"{value}"' if str(value).replace(".", "", 1).isdecimal() and len(str(value)) < 20 else '"…"'
    if of_service:
        hint = f" (did you mean {meant}?)" if meant else ""
        allowed = f"allowed are {', '.join(known)}"
        return ConfigurationError(
            "", f"{variable} holds {text}, but a service has no such setting{hint}; {allowed}{where}"
        )
    hint = f"; did you mean {meant}?" if meant else ""
    return ConfigurationError("", f"Settings has no {name}{hint}")


def held(one: FieldInfo, name: str, value: Any) -> str:
    """What a variable holds, for people's eyes and for logs."""
    text = str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)
    if name in DATABASE_URLS:
        return f'"{mask_to_scheme(text)}"'
    if is_secret(one):
        return '"…"'
    return f'"{mask_url(text)}"' if name in WEB_URLS and "://" in text else shown(text)


# ── values together ───────────────────────────────────────────────────────────────────────────────────────────────


def check_together(settings: Variables) -> None:
    """What can be right alone and not beside the others. Raises `ConfigurationError`."""
    for less, more in ORDERED:
        low, high = getattr(settings, less), getattr(settings, more)
        if {less, more} <= settings.model_fields_set and low > high:
            _refuse(less, f'holds "{low:g}"; allowed is at most {high:g}, which {more.upper()} holds')
    if not is_loopback(settings.koo_host) and settings.koo_token is None:
        _refuse(
            "koo_host",
            f'holds "{settings.koo_host}", which others can reach; allowed without KOO_TOKEN are 127.0.0.1, ::1 and '
            "localhost",
        )
    if settings.koo_token is not None and settings.koo_token == settings.koo_read_token:
        _refuse(
            "koo_read_token",
            'holds "…", the same as KOO_TOKEN; allowed is another one, or who may only look could do everything',
        )
    for name, own in settings.ai_services.items():
        _check_service(settings, name, own)


def _check_service(settings: Variables, name: str, own: ServiceSettings) -> None:
    if (own.input_price is None) != (own.output_price is None):
        one, other = (
            ("input_price", "output_price") if own.output_price is None else ("output_price", "input_price")
        )
        value = getattr(own, one)
        _refuse(
            variable_of_service(name, one),
            f'holds "{value}"; allowed is only together with {variable_of_service(name, other)}',
        )
    if name in BUILT_IN:
        _check_built_in(settings, name, own)
    elif own.base_url is None and own.api_key is None:
        setting = next(iter(own.model_fields_set), "base_url")
        meant = nearest(name, BUILT_IN)
        hint = f" (did you mean {variable_of_service(meant, setting)}?)" if meant else ""
        _refuse(
            variable_of_service(name, setting),
            f"belongs to no service{hint}; allowed are {', '.join(BUILT_IN)}, and new ones that have a "
            f"{variable_of_service(name, 'base_url')} or an API_KEY",
        )


def _check_built_in(settings: Variables, name: str, own: ServiceSettings) -> None:
    kind = BUILT_IN[name][0]
    if name != "local":
        if own.kind not in {None, kind}:
            _refuse(
                variable_of_service(name, "kind"),
                f'holds "{own.kind}"; allowed is none, because {name} speaks {kind}',
            )
        return
    for setting in ("kind", "base_url", "api_key"):
        if setting in own.model_fields_set:
            _refuse(
                variable_of_service(name, setting),
                "is set; allowed is none, because local runs in this process",
            )
    path = local_model_path(settings)
    if path is not None and not path.is_file():
        _refuse(
            variable_of_service(name, "model"),
            f'holds "{own.model}"; allowed is the path of a GGUF file that exists, and {path} does not',
        )


def _refuse(name: str, sentence: str) -> NoReturn:
    raise ConfigurationError("", f"{name.upper()} {sentence}")
