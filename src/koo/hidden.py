"""Text that no frame shows: what reporters of errors record of local variables is their `repr`.

A key goes through a dozen functions before it is sent, and each frame that an error passes has it in a local variable.
So what hides it is the value itself, wherever it is. Each of these is what it hides, and is used as that: `str()`, an
f-string and comparisons see the text. A part of it is hidden too, since reporters cut long values and then show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

MASK = "**********"


class Secret(str):
    """A key, a password, an address with one in it. A deep copy, as `dataclasses.asdict` makes one, is the mask."""

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
"""In place of a text whose name has done its work: a door's own variable with the prompt."""
UNSHOWN: Any = HIDDEN
"""In place of what a caller's own operation is called with, in the frames that its error passes: see `execute`."""


class Sent(bytes):
    """The body of a request, which holds a prompt, or of its answer, which may repeat one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return Sent(part) if isinstance(part, bytes) else part


class Headers(dict[str, str]):
    """Headers of requests, whose values are secrets; never changed, so they can be a key."""

    __slots__ = ("_hash",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__({name: Secret(value) for name, value in headers.items()})
        self._hash = hash(tuple(self.items()))

    def __repr__(self) -> str:
        return f"<headers {', '.join(self)}>"

    def __hash__(self) -> int:  # type: ignore[override]
        return self._hash


class Fields(Mapping[str, Any]):
    """Headers or fields of a body as an option has them: shown by their number. A deep copy has masks for values."""

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
    """A text, or a mapping, as one that nothing shows; anything else as it is."""
    if isinstance(value, str):
        return value if isinstance(value, Secret) else Secret(value)
    return Fields(value) if isinstance(value, Mapping) else value
