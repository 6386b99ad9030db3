"""What one variable may hold, and what there is to say about it: meaning, unit, range, default and its reason.

A variable that becomes an option of `koo.options` has that option's words and bounds, so that they stand once; the
checks here, the sentence of a refusal, `.env.example`, `docs/configuration.md` and `koo config` are all made of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin

from pydantic import BaseModel, Field, SecretStr, ValidationInfo
from pydantic.fields import FieldInfo

from koo.configuration.sources import Source
from koo.options import Checked, allowed

SHOWN_MAX = 40
ALLOWED_SECRET = "ASCII text without quotes and spaces"
_SAME: Any = object()
# A key in the wrong variable: it must not get into a log by way of the sentence that refuses it.
_LOOKS_SECRET = re.compile(r"://|@|^(?:sk|pk|key|AIza|pplx|xai|gsk|ghp|eyJ)[-_A-Za-z0-9]{6}")


@dataclass(frozen=True, slots=True)
class About:
    """The words and the bounds of one variable.

    `option` is the option that it becomes, as `Class.field`; `allowed` replaces the words made from type and bounds;
    `default` replaces the default that is shown; `may_be_none` tells that the word `none` is a value: no limit.
    """

    meaning: str
    why: str
    unit: str = ""
    option: str = ""
    allowed: str = ""
    default: str = ""
    may_be_none: bool = False
    bounds: Mapping[str, Any] = field(default_factory=dict)


class Explained(NamedTuple):
    """One row of `koo config`: what is in force, and where it came from; a secret's value is masked."""

    variable: str
    value: str
    source: Source
    meaning: str
    allowed: str


class Described(NamedTuple):
    """One row of `docs/configuration.md`."""

    variable: str
    default: str
    unit: str
    allowed: str
    meaning: str
    why: str


# ── making fields ─────────────────────────────────────────────────────────────────────────────────────────────────


def variable_of(options: type[Checked], name: str, value: Any = _SAME, **words: Any) -> Any:
    """A field that becomes this option, with its bounds and words; `value` and `words` replace its own."""
    option = next(one for one in fields(options) if one.name == name)  # type: ignore[arg-type]
    said = option.metadata
    bounds = {bound: said[bound] for bound in ("at_least", "at_most", "above")}
    words_of_it = About(
        said["meaning"], said["why"], said["unit"], option=f"{options.__name__}.{name}", bounds=bounds
    )
    return _field(option.default if value is _SAME else value, replace(words_of_it, **words))


def variable(value: Any, meaning: str, why: str, **words: Any) -> Any:
    """A field that no single option stands for."""
    bounds: dict[str, Any] = {bound: words.pop(bound) for bound in ("at_least", "at_most") if bound in words}
    return _field(value, About(meaning, why, bounds=bounds, **words))


def _field(default: Any, about: About) -> Any:
    low, high, above = (about.bounds.get(bound) for bound in ("at_least", "at_most", "above"))
    return Field(default=default, ge=low, le=high, gt=above, json_schema_extra=cast("Any", {"about": about}))


def about(one: FieldInfo) -> About:
    words: About = cast("Any", one.json_schema_extra)["about"]
    return words


def tidy(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Before the types: what pydantic would take although it cannot be meant, and the words of a choice."""
    one = cls.model_fields[info.field_name or ""]
    if isinstance(value, bool) and one.annotation is not bool:
        raise ValueError  # pydantic takes True for the number 1
    if not isinstance(value, str):
        return value
    text = value.strip()
    if about(one).may_be_none and text.lower() == "none":
        return None
    return text.lower() if text.lower() in _types(one.annotation) else text


def check_secret(value: SecretStr | None) -> SecretStr | None:
    """A key that can travel in a header: a line break or a quote from copying would make it another one."""
    if value is not None and not re.fullmatch(r"[\x21\x23-\x26\x28-\x7e]+", value.get_secret_value()):
        raise ValueError(f"allowed is {ALLOWED_SECRET}")
    return value


# ── speaking of fields ────────────────────────────────────────────────────────────────────────────────────────────


def describe(cls: type[BaseModel], prefix: str = "") -> Iterator[Described]:
    """A row for each variable of a class, in order."""
    for name, one in cls.model_fields.items():
        words = about(one)
        default = words.default or as_text(one.default)
        yield Described(
            prefix + name.upper(), default, words.unit, describe_allowed(one), words.meaning, words.why
        )


def describe_allowed(one: FieldInfo) -> str:
    """What a variable may hold, as words: "a whole number, 1 to 10000"."""
    words, types = about(one), _types(one.annotation)
    if words.allowed:
        return words.allowed
    if int in types:
        text = "a whole number"
    else:
        text = {"s": "a number of seconds", "USD": "an amount of USD"}.get(words.unit, "a number")
    if (bounds := allowed(words.bounds)) != "any":
        text += f", {bounds}"
    return text + (", or none for no limit" if words.may_be_none else "")


def is_secret(one: FieldInfo) -> bool:
    return SecretStr in _types(one.annotation)


def _types(annotation: Any) -> set[Any]:
    """`int | None` → {int, NoneType}; a Literal → its words."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    parts = get_args(annotation)
    return {word for part in parts for word in _types(part)} if parts else {annotation}


def as_text(value: object) -> str:
    """A value as it would be written in a `.env`; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(value: object) -> str:
    """What a variable holds, for a message: quoted, cut, and "…" where it looks like a key in the wrong place."""
    text = "".join(letter if letter.isprintable() else "�" for letter in str(value))
    if _LOOKS_SECRET.search(text):
        return '"…"'
    return f'"{text[:SHOWN_MAX]}…"' if len(text) > SHOWN_MAX else f'"{text}"'
