"""Values whose `repr` hides them, because error reporters record the `repr` of local variables.

A key passes through a dozen functions before it is sent, and each of their frames in a traceback has it in a local
variable. So the value hides itself, wherever it is. Each class is a subclass of what it hides and works like it:
`str()`, f-strings and comparisons see the real text. A slice is hidden too, because reporters cut long values before
they show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

MASK = "**********"


class Secret(str):
    """A key, a password, or an address that contains one. A deep copy, as made by `dataclasses.asdict`, is the mask."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'"

    def __getitem__(self, at: SupportsIndex | slice) -> str:
        return Secret(super().__getitem__(at))

    def __add__(self, more: str) -> str:
        return Secret(super().__add__(more))

    def __deepcopy__(self, memo: object) -> str:
        return MASK


HIDDEN = Secret()
"""Assigned to a variable that held a prompt, once it is no longer needed, so that tracebacks do not show it."""
UNSHOWN: Any = HIDDEN
"""Assigned to the arguments of a caller's operation in the frames of its traceback; see `Platform.execute`."""


class Sent(bytes):
    """The body of a request, which contains a prompt, or of a response, which may repeat it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return Sent(part) if isinstance(part, bytes) else part


class Headers(dict[str, str]):
    """Request headers, whose values are secrets. They never change, so they can be a dict key."""

    __slots__ = ("_hash",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__({name: Secret(value) for name, value in headers.items()})
        self._hash = hash(tuple(self.items()))

    def __repr__(self) -> str:
        return f"<headers {', '.join(self)}>"

    def __hash__(self) -> int:  # type: ignore[override]
        return self._hash


class Fields(Mapping[str, Any]):
    """Headers or body fields from an option. The `repr` shows only their number, and a deep copy has masks as
    values."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"<{len(self)} fields>"

    def __deepcopy__(self, memo: object) -> dict[str, str]:
        return dict.fromkeys(self, MASK)


def hide(value: Any) -> Any:
    """A hidden version of a text or a mapping; anything else unchanged."""
    if isinstance(value, str):
        return value if isinstance(value, Secret) else Secret(value)
    return Fields(value) if isinstance(value, Mapping) else value
