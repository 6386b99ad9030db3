"""From names that somebody set to values by attribute, and where each came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from koo.configuration.fields import shown
from koo.configuration.sources import SERVICE_PREFIX, Found, Source, UnknownVariable, nearest, tell_unknown
from koo.configuration.variables import BUILT_IN, ServiceSettings, Variables, variable_of_service
from koo.errors import ConfigurationError
from koo.options import RESERVED_NAMES, check_service_name

KNOWN = {name.upper() for name in Variables.model_fields} - {"AI_SERVICES"}
_MEANT = KNOWN | {
    variable_of_service(service, name) for service in BUILT_IN for name in ServiceSettings.model_fields
}
_ALLOWED_NAME = "1 to 64 small letters, digits, - and _, with a letter or digit first"
# A variable is written in capitals and knows no dots, so these names have neither.
_SERVICE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def merge(
    found: Mapping[str, Found], arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Source]]:
    """What is set, by attribute, and where each came from, by variable; arguments win, an empty value is not set.

    Raises `ConfigurationError` for a name under `AI_SERVICES__` that is none.
    """
    values = {name: value for name, value in arguments.items() if value != ""}
    services = {name: dict(own) for name, own in dict(values.pop("ai_services", {})).items()}
    for name in services:
        if not _SERVICE_NAME.fullmatch(name):
            raise ConfigurationError("", f"{shown(name)} is no name of a service; allowed is {_ALLOWED_NAME}")
        check_service_name(name)
    sources: dict[str, Source] = {name.upper(): "argument" for name in values}
    sources |= {variable_of_service(name, one): "argument" for name, own in services.items() for one in own}
    for one in found.values():
        if one.value and one.variable in KNOWN and one.variable not in sources:
            values[one.variable.lower()] = one.value
            sources[one.variable] = one.source
        elif one.value and one.variable.startswith(SERVICE_PREFIX):
            service, name = _split(one.variable)
            variable = variable_of_service(service, name)
            if sources.get(variable, "argument") != "argument":
                raise ConfigurationError("", f"{variable} is set twice, in capitals and not; set it once")
            if variable not in sources:
                services.setdefault(service, {})[name] = one.value
                sources[variable] = one.source
    return values | {"ai_services": services}, sources


def _split(variable: str) -> tuple[str, str]:
    service, _, name = variable.removeprefix(SERVICE_PREFIX).lower().partition("__")
    if name and service in RESERVED_NAMES:
        raise ConfigurationError(
            "",
            f'{variable} names a service "{service}", which means something else to koo; choose another name',
        )
    if name and _SERVICE_NAME.fullmatch(service):
        return service, name
    meant = nearest(variable.upper(), _MEANT)
    hint = f"; did you mean {meant}?" if meant else ""
    raise ConfigurationError(
        "",
        f"{variable} names no setting of a service; allowed is {SERVICE_PREFIX}<NAME>__<SETTING>, and for a name "
        f"{_ALLOWED_NAME}{hint}",
    )


def find_unknown(found: Iterable[Found]) -> tuple[UnknownVariable, ...]:
    """Variables that look like koo's and are none."""
    return tell_unknown(found, _MEANT)
