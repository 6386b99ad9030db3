"""`PostgresServer` keeps its promises to tests that start, kill, freeze and restart it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import asyncpg
import psutil
import psycopg
import pytest

from koo.testing.postgres import PASSWORD, PostgresServer, postgres_binaries
from koo.testing.processes import Account, ServerFailed, lease_port, scratch


@pytest.fixture(params=[16, 18], ids=["pg16", "pg18"])
def own(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server for a single test."""
    with PostgresServer(request.param) as server:
        yield server


def one(server: PostgresServer, query: str = "select 1") -> object:
    with psycopg.connect(server.url(None), connect_timeout=2, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def test_each_server_has_the_requested_major_version(postgres: PostgresServer) -> None:
    assert str(one(postgres, "show server_version")).startswith(f"{postgres.major}.")
    assert repr(postgres) == f"<PostgresServer running, 127.0.0.1:{postgres.port}>"


def test_the_numbered_fixtures_are_the_parametrized_one(
    postgres: PostgresServer, postgres16: PostgresServer, postgres18: PostgresServer
) -> None:
    assert postgres is {16: postgres16, 18: postgres18}[postgres.major]


def test_asyncpg_connects_with_the_plain_url(postgres: PostgresServer) -> None:
    async def ask() -> object:
        connection = await asyncpg.connect(postgres.url(None))
        try:
            return await connection.fetchval("select 1")
        finally:
            await connection.close()

    assert asyncio.run(ask()) == 1


def test_a_url_names_its_driver_and_database(postgres16: PostgresServer) -> None:
    address = f"postgres:{PASSWORD}@127.0.0.1:{postgres16.port}"
    assert postgres16.url() == f"postgresql+psycopg://{address}/postgres"
    assert postgres16.url("asyncpg", "shop") == f"postgresql+asyncpg://{address}/shop"


def test_a_start_is_fast(own: PostgresServer) -> None:
    own.stop()
    began = time.perf_counter()
    own.start()
    assert time.perf_counter() - began < 2.0


def test_a_stop_ends_sessions_with_57p01_and_keeps_the_data(own: PostgresServer) -> None:
    with psycopg.connect(own.url(None), autocommit=True) as connection:
        connection.execute("create table kept as select 42 as answer")
        own.stop()
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        one(own)
    own.start()
    assert one(own, "select answer from kept") == 42


def test_committed_data_survives_a_kill_on_the_same_port(own: PostgresServer) -> None:
    port = own.port
    with psycopg.connect(own.url(None)) as connection:
        connection.execute("create table kept as select 42 as answer")
        connection.commit()
        connection.execute("insert into kept values (43)")
        own.kill()
        assert not own.running
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    own.start()
    assert own.port == port
    assert one(own, "select sum(answer) from kept") == 42
    assert "automatic recovery in progress" in own.log


def test_a_restart_applies_changed_settings(own: PostgresServer) -> None:
    assert one(own, "show fsync") == "off"
    own.settings |= {"fsync": True, "work_mem": "5MB"}
    own.restart()
    assert (one(own, "show fsync"), one(own, "show work_mem")) == ("on", "5MB")


def test_a_paused_server_accepts_connections_and_stays_silent_until_resumed(own: PostgresServer) -> None:
    with psycopg.connect(own.url(None)) as connection:
        own.pause()
        # The kernel completes the handshake, but the server does not read.
        with socket.create_connection((own.host, own.port), timeout=1) as silent:
            silent.settimeout(0.2)
            silent.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")  # SSLRequest
            with pytest.raises(TimeoutError):
                silent.recv(1)
        own.resume()
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_paused_server_can_be_killed_stopped_and_closed(own: PostgresServer) -> None:
    own.pause()
    own.kill()
    own.start().pause()
    own.stop()
    assert not own.running
    own.start().pause()


def test_the_start_after_an_immediate_shutdown_is_a_recovery(own: PostgresServer) -> None:
    own.shut_down("immediate")
    own.start()
    assert "not properly shut down" in own.log


def test_a_test_can_create_and_drop_its_own_database(postgres18: PostgresServer) -> None:
    name = postgres18.create_database()
    assert postgres18.sql("select current_database(), 7", name) == f"{name}|7"
    with psycopg.connect(postgres18.url(None, name)):
        postgres18.drop_database(name)
    assert postgres18.sql(f"select count(*) from pg_database where datname = '{name}'") == "0"


def test_a_refused_statement_raises_with_the_reason(postgres18: PostgresServer) -> None:
    with pytest.raises(ServerFailed, match="division by zero"):
        postgres18.sql("select 1/0")


def test_with_scram_the_password_is_checked() -> None:
    with PostgresServer(18, auth="scram-sha-256") as server:
        assert one(server) == 1
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url(None).replace(PASSWORD, "wrong"))


def test_an_invalid_setting_fails_the_start_with_the_servers_own_message() -> None:
    server = PostgresServer(18, settings={"shared_buffers": "much"})
    try:
        with pytest.raises(ServerFailed, match='invalid value for parameter "shared_buffers"'):
            server.start()
    finally:
        server.close()


def test_a_closed_server_leaves_nothing_behind() -> None:
    with PostgresServer(18) as server:
        directory, port, pid = server.directory, server.port, server.pid
        server.kill()
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    lease_port(port).close()


def test_the_server_does_not_run_as_root(postgres: PostgresServer) -> None:
    assert Path(f"/proc/{postgres.pid}").stat().st_uid != 0


@pytest.mark.parametrize("run", ["first", "second"])
def test_a_shared_server_runs_even_if_the_previous_test_killed_it(
    postgres16: PostgresServer, run: str
) -> None:
    assert one(postgres16) == 1, run
    postgres16.kill()


def test_a_leased_port_belongs_to_one_server_and_is_below_the_range_of_outgoing_ports(
    postgres16: PostgresServer,
) -> None:
    assert 20_000 <= postgres16.port < 32_000
    with lease_port() as lease, pytest.raises(OSError, match="in use"):
        lease_port(int(lease.getsockname()[1]))


def test_programs_that_the_account_cannot_reach_are_detected(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "postgres"
    program.parent.mkdir()
    program.touch(0o755)
    program.parent.chmod(0o700)
    assert not Account(65534, 65534).reaches(program)
    assert Account().reaches(program)
    assert scratch().stat().st_mode & 0o777 == 0o711


def test_unreachable_programs_are_copied_to_a_reachable_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Account, "reaches", lambda _account, path: path.is_relative_to(scratch()))
    # Twice: the second server must use the existing copy.
    for _ in range(2):
        with PostgresServer(18) as server:
            assert Path(psutil.Process(server.pid).exe()).is_relative_to(scratch())
            assert one(server) == 1


COPIER = """
import pathlib, shutil, subprocess, sys
from koo.testing.postgres import copy_programs

def copy_and_wait(*args, **options):
    copytree(*args, **options)
    print("copied a folder", flush=True)
    sys.stdin.readline()

copytree, shutil.copytree = shutil.copytree, copy_and_wait
programs = copy_programs(*map(pathlib.Path, sys.argv[1:]))
sys.exit(subprocess.run([programs / "postgres", "--version"]).returncode)
"""


def test_two_processes_can_copy_the_programs_at_the_same_time(tmp_path: Path) -> None:
    place = tmp_path / "programs"
    command = [sys.executable, "-c", COPIER, str(postgres_binaries(18)), str(place)]
    copiers = [subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(2)]
    for process in copiers:
        assert process.stdout is not None
        assert process.stdout.readline() == "copied a folder\n", "both copies are half done now"
    for process in copiers:
        output, _ = process.communicate("go\n" * 2, timeout=60)
        assert process.returncode == 0
        assert "(PostgreSQL) 18." in output
    assert list(tmp_path.iterdir()) == [place], "the second copy was removed"


def test_several_threads_can_start_servers_at_the_same_time() -> None:
    async def start_two() -> None:
        servers = PostgresServer(18), PostgresServer(18)
        try:
            await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
            assert servers[0].port != servers[1].port
        finally:
            for server in servers:
                server.close()

    asyncio.run(start_two())


def test_the_path_of_a_missing_major_version_is_none() -> None:
    assert postgres_binaries(7) is None
    programs = postgres_binaries(18)
    assert programs is not None and os.access(programs / "initdb", os.X_OK)
