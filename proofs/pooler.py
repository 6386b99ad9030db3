"""Debian's programs for the database proof: PgBouncer in front of a server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from koo.testing.postgres import PASSWORD, USER, PostgresServer, postgres_binaries
from koo.testing.processes import RealServer, unprivileged
from proofs.running import ProofFailed

MAJOR = 15
"""Debian 12's PostgreSQL; the tests use 16 and 18."""
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def check_programs() -> None:
    """Raises ProofFailed, with the command to run, if a program is not installed."""
    if postgres_binaries(MAJOR) is None or shutil.which("pgbouncer", path=PATH) is None:
        raise ProofFailed(f"not on this machine; run apt install postgresql-{MAJOR} pgbouncer")


class PgBouncer(RealServer):
    """PgBouncer in transaction mode in front of `server`, with limits of its server connections and of its clients."""

    def __init__(self, server: PostgresServer, *, pool_size: int = 5, clients_max: int = 200) -> None:
        super().__init__(account=unprivileged())
        self._server = server
        self._pool_size = pool_size
        self._clients_max = clients_max

    def url(self, driver: Literal["psycopg", "asyncpg"], database: str) -> str:
        """The server's URL, but through the pooler."""
        return f"postgresql+{driver}://{USER}:{PASSWORD}@{self.host}:{self.port}/{database}"

    @staticmethod
    def version() -> str:
        program = shutil.which("pgbouncer", path=PATH)
        assert program is not None
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        return said.split("\n", 1)[0].strip()

    def _prepare(self, directory: Path) -> None:
        lines = [
            "[databases]",
            f"* = host={self._server.host} port={self._server.port} user={USER} password={PASSWORD}",
            "[pgbouncer]",
            f"listen_addr = {self.host}",
            f"listen_port = {self.port}",
            "auth_type = any",
            "pool_mode = transaction",
            f"default_pool_size = {self._pool_size}",
            f"max_client_conn = {self._clients_max}",
            # With Debian's default it would wait for 15 s before it tries a server again that was down.
            "server_login_retry = 1",
            "unix_socket_dir =",
        ]
        file = directory / "pgbouncer.ini"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._account.give(file)

    def _command(self) -> Sequence[str | Path]:
        program = shutil.which("pgbouncer", path=PATH)
        assert program is not None
        return [program, self.directory / "pgbouncer.ini"]

    def _is_ready(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex((self.host, self.port)) == 0
