"""Reading values, and the one sentence that a wrong one gets: the variable, what it holds, what is allowed.

Of a secret it shows no more than "…", also where the secret stands in a wrong place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from koo.configuration.becoming import local_model_path
from koo.configuration.names import nearest
from koo.configuration.sources import ENV_FILE, Found
from koo.configuration.table import Row
from koo.configuration.urls import is_loopback
from koo.configuration.values import quoted, reveal
from koo.configuration.variables import BUILT_IN, ServiceSettings, Variables, variable_of_service
from koo.errors import ConfigurationError

ORDERED = [("db_retry_base_delay", "db_retry_max_delay"), ("ai_retry_base_delay", "ai_retry_max_delay")]
"""Where somebody set both, the first must not be larger than the second."""


# ── one value ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read_rows(
    rows: Mapping[str, Row], found: Mapping[str, Found | None], variable: Callable[[str], str], home: Path
) -> dict[str, Any]:
    """The value of each row: what was found, else the default. Raises `ConfigurationError`, naming the variable."""
    return {name: _read(row, found.get(name), variable(name), home) for name, row in rows.items()}


def _read(row: Row, found: Found | None, variable: str, home: Path) -> object:
    value = row.default if found is None else found.value
    try:
        return row.read(value, home)
    except ValueError as error:
        said = str(error) or f"allowed is {row.allowed}"
    # Raised out here: the error before, whose frames hold the value, would come along as the context of this one.
    held = row.form.held(str(reveal(value)))
    raise ConfigurationError("", f"{variable} holds {held}; {said}{_where(found, home)}")


def _where(found: Found | None, home: Path) -> str:
    return f" (set in {home / ENV_FILE})" if found is not None and found.source == ENV_FILE else ""


def check_names(service: str, own: Mapping[str, Found], home: Path) -> None:
    """Raises `ConfigurationError` for a setting that no service has."""
    known = [name.upper() for name in ServiceSettings.rows]
    for name, found in own.items():
        if name.upper() not in known:
            # Of a setting that does not exist only a number is shown: the rest may be a key.
            text = str(reveal(found.value))
            shown = f'"{text}"' if text.replace(".", "", 1).isdecimal() and len(text) < 20 else '"…"'
            meant = nearest(name.upper(), known)
            hint = f" (did you mean {meant}?)" if meant else ""
            raise ConfigurationError(
                "",
                f"{variable_of_service(service, name)} holds {shown}, but a service has no such setting{hint}; "
                f"allowed are {', '.join(known)}{_where(found, home)}",
            )


def check_home(found: Found | None, home: Path) -> None:
    """Raises `ConfigurationError` where the `.env` names another KOO_HOME than the folder it was found in."""
    if found is None or found.source != ENV_FILE or not found.value:
        return
    if (home / Path(str(found.value)).expanduser()).resolve() != home.resolve():
        raise ConfigurationError(
            "",
            f"KOO_HOME holds {quoted(str(found.value))} in {home / ENV_FILE}, which is found by KOO_HOME itself; "
            "allowed is to set it in the environment",
        )


# ── values together ───────────────────────────────────────────────────────────────────────────────────────────────


def check_together(settings: Variables) -> None:
    """What can be right alone and not beside the others. Raises `ConfigurationError`."""
    for less, more in ORDERED:
        low, high = getattr(settings, less), getattr(settings, more)
        if {less, more} <= settings.given and low > high:
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
        setting = next((one for one in own.rows if one in own.given), "base_url")
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
        if setting in own.given:
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
