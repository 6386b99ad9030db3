"""What keeps the local model from running on this machine, each with the one command that fixes it.

Looking costs a third of a millisecond, so it happens when koo is put together and at each check, and notices what was
installed since. Importing the engine would be the sure way, but takes 0.1 s and 20 MB: that is done in a child process,
and only if the system does not know the shared library that is usually missing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from koo.ai.local_model import find_model, flaw_of
from koo.ai.local_server import child_environment

SET_PATH = "set AI_SERVICES__LOCAL__MODEL to the path of a GGUF file"
ENGINE = "xllamacpp"
INSTALL_ENGINE = (
    "from where you installed koo, run pip install -U '/path/to/koo[local]', then koo model install"
)
"""Not a bare name: on the public index it belongs to another project."""
PACKAGES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}
"""Debian's packages of the libraries that the engine's wheel leaves to the system."""
LIBRARY = "libgomp.so.1"
"""The one of them that a minimal Debian, and each slim image of Python, lacks."""
LD_CACHE = Path("/etc/ld.so.cache")
MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+): cannot open shared object file")
PROBE_TIMEOUT_S = 20.0


def engine_obstacle(*, doubted: bool = False) -> str:
    """Why the engine cannot be imported, or empty. `doubted`: it failed to, so try it even if its library is there."""
    spec = find_spec(ENGINE)
    if spec is None:
        return f"not configured: its engine {ENGINE} is not installed; {INSTALL_ENGINE}"
    libraries, changed_at = _read_ld_cache()
    if not sys.platform.startswith("linux") or (not doubted and f"{LIBRARY}\0".encode() in libraries):
        return ""
    words = _import_in_a_child(changed_at, _changed_at(Path(spec.origin or "")))
    return "" if words is None else import_obstacle(words)


def import_obstacle(words: str) -> str:
    """What an ImportError of the engine means."""
    found = MISSING_LIBRARY.search(words)
    if found is None:
        return f"not configured: its engine {ENGINE} is damaged or too old; {INSTALL_ENGINE}"
    library = found[1]
    package = PACKAGES.get(library)
    command = f"run apt install {package}" if package else "install the system package that contains it"
    return f"not configured: its engine needs {library}, which this machine lacks; {command}"


def model_obstacle(path: Path | None) -> str:
    """Why there is no model to load, or empty. `path` None: the installed package's."""
    path = path or find_model()
    if path is None:
        return f"not configured: no model is installed; run koo model install (93 MB), or {SET_PATH}"
    flaw = flaw_of(path)
    if flaw is None:
        return ""
    return f"not configured: the model file {path} {flaw}; run koo model install to get one, or {SET_PATH}"


def _read_ld_cache() -> tuple[bytes, float]:
    try:
        return LD_CACHE.read_bytes(), _changed_at(LD_CACHE)
    except OSError:
        return b"", 0.0


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@cache
def _import_in_a_child(libraries_changed_at: float, engine_changed_at: float) -> str | None:
    """The words of its ImportError, or None. Once for each state of the system's libraries and of the engine."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {ENGINE}"],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr
