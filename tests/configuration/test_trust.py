"""A `.env` that other users can change is refused unless KOO_HOME names its folder; a readable one causes a warning."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from koo.errors import ConfigurationError
from koo.settings import Settings

STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a file's owner")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users can enter; pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="koo-shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def write(path: Path, mode: int = 0o600) -> Path:
    path.write_text("KOO_PORT=8123\n")
    path.chmod(mode)
    return path


def port(working_directory: Path, **environ: str) -> int:
    """8123 if the file was read."""
    (working_directory / "project").mkdir(exist_ok=True)
    return Settings(environ=environ, working_directory=working_directory / "project").koo_port


def refusal(folder: Path, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        port(folder, **environ)
    return str(caught.value)


def test_the_users_own_file_is_read(shared: Path) -> None:
    write(shared / ".env")
    assert port(shared) == 8123


@pytest.mark.parametrize("mode", [0o666, 0o602])
def test_a_file_that_every_user_can_write_is_refused(shared: Path, mode: int) -> None:
    file = write(shared / ".env", mode)
    assert refusal(shared) == (
        f"{file} is not read, because every user of this machine can write {file}: change that, or set KOO_HOME="
        f"{shared} to trust the file, or set KOO_HOME to another folder"
    )


def test_a_file_that_every_user_can_replace_is_refused(shared: Path) -> None:
    write(shared / ".env")
    shared.chmod(0o777)
    assert f"every user of this machine can write {shared}:" in refusal(shared)


def test_a_parent_folder_that_every_user_can_write_is_refused(shared: Path) -> None:
    inner = shared / "a" / "b"
    inner.mkdir(parents=True)
    write(inner / ".env")
    (shared / "a").chmod(0o777)
    assert f"can write {shared / 'a'}:" in refusal(inner)


def test_the_users_own_file_in_a_folder_with_the_sticky_bit_is_read(shared: Path) -> None:
    write(shared / ".env")
    shared.chmod(0o1777)
    assert port(shared) == 8123


def test_a_mounted_secret_is_read(shared: Path) -> None:
    """The folder has mode 1777, the file is a link to a link, and root owns all of it."""
    version = shared / "..2026_11_29"
    version.mkdir(mode=0o755)
    write(version / ".env", 0o600 if os.geteuid() else 0o644)
    (shared / "..data").symlink_to(version.name)
    (shared / ".env").symlink_to("..data/.env")
    shared.chmod(0o1777)
    assert port(shared) == 8123


@as_root
@pytest.mark.parametrize("whose", ["file", "link", "folder"])
def test_a_file_or_folder_of_another_user_is_refused(shared: Path, whose: str) -> None:
    inner = shared / "inner"
    inner.mkdir()
    inner.chmod(0o1777)
    target = write(shared / "target")
    if whose == "link":
        (inner / ".env").symlink_to(target)
        os.chown(inner / ".env", STRANGER, STRANGER, follow_symlinks=False)
        theirs = inner / ".env"
    else:
        theirs = write(inner / ".env") if whose == "file" else inner
        write(inner / ".env")
        os.chown(theirs, STRANGER, STRANGER)
    assert f"because {theirs} belongs to the user " in refusal(inner)


@as_root
def test_a_links_target_is_checked(shared: Path) -> None:
    target = write(shared / "target")
    os.chown(target, STRANGER, STRANGER)
    (shared / ".env").symlink_to("target")
    assert f"because {target} belongs to the user " in refusal(shared)


@as_root
def test_a_group_with_several_users_is_refused_but_roots_group_is_not(shared: Path) -> None:
    file = write(shared / ".env", 0o660)
    os.chown(file, 0, 0)
    assert port(shared) == 8123
    os.chown(file, 0, 12345)
    assert f"a group of several users can write {file}" in refusal(shared)


@as_root
def test_under_sudo_files_of_the_calling_user_are_read(shared: Path) -> None:
    os.chown(write(shared / ".env"), STRANGER, STRANGER)
    assert port(shared, SUDO_UID=str(STRANGER)) == 8123
    assert "belongs to" in refusal(shared, SUDO_UID="12345")


@pytest.mark.parametrize(("target", "why"), [(".env", "symbolic links"), ("missing", "No such file")])
def test_a_broken_link_stops_the_start(shared: Path, target: str, why: str) -> None:
    """A broken link is usually a missing mounted secret, whose settings would be lost silently."""
    (shared / ".env").symlink_to(target)
    assert why in refusal(shared)
    assert str(shared / ".env") in refusal(shared)


def test_koo_home_trusts_its_file_with_a_warning(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(shared / ".env", 0o602)
    with caplog.at_level(logging.WARNING, "koo"):
        assert Settings(environ={"KOO_HOME": str(shared)}, working_directory=Path("/")).koo_port == 8123
    assert caplog.messages == [
        f"{file} is read because KOO_HOME names its folder, but every user of this machine can write {file}"
    ]


def test_a_file_that_every_user_can_read_causes_a_warning(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(shared / ".env", 0o644)
    with caplog.at_level(logging.WARNING, "koo"):
        assert port(shared) == 8123
    assert caplog.messages == [f"every user of this machine can read {file}: chmod o-r {file}"]


def test_a_readable_file_in_a_private_folder_causes_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o700)
    write(tmp_path / ".env", 0o644)
    with caplog.at_level(logging.WARNING, "koo"):
        assert port(tmp_path) == 8123
    assert caplog.messages == []
