"""The table of variables: what a row is, and how a class declares it.

A row names the option that a variable sets, by a function: `pool_size = variable(lambda koo: koo.database.pool_size)`.
The variable takes its meaning, unit, range, default and reason from the option, so a row states only the differences.
The function is called once, with a recorder, to find the option's place. mypy checks that the option exists, and uses
its type for the attribute. So a variable is declared once: the attribute is its name, and the option defines the rest.

A class of rows is a `Table`. Its instances contain a value for each row, under the row's name, and are immutable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import (
    Any,
    ClassVar,
    Literal,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from koo.budget_options import BudgetOptions
from koo.checked import BOUNDS, Checked
from koo.configuration.values import YES_OR_NO, Form, SecretStr, as_text, choice, number, reveal
from koo.options import PlatformOptions, ServiceOptions

T = TypeVar("T")
Place = tuple[str, ...]
"""The path of an option: ("database", "pool_size") in `PlatformOptions`."""

PLATFORM = PlatformOptions()
SERVICE = ServiceOptions(name="", kind="openai")
BUDGET = BudgetOptions(name="")


@dataclass(slots=True)
class Row:
    """One variable. It sets the options at `places` in `root`; `less` is subtracted from an option to get its value."""

    form: Form
    default: object
    meaning: str
    why: str
    unit: str = ""
    shown_default: str = ""
    """Shown in the documentation in place of the default."""
    root: Checked | None = None
    places: tuple[Place, ...] = ()
    less: int = 0
    takes_none: bool = False
    none: str = ""
    """The meaning of the value `none`; "" if the variable does not accept it."""
    secret: bool = False
    many: bool = False
    """The row has a value for each name that follows it: `HEADERS__X_TITLE` is the value for "x_title"."""
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def allowed(self) -> str:
        """The accepted values in words: "a whole number, 1 to 10000"."""
        return self.form.allowed + (f", or none for {self.none}" if self.none else "")

    def read(self, value: object, home: Path) -> object:
        """Parse what was set, usually text. Raises `ValueError`."""
        # A Python argument may be None if the option may. In text the same is written `none`, which is handled below.
        if value is None and self.takes_none:
            return None
        value = reveal(value)
        if not isinstance(value, self.form.types):
            raise ValueError
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        # Python arguments go through the same parser as text, so that a value has the same rules and the same messages
        # wherever it comes from. `json.dumps` writes True as "true" and keeps a body's objects.
        text = json.dumps(value) if isinstance(value, (bool, list, dict)) else str(value).strip()
        if self.none and text.lower() == "none":
            return None
        made = self.form.read(text, home)
        return SecretStr(str(made)) if self.secret else made

    def options(self) -> Iterator[str]:
        """The options that the variable sets, as `Class.field`."""
        for *parts, name in self.places:
            yield f"{type(_inside(self.root, parts)).__name__}.{name}"

    def explain(self, value: object) -> str:
        """A value for display; secrets are masked."""
        if value is None:
            return "none" if self.none else ""
        if isinstance(value, Mapping):
            return ", ".join(f"{name}=…" for name in value)
        return self.form.shown(as_text(value))


class Words(TypedDict, total=False):
    """A row's own attributes, which replace those of its option."""

    form: Form
    meaning: str
    why: str
    shown_default: str
    less: int


def variable(
    option: Callable[[PlatformOptions], T], *more: Callable[[PlatformOptions], T], **words: Unpack[Words]
) -> T:
    """A variable that sets this option, and those in `more`."""
    return cast("T", _row(PLATFORM, (option, *more), words))


def for_services(option: Callable[[ServiceOptions], T], **words: Unpack[Words]) -> T:
    """A variable that sets this option of each service."""
    return cast("T", _row(SERVICE, (option,), words))


def of_one(option: Callable[[ServiceOptions], T], **words: Unpack[Words]) -> T | None:
    """A setting of one service; None if it is not set."""
    return cast("T", replace(_row(SERVICE, (option,), words), default=None, takes_none=True))


def many_of_one(option: Callable[[ServiceOptions], T], **words: Unpack[Words]) -> T:
    """Settings of one service under names that the operator chooses, with values that are never shown; {} if none."""
    return cast("T", replace(_row(SERVICE, (option,), words), default={}, many=True, secret=True))


def of_budget(option: Callable[[BudgetOptions], T], **words: Unpack[Words]) -> T | None:
    """A setting of one budget; None if it is not set."""
    return cast("T", replace(_row(BUDGET, (option,), words), default=None, takes_none=True))


def alone(default: T, meaning: str, why: str, form: Form) -> T:
    """A variable that does not correspond to a single option."""
    return cast("T", Row(form, default, meaning, why, takes_none=default is None))


@overload
def secret(row: str) -> SecretStr: ...
@overload
def secret(row: str | None) -> SecretStr | None: ...
def secret(row: object) -> object:
    """The given row, marked so that its value is never shown."""
    return replace(cast("Row", row), secret=True)


class _Recorder:
    """Passed to a row's function in place of the options; records which option the function returns."""

    def __init__(self) -> None:
        self.place: Place = ()

    def __getattr__(self, name: str) -> _Recorder:
        self.place += (name,)
        return self


def _row(root: Checked, options: tuple[Callable[[Any], object], ...], words: Words) -> Row:
    # The first option provides the meaning and the range; further ones only receive the same value.
    places = tuple(_place(option) for option in options)
    *parents, name = places[0]
    owner = _inside(root, parents)
    types, less = _types(owner.__class__)[name], words.get("less", 0)
    about = dict(owner.__dataclass_fields__[name].metadata)
    # `DB_MAX_RETRIES` counts retries, `attempts_max` counts attempts: value, range and default all differ by `less`.
    about |= {bound: about[bound] - less for bound in BOUNDS if about.get(bound) is not None}
    default = getattr(owner, name)
    return Row(
        words.get("form") or _form(types, about),
        default - less if less else default,
        words.get("meaning") or about["meaning"],
        words.get("why") or about["why"],
        unit=about.get("unit", ""),
        shown_default=words.get("shown_default", ""),
        root=root,
        places=places,
        less=less,
        takes_none=NoneType in types,
        none=about.get("none", ""),
    )


def _place(option: Callable[[Any], object]) -> Place:
    recorder = _Recorder()
    option(recorder)
    return recorder.place


def _inside(options: Any, parts: Iterable[str]) -> Any:
    for part in parts:
        options = getattr(options, part)
    return options


@cache
def _types(owner: type[object]) -> dict[str, tuple[object, ...]]:
    """The types of each option of a class: `int | None` → (int, NoneType); a `Literal["a"]` stays as it is."""
    hints = get_type_hints(owner)
    return {
        name: (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
        for name, hint in hints.items()
    }


def _form(types: tuple[object, ...], about: Mapping[str, Any]) -> Form:
    """The form of a value by its type and range."""
    kind: Any = types[0]
    if get_origin(kind) is Literal:
        return choice(*get_args(kind))
    return YES_OR_NO if kind is bool else number(kind, about)


class Table:
    """Base class of classes of rows. `given` contains the attributes that were set; the others have their default."""

    rows: ClassVar[dict[str, Row]] = {}
    given: frozenset[str]

    def __init_subclass__(cls) -> None:
        cls.rows = cls.rows | {name: row for name, row in vars(cls).items() if isinstance(row, Row)}

    def __init__(self, values: Mapping[str, object], given: frozenset[str]) -> None:
        vars(self).update({name: row.default for name, row in self.rows.items()} | dict(values), given=given)

    # Values were checked together when the table was created. One that is changed afterwards could contradict the
    # others, and parts of koo that have read the old value would not notice.
    def __setattr__(self, name: str, value: object) -> None:
        raise ValueError(f"{type(self).__name__} is frozen; create a new one to change {name}")

    def __repr__(self) -> str:
        shown = (
            f"{name}={row.explain(getattr(self, name))}"
            for name, row in self.rows.items()
            if name in self.given
        )
        return f"<{type(self).__name__} {', '.join(shown)}>"
