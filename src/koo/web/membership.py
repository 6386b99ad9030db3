"""A worker's place among those of `koo serve --workers`, as its parent passes it on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from koo.log_options import LogFormat, LogLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the command line says; None is what the settings say."""

    host: str | None = None
    port: int | None = None
    log_format: LogFormat | Literal["console"] | None = None
    log_level: LogLevel | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """One worker: its number from 1, of how many, its parent's process id, and descriptors that it inherits.

    `listener`: the socket that all share. `ready`: where a byte says that it answers, and one each second from then on.
    `announces`: it prints what to try.
    """

    number: int
    count: int
    parent: int
    listener: int
    ready: int
    announces: bool
    given: Given

    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Membership:
        """What `text` wrote."""
        values = json.loads(text)
        return cls(**{**values, "given": Given(**values["given"])})
