"""Map names to variables, and report names that are not variables of koo.

A name that is similar to one of koo's is logged as a warning and ignored, because it may belong to other software.
Under `AI_SERVICES__` and `AI_BUDGETS__` all names belong to koo, so a wrong one there is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from koo.configuration.sources import Found, Source
from koo.configuration.values import SERVICE_WORD, quoted
from koo.configuration.variables import BUILT_IN, FAMILIES, NOT_LOCAL, Name, ServiceSettings, Variables
from koo.errors import ConfigurationError
from koo.service_names import RESERVED_NAMES, check_service_name

PREFIXES = ("DATABASE_", "DB_", "AI_", "KOO_")
KNOWN = {name.upper() for name in Variables.rows}
_MEANT = KNOWN | {
    Name("ai_services", service, name).variable
    for service in BUILT_IN
    for name in ServiceSettings.rows
    if service != "local" or name not in NOT_LOCAL
}
_FAMILY_PREFIXES = tuple(f"{family}__".upper() for family in FAMILIES)
_ALLOWED_NAME = "1 to 64 lower-case letters, digits, - and _, starting with a letter or digit"


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that looks like one of koo's but is not; `meant` is the most similar known one, if any."""

    name: str
    source: Source
    meant: str | None = None

    def __str__(self) -> str:
        place = "the environment" if self.source == "environment" else self.source
        hint = f": did you mean {self.meant}?" if self.meant else "."
        return f"{self.name}, set in {place}, is not a koo variable and has no effect{hint}"


def nearest(name: str, known: Iterable[str], likeness: float = 0.75) -> str | None:
    """The known name that is most similar to `name`, if any; `likeness` is the smallest ratio (1 means identical)."""
    from difflib import get_close_matches  # loaded only if there is a mistake

    return next(iter(get_close_matches(name, list(known), 1, likeness)), None)


def unknown(found: Iterable[Found]) -> tuple[UnknownVariable, ...]:
    """Names that look like koo's but are not: names with koo's prefixes, and near misses in the `.env`."""
    seen = []
    for one in found:
        if one.variable in KNOWN or one.variable.startswith(_FAMILY_PREFIXES) or not one.value:
            continue
        name = one.variable.upper()
        ours = name.startswith(PREFIXES) or name in KNOWN
        # Other software may use the same .env. So outside of koo's prefixes only a very similar name is reported.
        meant = nearest(name, _MEANT, 0.75 if ours else 0.9) if ours or one.source == ".env" else None
        if ours or meant:
            seen.append(UnknownVariable(one.variable, one.source, meant))
    return tuple(seen)


def merge(found: Iterable[Found], arguments: Mapping[str, Any]) -> dict[Name, Found]:
    """All variables that are set. Arguments take precedence, and an empty value counts as not set.

    Raises `ConfigurationError` for an unknown name in a family and for an unknown argument.
    """
    merged = {
        name: Found(name.variable, value, "argument") for name, value in _named(arguments) if value != ""
    }
    for one in found:
        if one.value and (one.variable in KNOWN or one.variable.startswith(_FAMILY_PREFIXES)):
            name = Name("", "", one.variable.lower()) if one.variable in KNOWN else _split(one.variable)
            # `AI_SERVICES__CLAUDE__MODEL` and `AI_SERVICES__claude__MODEL` mean the same. If both are set, one of them
            # would silently lose.
            if name not in merged:
                merged[name] = replace(one, variable=name.variable)
            elif merged[name].source != "argument":
                raise ConfigurationError(
                    "", f"{name.variable} is set twice, in upper and lower case; set it once"
                )
    return merged


def _named(arguments: Mapping[str, Any]) -> Iterator[tuple[Name, object]]:
    for name, value in arguments.items():
        if name in Variables.rows:
            yield Name("", "", name), value
        elif name in FAMILIES:
            what = FAMILIES[name][1]
            for whose, own in dict(value).items():
                if not SERVICE_WORD.fullmatch(whose):
                    wrong = f"{quoted(whose)} is not a name for a {what}"
                    raise ConfigurationError("", f"{wrong}; expected {_ALLOWED_NAME}")
                if what == "service":
                    check_service_name(whose)
                yield from ((Name(name, whose, one), its) for one, its in _flat(dict(own)))
        else:
            meant = nearest(name, Variables.rows)
            raise ConfigurationError(
                "", f"Settings has no attribute {name}" + (f"; did you mean {meant}?" if meant else "")
            )


def _flat(own: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """{"headers": {"X-Title": "koo"}} → ("headers__X-Title", "koo"), like the name of a variable."""
    for one, its in own.items():
        if isinstance(its, Mapping):
            yield from ((f"{one}__{inner}", value) for inner, value in its.items())
        else:
            yield one, its


def _split(variable: str) -> Name:
    """`AI_SERVICES__CLAUDE__DAILY_BUDGET` → ("ai_services", "claude", "daily_budget").

    The part after a third `__` is the operator's own name.
    """
    # Names of variables are usually upper case, but header names and JSON fields are not. So an inner name in upper
    # case is lowered, and one with any lower-case letter is taken as it is: `generationConfig` must stay
    # `generationConfig`.
    family = next(one for one in FAMILIES if variable.startswith(f"{one}__".upper()))
    prefix, what = f"{family}__".upper(), FAMILIES[family][1]
    whose, _, name = variable.removeprefix(prefix).partition("__")
    setting, bar, inner = name.partition("__")
    whose, name = whose.lower(), setting.lower() + bar + (inner.lower() if inner.isupper() else inner)
    if name and what == "service" and whose in RESERVED_NAMES:
        raise ConfigurationError(
            "",
            f'{variable} names a service "{whose}", which is a reserved name; choose another one',
        )
    if name and SERVICE_WORD.fullmatch(whose):
        return Name(family, whose, name)
    # If the setting is known, only the service can be misspelt: the nearest of all variables could be another
    # service's.
    service = nearest(whose, BUILT_IN) if name else None
    exact = service and Name(family, service, name).variable
    meant = (exact if exact in _MEANT else None) if name else nearest(variable.upper(), _MEANT)
    hint = f"; did you mean {meant}?" if meant else ""
    raise ConfigurationError(
        "",
        f"{variable} does not name a setting of a {what}; expected {prefix}<NAME>__<SETTING> with a name of "
        f"{_ALLOWED_NAME}{hint}",
    )
