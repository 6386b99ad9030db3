"""A bare machine: the smallest Debian that `debootstrap` makes, in a folder, with its own mounts and processes.

Its network settings come from this machine at run time: the mirror from apt's sources, pip's index and certificates
from pip's settings. Files named in pip's settings are mounted under /mnt, where only pip uses them.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from proofs.running import ProofFailed, TimeLimit

APT_INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends"
# Only the sources of packages; none of the developer's other settings.
PIP_SETTINGS = {
    "cert", "client-cert", "constraint", "default-timeout", "extra-index-url", "find-links", "index-url",
    "no-index", "proxy", "retries", "timeout", "trusted-host",
}  # fmt: skip
PROXIES = {"http_proxy", "https_proxy", "no_proxy"}
MOUNTED = Path("/mnt")
# Arguments: the root, pairs of source and mount point, "--", and the command.
ENTER = """
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" "$@"
"""


class Owner(NamedTuple):
    """The user of the bare machine who runs the commands, and the checkout's folder in that user's home."""

    user: str
    folder: str


class Machine:
    """One bare Debian in a folder."""

    def __init__(self, root: Path, owner: Owner) -> None:
        self.root = root
        self._owner = owner
        self._mounts: dict[Path, Path] = {}

    def make(self, release: str, mirror: str, limit: TimeLimit) -> None:
        """Bootstrap it, and copy the network settings and a fresh checkout."""
        if limit.run(["debootstrap", "--variant=minbase", release, self.root, mirror]) != 0:
            raise ProofFailed(f"debootstrap could not make {release}")
        self._take_over_network()
        self.run("apt-get update -qq", limit)
        if self._owner.user != "root":
            self.run(f"useradd --create-home {self._owner.user}", limit)
        self._check_out(limit)

    def run(self, command: str, limit: TimeLimit) -> None:
        """Run as root. Raises ProofFailed if the command fails."""
        if limit.run(self.entered(command, "root")) != 0:
            raise ProofFailed(f"failed on the bare machine: {command}")

    def install(self, packages: set[str], limit: TimeLimit) -> None:
        self.run(f"{APT_INSTALL} {' '.join(sorted(packages))}", limit)

    def entered(self, command: str, user: str | None = None) -> list[str]:
        """The command line that runs `command` on the machine, as its owner in the checkout, or as `user` at home."""
        who = user or self._owner.user
        home = self._home(who)
        folder = f"{home}/{self._owner.folder}" if user is None else home
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        proxies = [f"{name}={value}" for name, value in os.environ.items() if name.lower() in PROXIES]
        environment = [f"PATH={path}", f"HOME={home}", "TERM=dumb", *proxies]
        mounts = [str(place) for pair in self._mounts.items() for place in pair]
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", ENTER, "sh", str(self.root), *mounts, "--"),
            *("setpriv", f"--reuid={who}", f"--regid={who}", "--init-groups"),
            *("env", "-i", "-C", folder, *environment, "sh", "-c", command),
        ]

    def version(self) -> str:
        return (self.root / "etc" / "debian_version").read_text().strip()

    def python(self) -> str:
        done = subprocess.run(
            self.entered("python3 --version", "root"), capture_output=True, text=True, check=True
        )
        return done.stdout.split()[1]

    @property
    def checkout(self) -> Path:
        return self.root / self._home(self._owner.user).lstrip("/") / self._owner.folder

    def _home(self, user: str) -> str:
        for line in (self.root / "etc" / "passwd").read_text().splitlines():
            if line.startswith(f"{user}:"):
                return line.split(":")[5]
        raise ProofFailed(f"the bare machine has no user {user}")

    def _take_over_network(self) -> None:
        etc = self.root / "etc"
        if Path("/etc/resolv.conf").exists():
            shutil.copy("/etc/resolv.conf", etc / "resolv.conf")
        # debootstrap leaves this to an installer, which has run on every real machine and container.
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        apt = ["apt-config", "dump", "--format", '%f "%v";%n']
        names = ["Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until", "Acquire::Check-Date"]
        (etc / "apt" / "apt.conf.d" / "99network").write_text(_output([*apt, *names]))
        lines = [f"{name} = {self._mounted(value)}" for name, value in _pip_settings().items()]
        (etc / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))

    def _mounted(self, value: str) -> str:
        """`value`, with each file and folder of this machine replaced by its mount point on the bare one."""
        return " ".join(self._mounted_word(word) for word in value.split())

    def _mounted_word(self, word: str) -> str:
        path = Path(word.removeprefix("file://"))
        if not (path.is_absolute() and path.exists()):
            return word
        # The pages of an index in a folder refer to files next to that folder.
        mounted = path.parent if word.startswith("file://") else path
        there = self._mounts.setdefault(mounted, MOUNTED / str(len(self._mounts)))
        place = self.root / there.relative_to("/")
        if mounted.is_dir():
            place.mkdir(exist_ok=True)
        else:
            place.touch()
        return word.replace(str(path), str(there / path.relative_to(mounted)))

    def _check_out(self, limit: TimeLimit) -> None:
        self.checkout.mkdir()
        archive = self.root / "checkout.tar"
        unpack: list[str | Path] = ["tar", "--extract", "--file", archive, "--directory", self.checkout]
        if limit.run(["git", "archive", "--output", archive, "HEAD"]) or limit.run(unpack):
            raise ProofFailed("no git checkout to copy to the bare machine")
        archive.unlink()
        where = f"{self._home(self._owner.user)}/{self._owner.folder}"
        self.run(f"chown -R {self._owner.user}: '{where}'", limit)


def _pip_settings() -> dict[str, str]:
    settings = {}
    for line in _output([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in PIP_SETTINGS:
            settings[name] = str(ast.literal_eval(value))
    return settings


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def mirror() -> str:
    """The Debian mirror of this machine's apt. Raises ProofFailed with one sentence if the proof cannot run here."""
    tools = ("debootstrap", "unshare", "setpriv", "apt-get", "git")
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in tools):
        raise ProofFailed(
            "bare machines need root and Debian's packages debootstrap, git and util-linux: apt install debootstrap git"
        )
    listed = _output(["apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)"])
    for line in listed.splitlines():
        origin, component, *uri = line.split()
        if (origin, component) == ("Debian", "main") and uri:
            return uri[0]
    raise ProofFailed("apt has no source of Debian here; run apt-get update first")
