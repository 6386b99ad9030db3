"""koo's files are readable only by its user, whatever the umask, and never follow another user's link."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from koo import Database
from koo.cli.doctor import _write_flaw
from koo.errors import DatabaseUnavailable
from koo.own_files import PutThere, make_database
from koo.storage.base import StoreUnavailable
from koo.storage.store import SqlStore

STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which every user may create files, like /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="koo-shared-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*")}


WRITES = """
import asyncio, os, sys
from sqlalchemy import text
import koo
from koo.settings import Settings
os.umask(int(sys.argv[1], 8))

async def main():
    async with koo.Platform(Settings().platform_options()) as platform:
        async with platform.database.session_scope() as session:
            await session.execute(text("CREATE TABLE t (a)"))
        await platform.ledger.refresh()
        names = ["data", *(f"data/{one}" for one in os.listdir("data"))]
        print({name: oct(os.stat(name).st_mode & 0o777) for name in names})

asyncio.run(main())
"""


@pytest.mark.parametrize("umask", ["000", "022", "277"])
def test_all_files_belong_to_their_owner_alone_whatever_the_umask(umask: str, tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "KOO_HOME": str(tmp_path), "AI_LOCAL_ENABLED": "false"}
    run = [sys.executable, "-c", WRITES, umask]
    done = subprocess.run(run, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout.strip().splitlines()[-1])
    assert {
        "data",
        "data/koo.db",
        "data/koo-state.db",
        "data/koo.db-wal",
        "data/koo-state.db-wal",
    } <= found.keys()
    assert found == {path: "0o700" if path == "data" else "0o600" for path in found}


def test_an_existing_database_keeps_its_mode_and_its_rows(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"rows")
    (tmp_path / "x.db").chmod(0o640)
    make_database(tmp_path / "x.db")
    assert modes(tmp_path) == {"x.db": "0o640"} and (tmp_path / "x.db").read_bytes() == b"rows"


def test_the_users_own_link_is_followed_even_if_its_target_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "x.db").symlink_to("later.db")
    make_database(tmp_path / "data" / "x.db")
    assert modes(tmp_path / "disk")["later.db"] == "0o600"


@as_root
@pytest.mark.parametrize("what", ["link", "link to a folder", "file", "folder", "log beside it"])
def test_a_file_of_another_user_in_a_shared_folder_is_not_used(
    what: str, shared: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    path = shared / "state.db"
    planted = shared / "state.db-wal" if what == "log beside it" else path
    if what == "link to a folder":
        planted, path = shared / "data", shared / "data" / "state.db"
        victim.mkdir()
    if what == "folder":
        planted, path = shared / "data", shared / "data" / "state.db"
        planted.mkdir()
    elif "link" in what:
        planted.symlink_to(victim)
    else:
        planted.touch()
    os.lchown(planted, STRANGER, STRANGER)
    with pytest.raises(PutThere):
        make_database(path)

    async def main() -> None:
        database = Database(f"sqlite:///{path}")
        with pytest.raises(DatabaseUnavailable, match="another user created it"):
            async with database.session_scope():
                pass
        await database.close()
        with pytest.raises(StoreUnavailable, match="another user created it"):
            await SqlStore(f"sqlite:///{path}").open()

    asyncio.run(main())
    assert not victim.exists() or not list(victim.iterdir())


@as_root
def test_a_file_of_another_user_in_a_private_folder_is_accepted(tmp_path: Path) -> None:
    """A container's root may read the files of the service's user."""
    path = tmp_path / "state.db"
    path.touch()
    os.chown(path, STRANGER, STRANGER)
    make_database(path)


def test_doctor_does_not_write_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".koo-doctor").symlink_to(victim)
    assert _write_flaw(tmp_path / "data") == ""
    assert victim.read_text() == "kept" and [one.name for one in (tmp_path / "data").iterdir()] == [
        ".koo-doctor"
    ]
