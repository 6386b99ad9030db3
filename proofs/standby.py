"""A standby that follows a server until it is promoted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from koo.testing.postgres import PASSWORD, USER, PostgresServer
from proofs.running import ProofFailed


class Standby(PostgresServer):
    """A copy of `primary` with the same major version that follows it, through `port` if that is a proxy's."""

    def __init__(self, primary: PostgresServer, port: int | None = None) -> None:
        # As many as the primary allows, because a standby that allows fewer connections does not start.
        most = {name: primary.settings[name] for name in ("max_connections",) if name in primary.settings}
        super().__init__(primary.major, settings={"hot_standby": True, **most})
        self._host = primary.host
        self._from_port = primary.port if port is None else port

    @property
    def name(self) -> str:
        """Its name in `synchronous_standby_names` of its primary."""
        return f"standby_{self.port}"

    def promote(self) -> None:
        """Promote it; returns when it accepts writes."""
        if self.sql("SELECT pg_promote(true, 30)") != "t":
            raise ProofFailed("the standby was not promoted")

    def _prepare(self, directory: Path) -> None:
        programs = Path(self._command()[0]).parent
        source = f"host={self._host} port={self._from_port} user={USER} password={PASSWORD}"
        source += f" application_name={self.name}"
        place = ["-D", str(directory / "data"), "-d", source]
        command = [str(programs / "pg_basebackup"), *place, "-R", "-X", "stream", "-c", "fast"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=directory,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            user=self._account.uid,
            group=self._account.gid,
            extra_groups=None if self._account.uid is None else [],
        )
        if done.returncode != 0:
            raise ProofFailed(f"the standby could not be made: {done.stderr.strip()}")
