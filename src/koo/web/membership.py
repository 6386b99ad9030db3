"""A worker's place among the workers of `koo serve --workers`, as its parent passes it on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from koo.log_options import LogFormat, LogLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Values from the command line; None means that the setting applies."""

    host: str | None = None
    port: int | None = None
    log_format: LogFormat | Literal["console"] | None = None
    log_level: LogLevel | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """One worker: its number (from 1), the total count, its parent's process id, and the descriptors that it inherits.

    `listener`: the shared socket. `ready`: the pipe into which it writes a byte when it serves, and one each second
    from then on. `announces`: whether it prints the example commands.
    """

    number: int
    count: int
    parent: int
    listener: int
    ready: int
    announces: bool
    given: Given

    def text(self) -> str:
        """Return the membership as text for the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Membership:
        """Parse the result of `text`."""
        values = json.loads(text)
        return cls(**{**values, "given": Given(**values["given"])})
