"""Finds what keeps the local model from running on this machine, and names the command that fixes it.

The check takes a third of a millisecond. It is made when koo starts and at each health check, so it notices what has
been installed since. Only importing the engine shows for sure that it works, but that takes 0.1 s and 20 MB. So it is
done in a child process, and only if the shared library that is usually missing is not in the system's cache.
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
"""A path and not the bare name: on the public index, the name koo belongs to another project."""
PACKAGES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}
"""The Debian packages of the libraries that the engine needs and its wheel does not contain."""
LIBRARY = "libgomp.so.1"
"""The library that is missing on a minimal Debian and in every slim Python image."""
LD_CACHE = Path("/etc/ld.so.cache")
MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+): cannot open shared object file")
PROBE_TIMEOUT_S = 20.0


def engine_obstacle(*, doubted: bool = False) -> str:
    """Why the engine cannot be imported; empty if it can.

    `doubted`: an import has failed, so try one even if the library is in the system's cache.
    """
    spec = find_spec(ENGINE)
    if spec is None:
        return f"not configured: its engine {ENGINE} is not installed; {INSTALL_ENGINE}"
    # The linker's cache is a binary file of NUL-terminated names, so searching its bytes is enough, and starts no
    # process. The NUL keeps `libgomp.so.1` from matching `libgomp.so.1.0.0`.
    libraries, changed_at = _read_ld_cache()
    if not sys.platform.startswith("linux") or (not doubted and f"{LIBRARY}\0".encode() in libraries):
        return ""
    words = _import_in_a_child(changed_at, _changed_at(Path(spec.origin or "")))
    return "" if words is None else import_obstacle(words)


def import_obstacle(words: str) -> str:
    """The obstacle that an ImportError of the engine stands for. `words` is its text."""
    found = MISSING_LIBRARY.search(words)
    if found is None:
        return f"not configured: its engine {ENGINE} is damaged or too old; {INSTALL_ENGINE}"
    library = found[1]
    package = PACKAGES.get(library)
    command = f"run apt install {package}" if package else "install the system package that contains it"
    return f"not configured: its engine needs {library}, which this machine lacks; {command}"


def model_obstacle(path: Path | None) -> str:
    """Why no model can be loaded; empty if one can. Without `path` the installed package's file is checked."""
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
    """The text of the engine's ImportError, or None if it can be imported.

    Cached by the times at which the system's libraries and the engine last changed, so each state is tried once.
    """
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
